"""Replays a scheduler recording against the simulated scheduler, in virtual time, and says where they differ.

Compared after each step: statuses, which models are resident, their context, full or partial, size_vram (± 16 MiB).
Times are not compared. A model that is marked for unloading (expires now) may be listed or gone: that is a race of
milliseconds in the recording. What Ollama leaves to chance is drawn again, up to `DRAWS` times, until a run agrees.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.core.capacity import RunnerOptions
from router.core.ollama_options import ServerSettings
from router.simulator.arithmetic import MIB, Arithmetic, SimModel
from router.simulator.cards import Cards
from router.simulator.clock import run_virtual
from router.simulator.engine import Engine, EngineError
from router.simulator.lease import Lease
from router.simulator.machine import Machine

DRAWS = 40
SIZE_SLACK_BYTES = 16 * MIB
SETTLE_S = 0.006
"""Between a step's end and the look at ps: the recorder's own round trip."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FORCED = re.compile(r"\[\[tokens=(\d+)\]\]")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a replay found. `seeds` is how many draws it took; `differences` are those of the last one."""

    scenario: str
    is_sequential: bool
    seeds: int
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """No difference left."""
        return not self.differences


def replay(scenario: Mapping[str, Any], models: Mapping[str, SimModel], arithmetic: Arithmetic) -> Agreement:
    """Replay one scenario; drawn again until it agrees or the draws are used up."""
    found: tuple[str, ...] = ()
    for seed in range(DRAWS):
        found = tuple(run_virtual(_run(scenario, models, arithmetic, seed)))
        if not found:
            return Agreement(scenario["id"], is_sequential(scenario), seed + 1, ())
    return Agreement(scenario["id"], is_sequential(scenario), DRAWS, found)


def is_sequential(scenario: Mapping[str, Any]) -> bool:
    """One client, one request at a time, no injected failure and no late memory: what the rules alone decide."""
    concurrent = {"background", "burst", "join", "cancel", "set_vgpu", "kill_runner"}
    has_late_memory = bool(scenario["vgpu"].get("free_lag_s"))
    prompts = (str(step.get("do", {}).get("body", {}).get("prompt", "")) for step in scenario["steps"])
    has_crash = any("[[crash]]" in prompt or "[[oom]]" in prompt for prompt in prompts)
    return not has_late_memory and not has_crash and not any(concurrent & step.keys() for step in scenario["steps"])


def settings_of(env: Mapping[str, str]) -> ServerSettings:
    """The settings that a recorded environment stands for."""
    flash = {"1": "on", "true": "on", "0": "off", "false": "off"}.get(env.get("OLLAMA_FLASH_ATTENTION", ""), "auto")
    return ServerSettings(
        num_parallel=int(env.get("OLLAMA_NUM_PARALLEL", 1)),
        kv_type=env.get("OLLAMA_KV_CACHE_TYPE", "f16"),
        flash_attention=flash,  # type: ignore[arg-type]
        context_length=int(env.get("OLLAMA_CONTEXT_LENGTH", 0)) or None,
        gpu_overhead_bytes=int(env.get("OLLAMA_GPU_OVERHEAD", 0)),
        sched_spread=env.get("OLLAMA_SCHED_SPREAD", "") in ("1", "true"),
        max_loaded_models=int(env.get("OLLAMA_MAX_LOADED_MODELS", 0)),
        fit=env.get("LLAMA_ARG_FIT", "on") != "off",
        fit_target_bytes=int(env.get("LLAMA_ARG_FIT_TARGET", "1024").split(",")[0]) * MIB,
        keep_alive_s=seconds(env.get("OLLAMA_KEEP_ALIVE", "5m")),
        load_timeout_s=seconds(env.get("OLLAMA_LOAD_TIMEOUT", "5m")) or math.inf,
        max_queue=int(env.get("OLLAMA_MAX_QUEUE", 512)),
    )


def seconds(value: float | str) -> float:
    """A keep_alive as Ollama reads it: seconds, or a Go duration such as ``10m``; negative = for ever."""
    if isinstance(value, str) and not re.fullmatch(r"-?\d+", value):
        sign = -1 if value.startswith("-") else 1
        total = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", value))
        return math.inf if sign < 0 else total
    return math.inf if float(value) < 0 else float(value)


@dataclass(slots=True)
class _Client:
    """Plays the requests of a recording straight against the engine, as the API would."""

    engine: Engine
    models: Mapping[str, SimModel]
    tasks: dict[str, asyncio.Task[int]] = field(default_factory=dict)

    async def send(self, do: Mapping[str, Any]) -> int:
        """One request; its status."""
        body = do["body"]
        model = self.models.get(body["model"])
        if model is None:
            return 404
        prompt = str(body.get("prompt", "")) + " ".join(str(m.get("content", "")) for m in body.get("messages", ()))
        keep_alive_s = seconds(body["keep_alive"]) if "keep_alive" in body else None
        if not prompt and keep_alive_s == 0:
            self.engine.expire(model)
            return 200
        try:
            async with await self.engine.acquire(model, _options(body), keep_alive_s=keep_alive_s) as lease:
                if prompt:
                    return await self._answer(lease, prompt, body)
        except EngineError as error:
            return error.status
        return 200

    async def _answer(self, lease: Lease, prompt: str, body: Mapping[str, Any]) -> int:
        """The words, in time; a failure after the first one leaves the status at 200 while streaming."""
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


def _options(body: Mapping[str, Any]) -> RunnerOptions:
    sent = body.get("options") or {}
    return RunnerOptions(**{key: sent[key] for key in RunnerOptions.__dataclass_fields__ if key in sent})


async def _run(
    scenario: Mapping[str, Any], models: Mapping[str, SimModel], arithmetic: Arithmetic, seed: int
) -> list[str]:
    machine = Machine.of_json({**scenario["vgpu"], "devices": scenario["gpus"]})
    cards = Cards(machine)
    async with Engine(cards, settings_of(scenario["env"]), arithmetic=arithmetic, seed=seed) as engine:
        client = _Client(engine, models)
        await asyncio.sleep(0.1)
        for number, step in enumerate(scenario["steps"]):
            found = await _step(client, step)
            if "background" not in step:
                await asyncio.sleep(SETTLE_S)
            found += _compare_ps(step.get("ps_after") or [], engine)
            if found:
                return [f"step {number}: {text}" for text in found]
        for task in client.tasks.values():
            task.cancel()
        await asyncio.gather(*client.tasks.values(), return_exceptions=True)
    return []


async def _step(client: _Client, step: Mapping[str, Any]) -> list[str]:
    """Do one step; what differed in statuses."""
    for action, play in _ACTIONS.items():
        if action in step:
            return await play(client, step)
    return []


async def _do(client: _Client, step: Mapping[str, Any]) -> list[str]:
    if name := step.get("background"):
        client.tasks[name] = asyncio.ensure_future(client.send(step["do"]))
        await asyncio.sleep(float(step.get("settle_s", 0)))
        return []
    return _compare_status("answer", await client.send(step["do"]), step.get("result") or {})


async def _burst(client: _Client, step: Mapping[str, Any]) -> list[str]:
    tasks = []
    for do in step["burst"]:
        tasks.append(asyncio.ensure_future(client.send(do)))
        await asyncio.sleep(float(step.get("spacing_s", 0.02)))
    statuses = await asyncio.gather(*tasks)
    results = _as_list(step.get("results"))
    pairs = zip(statuses, results, strict=False)
    return [
        text for index, (status, result) in enumerate(pairs) for text in _compare_status(f"#{index}", status, result)
    ]


async def _join(client: _Client, step: Mapping[str, Any]) -> list[str]:
    found = []
    results = step.get("results") or {}
    for name in step["join"]:
        status = await client.tasks.pop(name)
        found += _compare_status(name, status, results.get(name, {}) if isinstance(results, Mapping) else {})
    return found


async def _cancel(client: _Client, step: Mapping[str, Any]) -> list[str]:
    names = step["cancel"] if isinstance(step["cancel"], list) else [step["cancel"]]
    for name in names:
        task = client.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return []


async def _sleep(client: _Client, step: Mapping[str, Any]) -> list[str]:
    await asyncio.sleep(float(step["sleep_s"]))
    return []


async def _watch(client: _Client, step: Mapping[str, Any]) -> list[str]:
    await asyncio.sleep(float(step["watch"]["for_s"]))
    return []


async def _foreign(client: _Client, step: Mapping[str, Any]) -> list[str]:
    for card, mib in step["set_foreign_mib"].items():
        client.engine.cards.set_foreign(int(card), int(mib * MIB))
    return []


async def _fault(client: _Client, step: Mapping[str, Any]) -> list[str]:
    client.engine.cards.change(**step["set_vgpu"])
    return []


async def _kill(client: _Client, step: Mapping[str, Any]) -> list[str]:
    client.engine.kill_runner(client.models[step["kill_runner"]])
    return []


_ACTIONS: dict[str, Callable[[_Client, Mapping[str, Any]], Awaitable[list[str]]]] = {
    "do": _do,
    "burst": _burst,
    "join": _join,
    "cancel": _cancel,
    "sleep_s": _sleep,
    "watch": _watch,
    "set_foreign_mib": _foreign,
    "set_vgpu": _fault,
    "kill_runner": _kill,
}


def _as_list(results: Any) -> Sequence[Mapping[str, Any]]:
    return list(results.values()) if isinstance(results, Mapping) else list(results or [])


def _compare_status(what: str, status: int, result: Mapping[str, Any]) -> list[str]:
    recorded = result.get("status")
    return [] if recorded in (None, status) else [f"{what}: status {recorded} recorded, {status} here"]


def _compare_ps(rows: Sequence[Mapping[str, Any]], engine: Engine) -> list[str]:
    now = asyncio.get_running_loop().time()
    ours = {row.model.name: row for row in engine.ps()}
    marked = {name for name, row in ours.items() if row.expires_at_s - now <= 0.05}
    marked |= {row["name"] for row in rows if row["expires_in_s"] != "never" and float(row["expires_in_s"]) <= 0.05}
    recorded = {row["name"]: row for row in rows}
    found = []
    if (theirs := recorded.keys() - marked) != (mine := ours.keys() - marked):
        found.append(f"resident {sorted(theirs)} recorded, {sorted(mine)} here")
    for name in recorded.keys() & ours.keys():
        a, b = recorded[name], ours[name]
        if a["context_length"] != b.context_length:
            found.append(f"{name}: context {a['context_length']} recorded, {b.context_length} here")
        if (a["size"] == a["size_vram"]) != (b.size_bytes == b.size_vram_bytes):
            found.append(f"{name}: full is {a['size'] == a['size_vram']} recorded")
        if abs(a["size_vram"] - b.size_vram_bytes) > SIZE_SLACK_BYTES:
            found.append(
                f"{name}: size_vram {a['size_vram'] / MIB:.0f} MiB recorded, {b.size_vram_bytes / MIB:.0f} here"
            )
    return found
