"""What is being loaded now: by the switch under way, by Ollama itself for requests that were passed on, and for others.

While a model loads, its memory goes but `/api/ps` does not list it. That memory is no other program's: until the load
has ended, decisions go by what was free before it. Ollama loads one model at a time, so no switch starts meanwhile
either: what there is room for then is only known at its end. Loads of other clients of the same Ollama are seen where
the probe lists processes (`unlisted.py`); nothing is refused for the memory that such a load may have taken.
"""

from __future__ import annotations

import asyncio
import math

from router.backend.cards import Cards
from router.backend.epoch import Epoch
from router.backend.residents import Residents
from router.backend.unlisted import UnlistedRunners


class Loads:
    """The loads of one backend. `switch` are weights and num_ctx of the switch under way.

    Loads for requests that were passed on hold back switches for at most `limit_s` in a row.
    """

    def __init__(self, cards: Cards, residents: Residents, epoch: Epoch, limit_s: float) -> None:
        self.switch: tuple[str, int] | None = None
        # request that was passed on → weights that Ollama loads for it, and when it had an answer
        self._passed: dict[object, tuple[str, float]] = {}
        self._held_until_s = -math.inf
        self._unlisted = UnlistedRunners(limit_s)
        self._cards, self._residents, self._epoch, self._limit_s = cards, residents, epoch, limit_s
        self._now = asyncio.get_running_loop().time

    @property
    def are_on(self) -> bool:
        """True while a model loads: readings of memory and `/api/ps` disagree."""
        return self.switch is not None or bool(self._passed)

    def begin(self, weights: str, num_ctx: int) -> None:
        """Record that a switch begins to load `weights`."""
        self._hold()
        self.switch = (weights, num_ctx)
        self._epoch.advance()

    def end(self) -> None:
        """Record that the switch has ended, successfully or not."""
        self.switch = None
        self._release()

    def pass_on(self, request: object, weights: str) -> None:
        """Record that a request was passed on, for which Ollama loads `weights` unless they are loaded."""
        if weights in self._residents:
            return
        if not self._passed:
            self._held_until_s = self._now() + self._limit_s
        if self._now() < self._held_until_s:
            self._hold()
            self._passed[request] = weights, math.inf
            self._epoch.advance()

    def answered(self, request: object) -> bool:
        """Record that a request which was passed on has an answer, or an end; return True if it may have loaded.

        Its load counts until ps was read once more: only then the model is known, and what it holds.
        """
        if request not in self._passed:
            return False
        self._passed[request] = self._passed[request][0], self._now()
        return True

    def note_listed(self, asked_at_s: float) -> None:
        """Record which loads have ended, by a reading of ps that began at `asked_at_s`, or have taken too long."""
        is_over = self._now() >= self._held_until_s
        for request, (weights, answered_at_s) in list(self._passed.items()):
            if is_over or weights in self._residents or answered_at_s < asked_at_s:
                del self._passed[request]
                self._release()

    def note_runners(self) -> None:
        """Compare the processes on the cards with the residents, by the latest readings of both."""
        self._unlisted.note(self._cards.processes, self._residents, self._now())

    @property
    def in_flux_s(self) -> float:
        """The seconds that a request waits for the memory of runners which ps does not list; 0 if there are none."""
        return self._limit_s if self._unlisted.are_there(self._now()) else 0.0

    @property
    def hold_s(self) -> float:
        """For how many seconds at most no switch may start; 0 or less if one may."""
        return self._held_until_s - self._now() if self._passed else 0.0

    def _hold(self) -> None:
        if not self.are_on:
            self._cards.hold_floor(is_switching=True)

    def _release(self) -> None:
        if not self.are_on:
            self._cards.hold_floor(is_switching=False)
        self._epoch.advance()
