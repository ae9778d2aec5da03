"""A recorded scenario's settings, and its client, which sends requests directly to the engine."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ollama_simulator.machine.arithmetic import SimModel
from ollama_simulator.scheduler.engine import Engine, EngineError
from ollama_simulator.scheduler.lease import Lease
from router.core.go.durations import parse_duration_ns
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import MIB

_FORCED = re.compile(r"\[\[tokens=(\d+)\]\]")


def is_sequential(scenario: Mapping[str, Any]) -> bool:
    """Whether the rules alone determine the scenario: one request at a time, no injected failure, no late memory."""
    concurrent = {"background", "burst", "join", "cancel", "set_vgpu", "kill_runner"}
    has_late_memory = bool(scenario["vgpu"].get("free_lag_s"))
    prompts = (str(step.get("do", {}).get("body", {}).get("prompt", "")) for step in scenario["steps"])
    has_crash = any("[[crash]]" in prompt or "[[oom]]" in prompt for prompt in prompts)
    return not has_late_memory and not has_crash and not any(concurrent & step.keys() for step in scenario["steps"])


def settings_of(env: Mapping[str, str]) -> ServerSettings:
    """Return the settings in a recorded environment."""
    flash = {"1": "on", "true": "on", "0": "off", "false": "off"}.get(env.get("OLLAMA_FLASH_ATTENTION", ""), "auto")
    return ServerSettings(
        num_parallel=int(env.get("OLLAMA_NUM_PARALLEL", 1)),
        kv_type=env.get("OLLAMA_KV_CACHE_TYPE", "f16"),
        flash_attention=flash,  # type: ignore[arg-type]
        context_length=int(env.get("OLLAMA_CONTEXT_LENGTH", 0)) or None,
        gpu_overhead_bytes=int(env.get("OLLAMA_GPU_OVERHEAD", 0)),
        sched_spread=env.get("OLLAMA_SCHED_SPREAD", "") in ("1", "true"),
        max_loaded_models=int(env.get("OLLAMA_MAX_LOADED_MODELS", 0)),
        fit=env.get("LLAMA_ARG_FIT", "on") not in ("off", "0", "false"),
        fit_target_bytes=int(env.get("LLAMA_ARG_FIT_TARGET", "1024").split(",")[0]) * MIB,
        keep_alive_s=seconds(env.get("OLLAMA_KEEP_ALIVE", "5m")),
        load_timeout_s=seconds(env.get("OLLAMA_LOAD_TIMEOUT", "5m")) or math.inf,
        max_queue=int(env.get("OLLAMA_MAX_QUEUE", 512)),
    )


def seconds(value: float | str) -> float:
    """Return a keep_alive as Ollama reads it: seconds, or a Go duration such as ``10m``. Negative = infinite."""
    is_duration = isinstance(value, str) and not re.fullmatch(r"-?\d+", value)
    found = parse_duration_ns(str(value)) / 1e9 if is_duration else float(value)
    return math.inf if found < 0 else found


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a request."""

    status: int
    total_s: float


@dataclass(slots=True)
class RecordedClient:
    """Sends the requests of a recording to the engine, as the API does."""

    engine: Engine
    models: Mapping[str, SimModel]
    times: list[tuple[float, float]]
    cards: list[int] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[Answered]] = field(default_factory=dict)

    def begin(self, do: Mapping[str, Any]) -> asyncio.Task[Answered]:
        """Send a request in the background."""
        return asyncio.ensure_future(self.send(do))

    def compare(self, what: str, answered: Answered, result: Mapping[str, Any]) -> list[str]:
        """Return the differences between an answer and the recorded one. Adds both durations to `times`."""
        if "total_s" in result:
            self.times.append((float(result["total_s"]), answered.total_s))
        recorded = result.get("status")
        return [] if recorded in (None, answered.status) else [f"{what}: {recorded} recorded, {answered.status} here"]

    async def send(self, do: Mapping[str, Any]) -> Answered:
        """Send a request and wait for its end."""
        started = asyncio.get_running_loop().time()
        status = await self._status(do)
        return Answered(status, asyncio.get_running_loop().time() - started)

    async def _status(self, do: Mapping[str, Any]) -> int:
        body, path = do["body"], str(do["path"])
        model = self.models.get(body["model"])
        if model is None:
            return 404
        prompt = prompt_of(body)
        keep_alive_s = seconds(body["keep_alive"]) if "keep_alive" in body else None
        if not prompt and keep_alive_s == 0 and path in ("/api/generate", "/api/chat"):
            self.engine.expire(model)
            return 200
        try:
            async with await self.engine.acquire(model, options_of(body), keep_alive_s=keep_alive_s) as lease:
                if prompt and "embed" in path:
                    await asyncio.sleep(len(prompt.split()) / lease.prompt_tokens_per_s)
                elif prompt:
                    return await self._answer(lease, prompt, body)
        except EngineError as error:
            return error.status
        return 200

    async def _answer(self, lease: Lease, prompt: str, body: Mapping[str, Any]) -> int:
        """Generate the answer and return its status. A stream whose runner fails keeps its 200."""
        forced = _FORCED.search(prompt)
        wanted = int(forced[1]) if forced else self.engine.cards.machine.reply_tokens
        budget = (body.get("options") or {}).get("num_predict", -1)
        count = min(wanted, budget) if budget >= 0 else wanted
        async with lease.slot():
            await asyncio.sleep(len(prompt.split()) / lease.prompt_tokens_per_s)
            for done in range(count):
                await asyncio.sleep(1 / lease.tokens_per_s)
                if done == 3 and ("[[crash]]" in prompt or "[[oom]]" in prompt):
                    lease.crash(out_of_memory="[[oom]]" in prompt)
                try:
                    lease.check()
                except EngineError:
                    return 200 if body.get("stream", True) else 500
        return 200


def prompt_of(body: Mapping[str, Any]) -> str:
    """Return the text of a request in any of its fields."""
    said = [body.get("prompt"), body.get("input"), *(message.get("content") for message in body.get("messages", ()))]
    return " ".join(str(text) for text in said if text)


def options_of(body: Mapping[str, Any]) -> LoadOptions:
    """Return the runner options in a request."""
    sent = {**(body.get("options") or {}), **({"shift": body["shift"]} if "shift" in body else {})}
    return LoadOptions(**{key: sent[key] for key in LoadOptions.__struct_fields__ if key in sent})


def visible_cards(scenario: Mapping[str, Any]) -> list[int]:
    """Return the cards visible to the server, in its order. CUDA_VISIBLE_DEVICES ends at its first invalid entry."""
    count, named = len(scenario["gpus"]), scenario["env"].get("CUDA_VISIBLE_DEVICES", "").strip()
    if not named:
        return list(range(count))
    return [int(one) for one in takewhile(lambda one: one.isdigit() and int(one) < count, _words(named))]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]
