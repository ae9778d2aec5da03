"""What loads say about the cards: where their memory went, which numbers Ollama refuses, whether the probe sees any.

| what happened                                                  | what follows                                       |
| -------------------------------------------------------------- | -------------------------------------------------- |
| memory went to another card than the one that was meant        | the two exchange their numbers                     |
| Ollama refused `main_gpu`, of which it has only so many cards  | the rest is left alone                             |
| a runner died without a word on a card that never had a model  | the same, unless it dies on Ollama's own cards too |
| two loads over several cards spilled, and used some not at all | those are left alone                               |
| two loads in a row moved nothing, and ps says they are whole   | the probe is not believed: verify mode             |

`verification.py` tells the last from a load into main memory that ps calls whole: then the probe is right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence

from router.adapters.ollama import PsRow
from router.backend.card_identity import CardNumbers, Numbers
from router.backend.verification import IDLE_BYTES, SEEN_SHARE, most_bytes, taken_between
from router.core.decision.switching import Plan
from router.core.ollama.runner import Gpu
from router.telemetry import Notified, Telemetry

BLIND_AFTER = 2
"""Loads in a row that the probe has not seen, until it is not believed any more."""

STRAY_SHARE = 0.1
"""A load has not gone to a card that lost less than this share of ps' figure."""

IDLE_AFTER = 2
"""Loads that spilled and have left a card of their plan idle, until it is left alone."""

_REFUSED = re.compile(r"invalid value for main_gpu: \d+(?: \(available devices: (\d+)\))?")
_DIED = re.compile(r"process has terminated(: exit status \d+)?:?\s*\Z")
MOST_GUESSES = 3
"""Refusals that do not say how many cards there are, until only one is used."""


class LoadCheck:
    """See the module. `numbers` is corrected; the operator is told once of each finding."""

    def __init__(self, numbers: CardNumbers, telemetry: Telemetry, key: str) -> None:
        self._numbers = numbers
        self._telemetry = telemetry
        self._key = key  # of the configuration that says which cards are Ollama's
        self._notes: dict[str, str] = {}
        self._told: set[str] = set()
        self._unseen = 0
        self._refusals = 0
        self._idle: Counter[str] = Counter()  # UUIDs of cards → loads that spilled and left them idle
        self._used: set[str] = set()  # UUIDs of cards that have carried a model
        self._proven: set[str] = set()  # of these, where the number of the card was asked for
        self._suspect: tuple[str, Numbers] | None = None  # weights whose runner died, and the numbers before
        self._culprits: set[str] = set()

    @property
    def is_blind(self) -> bool:
        """True if the probe has not seen the last two loads: what it reads are not Ollama's cards, or not now."""
        return self._unseen >= BLIND_AFTER

    @property
    def unproven(self) -> frozenset[int]:
        """The numbers that no load has proven, unless it is only one or the configuration gives the order."""
        open_numbers = (number for uuid, number in self._numbers.by_uuid().items() if uuid not in self._proven)
        found = frozenset(number for number in open_numbers if not self._numbers.is_hidden(number))
        return frozenset() if len(found) < 2 or self._numbers.is_configured else found

    def notes(self) -> list[str]:
        """Return the findings in force, as sentences for the operator."""
        return list(self._notes.values())

    def forget(self) -> None:
        """Forget what was found: Ollama has restarted, or has other cards."""
        self._notes.clear()
        self._used.clear()
        self._proven.clear()
        self._culprits.clear()
        self._unseen = self._refusals = 0
        self._idle.clear()
        self._suspect = None

    def note_gone(self, gpus: Sequence[Gpu]) -> None:
        """Note which cards the probe does not list any more."""
        gone = ", ".join(f"{card.name} ({card.uuid})" for card in self._numbers.gone(gpus))
        if gone:
            self._tell("gone", f"the probe does not list {gone} any more: no model is loaded there")
        else:
            self._take_back("gone")

    # --- a load that worked ------------------------------------------------------------------------------------

    def compare(self, plan: Plan, row: PsRow, before: tuple[Gpu, ...], after: tuple[Gpu, ...]) -> bool:
        """Compare two readings of the probe around a load; return True if cards have other numbers now."""
        self._suspect = None
        uuids, numbers = {gpu.index: gpu.uuid for gpu in before}, self._numbers.by_uuid()
        lost = {uuids[index]: count for index, count in taken_between(before, after).items()}
        taken = {numbers[uuid]: count for uuid, count in lost.items() if uuid in numbers}
        found = max(taken, key=lambda number: taken[number], default=None)
        if found is None or sum(taken.values()) < max(1, row.size_vram_bytes * SEEN_SHARE):
            return False
        self._note_seen()
        if self._note_idle(plan, row, lost):
            return True
        if not _is_of(plan, row, taken[found]):
            return False
        uuid = next(uuid for uuid, number in numbers.items() if number == found)
        self._used.add(uuid)
        meant = self._meant(plan, before, found)
        if meant is None or (meant != found and taken.get(meant, 0) >= row.size_vram_bytes * STRAY_SHARE):
            return False
        if plan.options.main_gpu is not None:
            self._proven.add(uuid)
        if meant == found:
            return False
        self._numbers.exchange(meant, found)
        self._tell_order()
        self._tell_hidden()
        return True

    def _note_idle(self, plan: Plan, row: PsRow, lost: Mapping[str, int]) -> bool:
        """Count the cards of its plan that a spilled load has not used; return True if they are left alone now."""
        numbers = self._numbers.by_uuid()
        planned = [uuid for uuid, number in numbers.items() if number in plan.cards]
        idle = {uuid for uuid in planned if lost.get(uuid, 0) < IDLE_BYTES}
        for uuid in set(planned) - idle:
            self._idle.pop(uuid, None)
        if len(planned) < 2 or row.size_vram_bytes >= row.size_bytes or idle & self._proven:
            return False
        self._idle.update(idle)
        if not idle or any(self._idle[uuid] < IDLE_AFTER for uuid in idle):
            return False
        seen = len(numbers) - len(self._numbers.hidden) - len(idle)
        self._limit(seen, self._used | (numbers.keys() - idle))
        return True

    def _meant(self, plan: Plan, before: tuple[Gpu, ...], found: int) -> int | None:
        """Return the number that a load should have gone to, None if Ollama was free to choose.

        Where it has chosen a card that it was taken not to see, that is any number which no load has proven yet.
        """
        cards = self._numbers.numbered(before) or ()
        if len(plan.cards) == 1 and (plan.options.main_gpu is not None or len(cards) == 1):
            return plan.cards[0]
        if not self._numbers.is_hidden(found):
            return None
        free = [gpu for gpu in cards if gpu.uuid not in self._proven]
        return min(free, key=lambda gpu: gpu.uuid in self._used).index if free else None

    def note_unseen(self, cards: Sequence[Gpu]) -> None:
        """Count a load that ps calls whole, and of which the probe has seen nothing."""
        self._unseen += 1
        if self.is_blind:
            names = ", ".join(sorted({gpu.name for gpu in cards}))
            self._tell(
                "blind",
                f"the probe has not seen the last {BLIND_AFTER} loads, which Ollama says are on the GPU: it reads "
                f"other cards than Ollama's ({names}), or old figures. Free memory counts as unknown, and each load "
                f"is verified by Ollama's own figures. Check the probe and {self._key}",
            )

    def _note_seen(self) -> None:
        self._unseen = 0
        if self._take_back("blind"):
            self._telemetry.emit(Notified("the probe sees loads again: free memory is known", level="info"))

    # --- a load that failed ------------------------------------------------------------------------------------

    def is_refusal(self, plan: Plan, weights: str, error: str, cards: Sequence[Gpu]) -> bool:
        """Return True if a load failed because Ollama has no card of the plan's number: decide again without it."""
        pin = plan.options.main_gpu
        refused = _REFUSED.search(error)
        if pin is not None and refused is not None:
            self._refusals += 1
            said = int(refused[1][:4]) if refused[1] else pin if self._refusals < MOST_GUESSES else self._fewest()
            self._limit(min(max(1, said), max(1, pin)))
            return True
        is_unproven = any(gpu.index == pin and gpu.uuid not in self._proven for gpu in cards)
        is_open = bool(pin) and is_unproven and _DIED.search(error) is not None and weights not in self._culprits
        suspect = self._suspect[1] if self._suspect is not None and self._suspect[0] == weights else None
        if is_open and pin is not None:
            before = self._limit(pin if suspect is None else min(pin, self._fewest()))
            self._suspect = weights, suspect or before
        elif suspect is not None:  # it dies on a card that Ollama sees, too: not the card's fault
            self._numbers.restore(suspect)
            self._take_back("hidden")
            self._culprits.add(weights)
            self._suspect = None
        return is_open

    def _fewest(self) -> int:
        """Return how many cards Ollama sees at least: up to the last that has proved its number."""
        numbers = (number for uuid, number in self._numbers.by_uuid().items() if uuid in self._proven)
        return max(numbers, default=0) + 1

    def _limit(self, count: int, used: Container[str] | None = None) -> Numbers:
        before = self._numbers.limit(count, self._proven, self._used if used is None else used)
        self._tell_hidden()
        return before

    def _tell_hidden(self) -> None:
        hidden = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in self._numbers.hidden)
        if hidden:
            text = f"Ollama does not see all cards of the probe: {hidden} left alone. Set {self._key} to those it sees"
            self._tell("hidden", text)

    def _tell_order(self) -> None:
        cards = sorted(self._numbers.by_uuid().items(), key=lambda card: card[1])
        order = ", ".join(f'"{uuid}"' for uuid, _ in cards[: len(cards) - len(self._numbers.hidden)])
        self._tell("order", f"Ollama numbers its cards otherwise than the probe. Its order: {self._key}: [{order}]")

    def _take_back(self, kind: str) -> bool:
        """Drop a finding, so that it is reported again if it returns; return True if it was in force."""
        text = self._notes.pop(kind, None)
        self._told.discard(text or "")
        return text is not None

    def _tell(self, kind: str, text: str) -> None:
        self._notes[kind] = text
        if text not in self._told:
            self._told.add(text)
            self._telemetry.emit(Notified(text, level="warning"))


def _is_of(plan: Plan, row: PsRow, taken_bytes: int) -> bool:
    """Return True if a card lost as much as the load, and not much more: others take memory too."""
    return row.size_vram_bytes * SEEN_SHARE <= taken_bytes <= most_bytes(plan, row)
