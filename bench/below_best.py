"""Answers from a smaller variant than the best, counted apart from the router: from the log of a run on real servers.

usage: bench/below_best.py --log router.log --asked e2e.json --config chains.yaml [--cards 24564 12288]
       [--foreign 40:10000 60:0]
`--log` is the router's log. `--asked` is a JSON list with a row per request: number, requested model, num_ctx or null,
route (chat, generate or v1), status, model that answered, seconds. `--config` is the router's configuration with the
chains. `--cards` are the sizes of the cards in MiB, as Ollama was given them; `--foreign` says what other programs held
of the first card, in MiB, and from the begin of which request on. The best variant is the first of the chain that would
have run whole on the GPU, every resident evicted, beside the most memory that other programs held from the request to
the begin of service (router/planning/fitting.py, which shares nothing with the router's decisions). This count stands
beside the router's own, which is by the reasons in its log. Exit code 1 if an answer is below the best and the router
does not say so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.machine.spec import CardSpec
from router.config import load_config
from router.core.ollama.names import key_of
from router.core.units import MIB
from router.planning.fitting import first_fitting

HELD_BACK = "held back"
NEAR_S = 1.0
"""A client and the router measure the same request; their figures differ by less than this."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the client knows it."""

    model: str
    num_ctx: int | None
    served: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Logged:
    """A request as the router's log has it; times are of the wall clock."""

    model: str
    asked_s: float
    began_s: float
    took_s: float
    reason: str


def asked_in(rows: Iterable[Sequence[Any]]) -> list[Asked]:
    """Return the requests that were answered; those to `/v1` cannot name a context."""
    found = []
    for _, model, num_ctx, route, status, served, took_s, *_ in rows:
        if status == 200:
            found.append(Asked(model, None if route == "v1" else num_ctx, served, took_s))
    return found


def logged_in(lines: Iterable[str]) -> Iterator[Logged]:
    """Yield the requests in a router's log, by their ends."""
    for line in lines:
        if '"request"' not in line:
            continue
        row = json.loads(line)
        if row.get("msg") == "request" and row.get("status") == 200 and row.get("requested"):
            took_s, queue_s = row["duration_ms"] / 1000, row["queue_ms"] / 1000
            asked_s = datetime.fromisoformat(row["ts"]).timestamp() - took_s
            yield Logged(row["requested"], asked_s, asked_s + queue_s, took_s, row["reason"])


def pairs(asked: Iterable[Asked], logged: Iterable[Logged]) -> list[tuple[Asked, Logged]]:
    """Return both sides of each request; they are in the order of their ends, but for those that end together."""
    left, found = list(logged), []
    for one in asked:
        alike = (other for other in left if other.model == one.model and abs(other.took_s - one.took_s) < NEAR_S)
        other = next(alike, None)
        if other is not None:
            left.remove(other)
            found.append((one, other))
    return found


def most_foreign_mib(one: Logged, begins_s: Sequence[float], foreign: Mapping[int, int]) -> int:
    """Return the most that other programs held while a request waited; `begins_s` are those of all requests, sorted."""
    changes = sorted((begins_s[number] if number < len(begins_s) else float("inf"), mib)
                     for number, mib in foreign.items())  # fmt: skip
    before = [mib for at_s, mib in changes if at_s <= one.asked_s]
    return max([*before[-1:], *(mib for at_s, mib in changes if one.asked_s < at_s <= one.began_s)], default=0)


def below_best(
    found: Sequence[tuple[Asked, Logged]],
    chains: Mapping[str, tuple[str, ...]],
    cards_mib: Sequence[int],
    foreign: Mapping[int, int],
) -> list[tuple[Asked, Logged, str]]:
    """Return the requests that a smaller variant than the best has answered, with the best."""
    cards = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(cards_mib))
    begins_s = sorted(logged.asked_s for _, logged in found)
    result = []
    for asked, logged in found:
        chain = chains.get(key_of(asked.model), (asked.model,))
        held = (most_foreign_mib(logged, begins_s, foreign) * MIB, *(0 for _ in cards[1:]))
        best = first_fitting(chain, 16, asked.num_ctx, cards, held)
        names = [key_of(tag) for tag in chain]
        if best is not None and names.index(key_of(asked.served)) > names.index(key_of(best)):
            result.append((asked, logged, best))
    return result


def main() -> int:
    """Print both counts, and each answer below the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--asked", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--cards", type=int, nargs="+", default=[24564])
    parser.add_argument("--foreign", nargs="*", default=[], metavar="REQUEST:MIB")
    given = parser.parse_args()
    foreign = {int(number): int(mib) for number, _, mib in (text.partition(":") for text in given.foreign)}
    asked = asked_in(json.loads(given.asked.read_text()))
    found = pairs(asked, logged_in(given.log.read_text().splitlines()))
    chains = {key_of(name): tuple(variant.model for variant in chain.variants)
              for name, chain in load_config(given.config, env={}).chains.items()}  # fmt: skip
    below = below_best(found, chains, given.cards, foreign)
    said = [logged for _, logged in found if HELD_BACK in logged.reason]
    unsaid = [each for each in below if HELD_BACK not in each[1].reason]
    print(f"{len(asked)} answers, {len(found)} of them in the log")
    print(f"below best: {len(below)} counted, {len(said)} by the router; counted and not said: {len(unsaid)}")
    for one, logged, best in below:
        print(f"  {one.model} at {one.num_ctx or 'any'}: {one.served}, best {best}; {logged.reason}")
    return 1 if unsaid else 0


if __name__ == "__main__":
    sys.exit(main())
