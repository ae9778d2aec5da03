"""Replay of a scheduler recording against the simulated scheduler, in virtual time, with the differences as the result.

Compared after each step: statuses, resident models, their context, full or partial, size_vram (± 16 MiB). Times are not
compared. A model marked for unloading (expires now) may be listed or gone, as a race of milliseconds decides in the
recording. Ollama's random choices are drawn again, up to `DRAWS` times, until a run agrees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.arithmetic import Arithmetic, SimModel
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.spec import Machine
from ollama_simulator.recorded.scenario import RecordedClient, is_sequential, settings_of, visible_cards
from ollama_simulator.scheduler.engine import Engine
from router.core.units import MIB

DRAWS = 100
SIZE_SLACK_BYTES = 16 * MIB
SETTLE_S = 0.006
"""Time from a step's end to the read of ps: the recorder's own round trip."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of a replay. `seeds` is the number of draws; `differences` and `times_s` are those of the last one.

    `times_s` has the duration of every request in the recording and in the replay.
    """

    scenario: str
    is_sequential: bool
    seeds: int
    differences: tuple[str, ...]
    times_s: tuple[tuple[float, float], ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether there is no difference."""
        return not self.differences


def replay(
    scenario: Mapping[str, Any], models: Mapping[str, SimModel], arithmetic: Arithmetic, draws: int = DRAWS
) -> Agreement:
    """Replay one scenario, with new draws until it agrees or `draws` are used up."""
    found: tuple[str, ...] = ()
    times: list[tuple[float, float]] = []
    seeds = 0
    while seeds < draws:
        times.clear()
        found = tuple(run_virtual(_run(scenario, models, arithmetic, seeds, times)))
        seeds += 1
        if not found:
            break
    return Agreement(scenario["id"], is_sequential(scenario), seeds, found, tuple(times))


async def _run(
    scenario: Mapping[str, Any],
    models: Mapping[str, SimModel],
    arithmetic: Arithmetic,
    seed: int,
    times: list[tuple[float, float]],
) -> list[str]:
    visible = visible_cards(scenario)
    devices = [scenario["gpus"][card] for card in visible]
    cards = Cards(Machine.of_json({**scenario["vgpu"], "devices": devices}))
    async with Engine(cards, settings_of(scenario["env"]), arithmetic=arithmetic, seed=seed) as engine:
        client = RecordedClient(engine, models, times, visible)
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


async def _step(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    """Play one step and return the differences in statuses."""
    for action, play in _ACTIONS.items():
        if action in step:
            return await play(client, step)
    return []


async def _do(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    if name := step.get("background"):
        client.tasks[name] = client.begin(step["do"])
        await asyncio.sleep(float(step.get("settle_s", 0)))
        return []
    return client.compare("answer", await client.send(step["do"]), step.get("result") or {})


async def _burst(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    tasks = []
    for do in step["burst"]:
        tasks.append(client.begin(do))
        await asyncio.sleep(float(step.get("spacing_s", 0.02)))
    answers = await asyncio.gather(*tasks)
    pairs = zip(answers, _as_list(step.get("results")), strict=False)
    return [text for index, pair in enumerate(pairs) for text in client.compare(f"request {index}", *pair)]


async def _join(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    found = []
    results = step.get("results") or {}
    for name in step["join"]:
        answered = await client.tasks.pop(name)
        found += client.compare(name, answered, results.get(name, {}) if isinstance(results, Mapping) else {})
    return found


async def _cancel(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    names = step["cancel"] if isinstance(step["cancel"], list) else [step["cancel"]]
    for name in names:
        task = client.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return []


async def _sleep(_client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    await asyncio.sleep(float(step["sleep_s"]))
    return []


async def _watch(_client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    await asyncio.sleep(float(step["watch"]["for_s"]))
    return []


async def _foreign(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    for card, mib in step["set_foreign_mib"].items():
        if int(card) in client.cards:
            client.engine.cards.set_foreign(client.cards.index(int(card)), int(mib * MIB))
    return []


async def _fault(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    client.engine.cards.change(**step["set_vgpu"])
    return []


async def _kill(client: RecordedClient, step: Mapping[str, Any]) -> list[str]:
    client.engine.kill_runner(client.models[step["kill_runner"]])
    return []


_ACTIONS: dict[str, Callable[[RecordedClient, Mapping[str, Any]], Awaitable[list[str]]]] = {
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
