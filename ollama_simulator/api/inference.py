"""One completion as llama-server returns it to Ollama: truncation, pacing of tokens, stop sequences, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_simulator.api.exchange import ApiError
from ollama_simulator.api.options import Sampling
from ollama_simulator.api.parsers import overlap
from ollama_simulator.gojson import dump
from ollama_simulator.models import tokens
from ollama_simulator.models.installed import Installed
from ollama_simulator.models.speech import Ask, controls, speak
from ollama_simulator.scheduler.engine import Lease, RunnerDied

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the"
    " context length in settings, or use a model with a longer context length"
)
OPEN_ENDED = 10
"""An unlimited answer ends after this many times its context."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to send and its tokens. The last piece has the reason in `done`, with the counts and durations."""

    text: str
    new_tokens: tuple[str, ...] = ()
    done: str = ""
    prompt_count: int = 0
    prompt_s: float = 0.0
    count: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A request to a runner. `num_ctx` is Ollama's figure; llama-server rounds it up to a multiple of 256.

    The runner dies after `dies_after` tokens (0 = never), of a CUDA OOM if `dies_of_memory`.
    """

    model: Installed
    prompt: str
    sampling: Sampling
    num_ctx: int
    truncate: bool = True
    shift: bool = True
    thinks: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    format: Any = None
    is_tool_result: bool = False
    reply_tokens: int = 16
    dies_after: int = 0
    dies_of_memory: bool = False

    @property
    def cells(self) -> int:
        """The size of the slot's context, in tokens."""
        return (self.num_ctx + 255) // 256 * 256


def prompt_tokens(wanted: Completion) -> list[int]:
    """Return the prompt's tokens with BOS, truncated as Ollama does. Raises ApiError 400 if the prompt is refused."""
    weights = wanted.model.weights
    bos = [weights.info.get("tokenizer.ggml.bos_token_id") or 1] if _adds_bos(wanted.model) else []
    found = bos + tokens.encode(weights, wanted.prompt)
    limit = wanted.num_ctx - 1
    if wanted.truncate and len(wanted.prompt) >= wanted.num_ctx and len(found) > limit:
        if not wanted.shift:
            raise ApiError(400, TOO_LONG)
        keep = min(len(found) if wanted.sampling.num_keep < 0 else wanted.sampling.num_keep + len(bos), limit)
        left = wanted.num_ctx - max((wanted.num_ctx - keep) // 2, 1)
        found = found[:keep] + found[len(found) - left + keep :]
    if len(found) >= wanted.cells:
        raise ApiError(400, _exceeds(len(found), wanted.cells))
    return found


def _adds_bos(model: Installed) -> bool:
    return bool(model.weights.info.get("tokenizer.ggml.add_bos_token", True))


def _exceeds(count: int, cells: int) -> str:
    text = f"request ({count} tokens) exceeds the available context size ({cells} tokens), try increasing it"
    error = {
        "code": 400,
        "message": text,
        "type": "exceed_context_size_error",
        "n_prompt_tokens": count,
        "n_ctx": cells,
    }
    return dump({"error": error}).decode()


async def complete(lease: Lease, wanted: Completion) -> AsyncIterator[Piece]:
    """Yield the pieces of one answer. Raises ApiError in place of the first, RunnerDied at any point."""
    prompt = prompt_tokens(wanted)
    ask = Ask(
        prompt=wanted.prompt,
        prompt_ids=prompt,
        seed=wanted.sampling.seed,
        thinks=wanted.thinks,
        tools=wanted.tools,
        format=wanted.format,
        is_tool_result=wanted.is_tool_result,
        length=wanted.reply_tokens,
    )
    loop = asyncio.get_running_loop()
    async with lease.slot():
        prompt_s = len(prompt) / lease.prompt_tokens_per_s
        await asyncio.sleep(prompt_s)
        lease.check()
        began_s = loop.time()
        stream = _Stream(wanted.sampling.stop)
        limit = wanted.sampling.num_predict
        limit = OPEN_ENDED * wanted.num_ctx if limit <= 0 else min(limit, OPEN_ENDED * wanted.num_ctx)
        limit = limit if wanted.shift else min(limit, max(1, wanted.cells - len(prompt)))
        count, reason = 0, ""
        spoken = speak(wanted.model.weights, ask)
        while not reason:
            await _pace(began_s + count / lease.tokens_per_s)
            _apply_controls(lease, wanted, count)
            lease.check()
            text = next(spoken, None)
            count += 1
            ready = stream.add(text)
            reason = "stop" if text is None or stream.is_stopped else "length" if count >= limit else ""
            if reason == "length":
                ready += stream.flush()
            if ready:
                yield Piece(ready, (text or "",))
        duration_s = 1e-6 if count == 1 else loop.time() - began_s
        yield Piece("", (), reason, len(prompt), prompt_s, count, max(duration_s, 1e-6))


async def _pace(due_s: float) -> None:
    delay = due_s - asyncio.get_running_loop().time()
    if delay > 0:
        await asyncio.sleep(delay)


def _apply_controls(lease: Lease, wanted: Completion, count: int) -> None:
    """Kill the runner if a fault or the prompt demands it at this token."""
    if wanted.dies_after and count == wanted.dies_after:
        lease.crash(out_of_memory=wanted.dies_of_memory)
    asked = controls(wanted.prompt) if count == 3 else None
    if asked is not None and (asked.crashes or asked.runs_out_of_memory):
        lease.crash(out_of_memory=asked.runs_out_of_memory)


class _Stream:
    """Ends the text at a stop sequence; holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = list(stops)
        self.held = ""
        self.is_stopped = False

    def add(self, text: str | None) -> str:
        """Return the text that can be sent now. None as `text`: the model has ended its answer."""
        if text is None:
            return self.flush()
        self.held += text
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            ready, self.held = self.held[: min(found)], ""
            return ready
        size = max((overlap(self.held, stop) for stop in self.stops), default=0)
        ready, self.held = self.held[: len(self.held) - size], self.held[len(self.held) - size :]
        return ready

    def flush(self) -> str:
        """Return the text held back, which turned out not to be a stop sequence."""
        ready, self.held = self.held, ""
        return ready


def died(error: RunnerDied) -> str:
    """Ollama's text for a runner that died during an answer."""
    return error.text
