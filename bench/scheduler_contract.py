"""Agreement of the simulated scheduler with recordings of a real Ollama's: a table, and all differences.

    python bench/scheduler_contract.py [--data DIR] [--mutate] [--pack OUT]

`--mutate` breaks one rule at a time and counts the sequential recordings that then differ: a rule that can be broken
unnoticed is not tested. `--pack OUT` writes the compact copy of DIR that the tests use.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ollama_simulator.machine.arithmetic import Arithmetic, RunnerPlan
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.recorded.recordings import pack, read_models, read_scenarios
from ollama_simulator.recorded.replay import Agreement, replay
from ollama_simulator.recorded.standin import IMAGE_GRAPH_BYTES, StandIn
from ollama_simulator.scheduler import discovery, engine, loading
from router.core.ollama import bookkeeping, options, scheduler

OURS = Path(__file__).parent.parent / "tests" / "data" / "scheduler"
WITHIN_S = 0.5


def replay_all(folder: Path, arithmetic: Arithmetic) -> list[Agreement]:
    models = read_models(folder)
    return [replay(scenario, models, arithmetic) for scenario in read_scenarios(folder)]


def print_table(title: str, found: list[Agreement]) -> None:
    for kind, wanted in (("sequential", True), ("concurrency, failures", False)):
        rows = [one for one in found if one.is_sequential == wanted]
        agree, first = sum(one.agrees for one in rows), sum(one.agrees and one.seeds == 1 for one in rows)
        times = [pair for one in rows for pair in one.times_s]
        close = sum(abs(recorded - ours) <= WITHIN_S for recorded, ours in times)
        share = 100 * agree / max(1, len(rows))
        print(
            f"{title:24} {kind:22} {agree:4} of {len(rows):4} ({share:5.1f} %), {first:4} at the first draw,"
            f" {close:4} of {len(times):4} request times within {WITHIN_S} s"
        )
    for one in found:
        if not one.agrees:
            print(f"    {one.scenario}: {'; '.join(one.differences)}")


# ---------------------------------------------------------------- rules, broken one at a time


@contextmanager
def _patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    patches = [patch.object(where, name, value) for where, name, value in changes]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def _ninety_percent() -> Any:
    """Use 90 % of available memory instead of 80 %, in placement, batch and pre-flight."""
    keep = scheduler.preflight

    def preflight(facts: Any, launch: Any, gpus: Any, free: Any, settings: Any, **rest: Any) -> Any:
        return keep(facts, launch, gpus, tuple(left * 9 // 8 for left in free), settings, **rest)

    return _patched((loading, "preflight", preflight))


def _live_instead_of_frozen() -> Any:
    return _patched((discovery, "frozen_free", lambda gpus, _residents: (None,) * len(gpus)))


def _both_caches_booked() -> Any:
    def booked(plan: RunnerPlan, devices: int) -> tuple[int, ...]:
        return tuple(sum(b.logged_bytes for b in plan.buffers if b.device == device) for device in range(devices))

    return _patched((RunnerPlan, "booked", booked))


def _oldest_victim() -> Any:
    return _patched((engine, "victim", lambda residents: residents[0]))


def _right_card_names() -> Any:
    def booked_bytes(self: bookkeeping.OllamaResident, card: int) -> int:
        return self.buffers_bytes[self.cards.index(card)] if card in self.cards else 0

    return _patched((bookkeeping.OllamaResident, "booked_bytes", booked_bytes))


def _first_card() -> Any:
    def placement(free: Any, predicted: int, launch: Any, settings: Any) -> Any:
        cards, is_single = keep(free, predicted, launch, settings)
        if not is_single or launch.main_gpu is not None:
            return cards, is_single
        return (next(card for card, left in enumerate(free) if predicted <= left * 80 // 100),), True

    keep = scheduler.placement
    return _patched((scheduler, "placement", placement))


def _tier_48_gib() -> Any:
    gib = 1 << 30
    return _patched((options, "TIERS", ((48 * gib, 262144), (23 * gib, 32768), (0, 4096))))


def _no_surcharge() -> Any:
    return _patched((scheduler, "SURCHARGES", ((1024, 768 << 20),)))


MUTATIONS = {
    "80 % becomes 90 %": _ninety_percent,
    "live instead of frozen free memory": _live_instead_of_frozen,
    "both KV buffers counted": _both_caches_booked,
    "victim = oldest": _oldest_victim,
    "correct card names": _right_card_names,
    "first instead of emptiest card": _first_card,
    "47 GiB tier becomes 48": _tier_48_gib,
    "no 2 GiB surcharge": _no_surcharge,
}


def print_mutations(folder: Path) -> None:
    for name, broken in MUTATIONS.items():
        with broken():
            found = [one for one in replay_all(folder, StandIn()) if one.is_sequential]
        print(f"{name:40} {sum(not one.agrees for one in found):4} of {len(found)} sequential recordings differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=OURS)
    parser.add_argument("--mutate", action="store_true")
    parser.add_argument("--pack", type=Path, metavar="OUT")
    asked = parser.parse_args()
    if asked.pack:
        asked.pack.write_bytes(pack(asked.data))
        return
    as_recorded = FootprintArithmetic(image_bytes=IMAGE_GRAPH_BYTES, forgets_num_gpu=True)
    print_table("stand-in's arithmetic", replay_all(asked.data, StandIn()))
    print_table("footprint, as recorded", replay_all(asked.data, as_recorded))
    print_table("footprint, nothing set", replay_all(asked.data, FootprintArithmetic()))
    if asked.mutate:
        print_mutations(asked.data)


if __name__ == "__main__":
    main()
