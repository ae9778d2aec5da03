"""Teams that compete for one card: what a flood of one costs another one, and who gets how much.

usage: bench/teams.py [--seconds 600] [--slots 1] [--without-teams]
On a virtual clock, a card of 24 GB, answers of two seconds. Each case runs against the simulated Ollama alone, and
through the router with a file and a key for each team. The bounds follow from the rules of the fair line
(router/core/teams/fairness.py) and from what was measured in the same run: X is the longest switch, D = max(5, 3 X) the
window, U the longest single charge. Exit code 1 if one does not hold.

  alone          one request every 10 s
  same model     the same beside a flood of 200 clients on the same model: p99 at most twice that of alone
  other model    beside a flood on another model that does not fit beside it: p99 at most D + X + drain + 2 x service
  both wait      50 clients each on two models: seconds of the card at most 2 (D + U) apart
  weights 3 : 1  the same with shares of 3 and 1: 2.7 to 3.3 times as much of the card
  two cards      three teams on three models, of which two cards hold two: each has half of an equal part at least

The seconds of the card ("card s") are those of service by its slots, and those of the switches that the team has
caused: who has the smaller share pays for as many switches as the other one.

With --without-teams all are one team to the router.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.core.ollama.options import ServerSettings
from router.planning.crowds import Crowd, Got, got, play_crowds, write_teams
from router.planning.stage import stage, table
from router.telemetry.events import Event, Switched

ONE, OTHER, THIRD = "qwen3:14b", "llama3.1:8b-instruct-fp16", "qwen3:32b"
SPEEDS = Speeds(load_mib_per_s=6000, tokens_per_s=60, cpu_tokens_per_s=4)
SERVICE_S = 120 / 60
DRAIN_S = 2 * SERVICE_S  # of the request that a runner works on and of the one behind it (`queue.ahead`)
# No two of them fit beside each other on one card. Nobody is refused: a wait counts in full.
ROUTER = {"defaults.auto_chains": "off", "queue.wait_s": 3600, "timeouts.connect_s": 60}

RARE = Crowd("rare", ONE, every_s=10)
CASES: Mapping[str, tuple[Crowd, ...]] = {
    "alone": (RARE,),
    "same model": (RARE, Crowd("flood", ONE, clients=200)),
    "other model": (RARE, Crowd("flood", OTHER, clients=200)),
    "both wait": (Crowd("first", ONE, clients=50), Crowd("second", OTHER, clients=50)),
    "weights 3 : 1": (Crowd("heavy", ONE, clients=50, share=3), Crowd("light", OTHER, clients=50)),
    "two cards": (
        Crowd("first", ONE, clients=30),
        Crowd("second", OTHER, clients=30),
        Crowd("third", THIRD, clients=30),
    ),
}
CARDS = {"two cards": 2}


@dataclass
class Switches:
    """A hook that keeps how long each switch took, and for which team it was."""

    seconds: list[float] = field(default_factory=list)
    by_team: Counter[str] = field(default_factory=Counter)

    def on(self, event: Event) -> None:
        """Note a switch that has ended."""
        if isinstance(event, Switched) and event.duration_s is not None:
            self.seconds.append(event.duration_s)
            self.by_team[event.team] += event.duration_s


@dataclass(frozen=True)
class Ran:
    """One case: what each team got, its seconds of the card, the loads, and the longest switch."""

    teams: Mapping[str, Got]
    card_s: Mapping[str, float]
    loads: int
    switch_s: float


async def run(
    crowds: Sequence[Crowd], slots: int, seconds: float, router: Mapping[str, object] | None, cards: int = 1
) -> Ran:
    """Play one case, through the router unless `router` is None."""
    machine = Machine(cards=tuple(CardSpec(name=f"CUDA{index}") for index in range(cards)), speeds=SPEEDS)
    models = tuple(dict.fromkeys((ONE, OTHER, *(crowd.model for crowd in crowds))))
    config = SimConfig(machine=machine, models=models, settings=ServerSettings(num_parallel=slots))
    switches = Switches()
    async with stage(config, router, hooks=[switches]) as one:
        replies = await play_crowds(one, crowds, seconds)
        if one.router is not None:
            one.router.router.telemetry.flush()
        loads, teams = len(one.loads), {team: got(found) for team, found in replies.items()}
        card_s = {team: found.served_s / slots + switches.by_team[team] for team, found in teams.items()}
        return Ran(teams, card_s, loads, max(switches.seconds, default=0.0))


def judged(name: str, ran: Ran, alone: Ran) -> tuple[str, bool]:
    """Return the bound of a case in words with its figures, and whether it holds."""
    x_s, first, (card_s, *others_s) = ran.switch_s, next(iter(ran.teams.values())), ran.card_s.values()
    window_s, charge_s = max(5.0, 3 * x_s), max(x_s, SERVICE_S)
    if name == "same model":
        most_s = 2 * alone.teams["rare"].p99_s
        return f"p99 {first.p99_s:.2f} <= 2 x {most_s / 2:.2f}", first.p99_s <= most_s
    if name == "other model":
        most_s = window_s + x_s + DRAIN_S + 2 * SERVICE_S
        return f"p99 {first.p99_s:.1f} <= {most_s:.1f} (D {window_s:.1f}, X {x_s:.1f})", first.p99_s <= most_s
    if name == "both wait":
        apart_s = abs(card_s - others_s[0])
        most_s = 2 * (window_s + charge_s)
        return f"{apart_s:.1f} apart <= {most_s:.1f} (D {window_s:.1f}, U {charge_s:.1f})", apart_s <= most_s
    if name == "two cards":
        had_s = ran.card_s.values()
        least_s = sum(had_s) / len(had_s) / 2
        return f"{min(had_s):.1f} >= {least_s:.1f}", min(had_s) >= least_s
    if name == "weights 3 : 1":
        ratio = card_s / max(1.0, others_s[0])
        return f"2.7 <= {ratio:.2f} <= 3.3", 2.7 <= ratio <= 3.3
    return "", True


def main() -> int:
    """Print all cases, of Ollama alone and of the router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--without-teams", action="store_true")
    asked = parser.parse_args()
    titles = (
        "case",
        "through",
        "team",
        "requests",
        "failed",
        "served",
        "served s",
        "card s",
        "p50 s",
        "p99 s",
        "loads",
        "bound",
    )
    rows: list[tuple[object, ...]] = [titles]
    alone: Ran | None = None
    is_good = True
    for name, crowds in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            teams = {} if asked.without_teams else {"teams": write_teams(Path(folder), crowds)}
            slots = {"backends.local.server.num_parallel": asked.slots}
            cards = CARDS.get(name, 1)
            direct = run_virtual(run(crowds, asked.slots, asked.seconds, None, cards))
            routed = run_virtual(run(crowds, asked.slots, asked.seconds, {**ROUTER, **slots, **teams}, cards))
        alone = alone or routed
        text, holds = judged(name, routed, alone)
        is_good &= holds and not any(one.failed for one in routed.teams.values())
        for through, ran, bound in (("Ollama", direct, ""), ("router", routed, text + ("" if holds else "  FAILS"))):
            for at, (team, one) in enumerate(ran.teams.items()):
                figures = one.requests, one.failed, one.served, round(one.served_s), round(ran.card_s[team])
                times = round(one.p50_s, 1), round(one.p99_s, 1)
                rows.append((name, through, team, *figures, *times, ran.loads, "" if at else bound))
    print(table(rows))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
