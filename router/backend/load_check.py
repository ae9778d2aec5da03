"""What loads say about the cards: where their memory went, which numbers Ollama refuses, whether the probe sees any.

| what happened                                                 | what follows                                       |
| ------------------------------------------------------------- | -------------------------------------------------- |
| memory went to another card than the one that was meant       | the two exchange their numbers                     |
| Ollama refused `main_gpu`, of which it has only so many cards | the rest is left alone                             |
| a runner died without a word on a card that never had a model | the same, unless the model dies elsewhere too      |
| two loads in a row moved nothing, and ps says they are whole  | the probe is not believed: verify mode             |

The last only of a probe that has never seen a load, and of a size that the formula confirms: an Ollama that has lost
its GPU loads into the buffers of a CPU with AMX, which ps counts as VRAM, and then the probe is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router.adapters.ollama import PsRow
from router.backend.card_identity import CardNumbers
from router.core.decision.switching import Plan
from router.core.ollama.runner import Gpu
from router.core.units import GIB, MIB
from router.telemetry import Notified, Telemetry

UNSEEN_BYTES = 64 * MIB
"""A load that moved less moved nothing: the driver's context alone is more."""

BLIND_AFTER = 2
"""Loads in a row that the probe has not seen, until it is not believed any more."""

SEEN_SHARE, STRAY_SHARE = 0.5, 0.1
"""A load has gone to a card that lost at least the first share of ps' figure, and not to one that lost less than the
second."""

LEAST_OF_FORMULA = 0.9
"""A runner on the GPU has at least this share of the formula in ps; AMX buffers are weights alone."""

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
        self._has_seen = False
        self._refusals = 0
        self._proven: set[str] = set()  # UUIDs of cards that have carried a model
        self._suspect: tuple[str, int | None] | None = None  # weights whose runner died, and the count before
        self._culprits: set[str] = set()

    @property
    def is_blind(self) -> bool:
        """True if the probe has not seen the last two loads: what it reads are not Ollama's cards, or not now."""
        return self._unseen >= BLIND_AFTER

    @property
    def is_doubted(self) -> bool:
        """True if the probe has not seen the last load, and never one before: nothing is to be learned from it."""
        return self._unseen > 0

    def notes(self) -> list[str]:
        """Return the findings in force, as sentences for the operator."""
        return list(self._notes.values())

    def forget(self) -> None:
        """Forget what was found: Ollama has restarted. A probe that has seen loads stays proven."""
        self._notes.clear()
        self._proven.clear()
        self._culprits.clear()
        self._unseen = self._refusals = 0
        self._suspect = None

    def note_gone(self, gpus: Sequence[Gpu]) -> None:
        """Note which cards the probe does not list any more."""
        gone = ", ".join(f"{card.name} ({card.uuid})" for card in self._numbers.gone(gpus))
        if gone:
            self._tell("gone", f"the probe does not list {gone} any more: no model is loaded there")
        else:
            self._notes.pop("gone", None)

    # --- a load that worked ------------------------------------------------------------------------------------

    def compare(
        self, plan: Plan, row: PsRow, before: tuple[Gpu, ...], after: tuple[Gpu, ...]
    ) -> tuple[int, int] | None:
        """Compare two readings of the probe around a load; return the numbers that were exchanged, if any."""
        self._suspect = None
        uuids = {gpu.index: gpu.uuid for gpu in before}
        lost = {uuids[index]: count for index, count in taken_bytes_by_card(before, after).items()}
        self._look(plan, row, before, sum(lost.values()))
        numbers = self._numbers.by_uuid()
        taken = {numbers[uuid]: count for uuid, count in lost.items() if uuid in numbers}
        found = max(taken, key=lambda number: taken[number], default=None)
        if found is None or not _is_of(plan, row, taken[found]):
            return None
        self._proven.update(uuid for uuid, number in numbers.items() if number == found)
        meant = plan.cards[0] if len(plan.cards) == 1 else found
        is_chosen = plan.options.main_gpu is not None or len(self._numbers.numbered(before) or ()) == 1
        if meant == found or not is_chosen or taken.get(meant, 0) >= row.size_vram_bytes * STRAY_SHARE:
            return None
        self._numbers.exchange(meant, found)
        self._tell_order()
        self._tell_hidden()
        return meant, found

    def _look(self, plan: Plan, row: PsRow, cards: Sequence[Gpu], taken_bytes: int) -> None:
        """Count a load as seen or not seen."""
        contexts = max((gpu.context_bytes for gpu in cards), default=0) * len(plan.cards)
        expected = (plan.expected_bytes - contexts) * LEAST_OF_FORMULA
        if taken_bytes >= row.size_vram_bytes * SEEN_SHARE:
            if self.is_blind:
                self._tell("blind", "the probe sees loads again: free memory is known")
                del self._notes["blind"]
            self._has_seen, self._unseen = True, 0
        elif not self._has_seen and taken_bytes < UNSEEN_BYTES and _is_whole(row) and row.size_vram_bytes >= expected:
            self._unseen += 1
            if self.is_blind:
                names = ", ".join(sorted({gpu.name for gpu in cards}))
                self._tell(
                    "blind",
                    f"the probe has not seen the last {BLIND_AFTER} loads, which Ollama says are on the GPU: it reads "
                    f"other cards than Ollama's ({names}), or old figures. Free memory counts as unknown, and each "
                    f"load is verified by Ollama's own figures. Check the probe and {self._key}",
                )

    # --- a load that failed ------------------------------------------------------------------------------------

    def is_refusal(self, plan: Plan, weights: str, error: str, cards: Sequence[Gpu]) -> bool:
        """Return True if a load failed because Ollama has no card of the plan's number: decide again without it."""
        pin = plan.options.main_gpu
        refused = _REFUSED.search(error)
        if pin is not None and refused is not None:
            self._refusals += 1
            said = int(refused[1][:4]) if refused[1] else pin if self._refusals < MOST_GUESSES else 1
            self._limit(min(max(1, said), max(1, pin)))
            return True
        if self._suspect is not None and self._suspect[0] == weights:  # it dies elsewhere too: not the card's fault
            self._numbers.limit(self._suspect[1])
            self._notes.pop("hidden", None)
            self._culprits.add(weights)
            self._suspect = None
        is_unproven = pin is not None and any(gpu.index == pin and gpu.uuid not in self._proven for gpu in cards)
        if not pin or not is_unproven or weights in self._culprits or _DIED.search(error) is None:
            return False
        self._suspect = weights, self._limit(pin)
        return True

    def _limit(self, count: int) -> int | None:
        before = self._numbers.limit(count)
        self._tell_hidden()
        return before

    def _tell_hidden(self) -> None:
        hidden = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in self._numbers.hidden)
        if hidden:
            self._tell("hidden", f"Ollama does not use all cards of the probe: {hidden} left alone; set {self._key}")

    def _tell_order(self) -> None:
        cards = sorted(self._numbers.by_uuid().items(), key=lambda card: card[1])
        order = ", ".join(f'"{uuid}"' for uuid, _ in cards[: len(cards) - len(self._numbers.hidden)])
        self._tell("order", f"Ollama numbers its cards otherwise than the probe. Its order: {self._key}: [{order}]")

    def _tell(self, kind: str, text: str) -> None:
        self._notes[kind] = text
        if text not in self._told:
            self._told.add(text)
            self._telemetry.emit(Notified(text, level="warning"))


def taken_bytes_by_card(before: Sequence[Gpu] | None, after: Sequence[Gpu] | None) -> dict[int, int]:
    """Return the bytes per card that a load took between two readings; {} without readings."""
    if before is None or after is None:
        return {}
    free = {gpu.index: gpu.free_bytes for gpu in after}
    lost = {gpu.index: gpu.free_bytes - free.get(gpu.index, gpu.free_bytes) for gpu in before}
    return {index: count for index, count in lost.items() if count > 0}


def _is_whole(row: PsRow) -> bool:
    return 0 < row.size_vram_bytes >= row.size_bytes


def _is_of(plan: Plan, row: PsRow, taken_bytes: int) -> bool:
    """Return True if a card lost as much as the load, and not much more: others take memory too."""
    most = max(plan.expected_bytes, row.size_vram_bytes) * 1.25 + GIB
    return max(1, row.size_vram_bytes * SEEN_SHARE) <= taken_bytes <= most
