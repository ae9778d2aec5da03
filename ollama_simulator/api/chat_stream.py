"""A completion as a stream of Ollama's response objects, with thinking and tool calls parsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.api.grammar import SchemaCrash, invalid_request, is_dead, schema_error
from ollama_simulator.api.inference import Completion, Piece, complete, died
from ollama_simulator.api.options import sampling
from ollama_simulator.api.parsers import ThinkingParser, thinking_tags, tool_tag
from ollama_simulator.api.tool_calls import ToolParser
from ollama_simulator.api.values import Verbatim
from ollama_simulator.gojson import dump
from ollama_simulator.models import tokens
from ollama_simulator.models.installed import Installed
from ollama_simulator.scheduler.engine import Lease, RunnerDied
from router.core.go.quoting import go_quoted

MULTIMODAL = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests."'
    ',"type":"invalid_request_error"}}'
)


STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, check ollama"
    " server logs for details"
)
_WORDS = {"null": None, '""': None, '"json"': "json"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request. `think`: True, False, a level, or None if the request has none."""

    request: Mapping[str, Any]
    think: bool | str | None
    values: Mapping[str, Any]

    @property
    def truncates(self) -> bool:
        return self.request.get("truncate") is not False

    def completion(self, exchange: Exchange, model: Installed, prompt: str, lease: Lease, **more: Any) -> Completion:
        fault = exchange.response.fault
        return Completion(
            model=model,
            prompt=prompt,
            sampling=sampling(self.values),
            num_ctx=lease.num_ctx,
            truncate=self.truncates,
            shift=self.request.get("shift") is not False,
            thinks=bool(self.think) and "thinking" in model.capabilities,
            format=self.request.get("format"),
            reply_tokens=exchange.host.engine.cards.machine.reply_tokens,
            dies_after=max(1, fault.after_chunks) if fault is not None and fault.kind in ("crash", "oom") else 0,
            dies_of_memory=fault is not None and fault.kind == "oom",
            **more,
        )

    def parser(self, model: Installed, prompt: str) -> ThinkingParser | None:
        opening, closing = thinking_tags(model.template)
        if not (self.think and opening and closing):
            return None
        parser = ThinkingParser(opening, closing)
        if prompt.strip().endswith(opening):
            parser.add(opening)
        return parser


def format_of(value: Any) -> Any:
    """Return the value of `format`: "json", a schema, or nothing. Raises ApiError with the text of the real one."""
    sent = value if isinstance(value, Verbatim) else Verbatim(value, dump(value).decode())
    if sent.text in _WORDS:
        return _WORDS[sent.text]
    if not isinstance(sent.value, dict):
        quoted = go_quoted(sent.text)
        raise ApiError(500, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
    refusal = schema_error(sent.value)
    if refusal:
        raise ApiError(400, refusal)
    return sent.value


async def _pieces(completion: Completion, lease: Lease, *, has_images: bool) -> AsyncIterator[Piece]:
    """Yield the pieces of a completion; failures of the runner become ApiError. Releases the lease at the end."""
    try:
        try:
            completion = replace(completion, format=format_of(completion.format))
        except SchemaCrash:
            lease.crash(out_of_memory=False)
            raise ApiError(500, STOPPED) from None
        if completion.sampling.refusal:
            raise ApiError(400, invalid_request(completion.sampling.refusal))
        if has_images and not any(tensor.name.startswith("v.") for tensor in completion.model.weights.tensors):
            raise ApiError(400, MULTIMODAL)
        if is_dead(completion.format):  # llama-server fails in a way that Ollama takes for the end
            return
        async with aclosing(complete(lease, completion)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece
    except RunnerDied as error:
        raise ApiError(500, died(error)) from None
    finally:
        lease.release()


async def chat_chunks(
    exchange: Exchange, asked: Asked, completion: Completion, lease: Lease, *, has_images: bool
) -> AsyncIterator[dict[str, Any]]:
    thoughts = asked.parser(completion.model, completion.prompt)
    tools = list(completion.tools)
    calls = ToolParser(tool_tag(completion.model.template), tools) if tools else None
    loaded_s = asyncio.get_running_loop().time()
    async with aclosing(_pieces(completion, lease, has_images=has_images)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            message: dict[str, Any] = {"role": "assistant", "content": piece.text}
            if thoughts is not None:
                thinking, message["content"] = thoughts.add(piece.text)
                if not thinking and not message["content"] and not piece.done:
                    continue
                if thinking:
                    message["thinking"] = thinking
            is_ready = calls is None or _tool_step(exchange, calls, message, piece)
            if not is_ready and not (asked.request.get("logprobs") and piece.new_tokens):
                continue
            yield _chunk(exchange, asked, piece, loaded_s, {"message": message})


def _tool_step(exchange: Exchange, calls: ToolParser, message: dict[str, Any], piece: Piece) -> bool:
    """Put the tool calls found into `message`. False if there is nothing to send yet."""
    found, content = calls.add(message["content"])
    if content:
        message["content"] = content
    elif found:
        message["content"] = ""
        ids = [f"call_{_base36(exchange)}" for _ in found]
        message["tool_calls"] = [{"id": number, "function": call} for number, call in zip(ids, found, strict=True)]
    elif not message.get("thinking"):
        message["content"] = calls.rest() if piece.done else ""
        return bool(piece.done)
    else:
        message["content"] = ""
    return True


def _base36(exchange: Exchange) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(exchange.host.rng.choice(letters) for _ in range(8))


async def generate_chunks(
    exchange: Exchange, asked: Asked, completion: Completion, lease: Lease, *, has_images: bool
) -> AsyncIterator[dict[str, Any]]:
    thoughts = asked.parser(completion.model, completion.prompt)
    loaded_s = asyncio.get_running_loop().time()
    said = ""
    async with aclosing(_pieces(completion, lease, has_images=has_images)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            said += piece.text
            body: dict[str, Any] = {"response": piece.text}
            if thoughts is not None:
                thinking, body["response"] = thoughts.add(piece.text)
                if thinking:
                    body["thinking"] = thinking
            chunk = _chunk(exchange, asked, piece, loaded_s, body)
            if piece.done and not asked.request.get("raw"):
                chunk = _with_context(chunk, tokens.encode(completion.model.weights, completion.prompt + said))
            if "logprobs" in chunk:
                chunk["logprobs"] = chunk.pop("logprobs")
            yield chunk


def _with_context(chunk: dict[str, Any], context: list[int]) -> dict[str, Any]:
    """Insert `context` in front of the durations and counts, where Ollama has it."""
    made: dict[str, Any] = {}
    for key, value in chunk.items():
        if key == "total_duration":
            made["context"] = context
        made[key] = value
    return made


def _chunk(exchange: Exchange, asked: Asked, piece: Piece, loaded_s: float, body: dict[str, Any]) -> dict[str, Any]:
    chunk: dict[str, Any] = {"model": asked.request.get("model") or "", "created_at": exchange.host.stamp(), **body}
    chunk["done"] = bool(piece.done)
    if piece.done:
        chunk["done_reason"] = piece.done
    if asked.request.get("logprobs") and piece.new_tokens:
        top = asked.request.get("top_logprobs") or 0
        chunk["logprobs"] = [_logprob(text, top) for text in piece.new_tokens]
    if piece.done:
        now_s = asyncio.get_running_loop().time()
        chunk["total_duration"] = max(1, int((now_s - exchange.started_s) * 1e9))
        chunk["load_duration"] = max(1, int((loaded_s - exchange.started_s) * 1e9))
        chunk["prompt_eval_count"] = piece.prompt_count
        chunk["prompt_eval_duration"] = max(1000, int(piece.prompt_s * 1e9))
        chunk["eval_count"] = piece.count
        chunk["eval_duration"] = int(piece.duration_s * 1e9)
    return chunk


def _logprob(text: str, top: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"token": text, "logprob": 0, "bytes": list(text.encode())}
    if top:
        others = [
            {"token": chr(97 + number), "logprob": -40 - number, "bytes": [97 + number]} for number in range(top - 1)
        ]
        entry["top_logprobs"] = [dict(entry), *others]
    return entry
