"""The residents: the loaded models of one Ollama, one entry per runner, with what only the router knows about it.

`/api/ps` determines the entries (`merge`). A request uses an entry between `enter` and `leave`; one that disappears
from ps in between is kept aside, so that its count of requests is right if it comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from router.adapters.ollama import PsRow
from router.backend.epoch import Epoch
from router.backend.tracked import Tracked
from router.backend.uses import NEVER_USED, Uses
from router.core.ollama.names import key_of
from router.core.ollama.recovery import FreeEntries

USES_KEPT = 256
"""The number of unloaded models of which the last uses are kept: models that are wanted in turn are hot, too."""

GOING_S = 10.0
"""An unload counts as under way for at most this long; a model that is still loaded then can be used again."""

Guess = Callable[[PsRow], dict[int, int]]  # estimates the bytes per card that an unmeasured runner holds


class Residents(Mapping[str, Tracked]):
    """Maps weights to entries. `keep` are the keys of the models that are unloaded last."""

    def __init__(self, keep: frozenset[str], epoch: Epoch) -> None:
        self._entries: dict[str, Tracked] = {}
        self.get = self._entries.get  # type: ignore[method-assign]  # Mapping's own raises and catches per miss
        self._leaving: dict[str, Tracked] = {}  # gone from ps while requests are still under way
        self._used: dict[str, Uses] = {}  # of weights that are not loaded now
        self._by_request: set[str] = set()  # weights that requests of this router have loaded, not a switch
        self._keep = keep
        self._epoch = epoch
        self._on_leave: Callable[[Tracked, float], None] = lambda _tracked, _now_s: None
        self._order = 0

    def notify(self, on_leave: Callable[[Tracked, float], None]) -> None:
        """Call `on_leave` with the time whenever a request to an entry has ended."""
        self._on_leave = on_leave

    def __getitem__(self, weights: str) -> Tracked:
        return self._entries[weights]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget which other teams have used what is loaded: they are no more."""
        for tracked in self.values():
            tracked.keep_users(names)

    def enter(self, weights: str, team: str = "", now_s: float = 0.0) -> Tracked | None:
        """Use an entry for a request of `team`: it is not unloaded before `leave`. Returns None if it has gone."""
        tracked = self._entries.get(weights)
        if tracked is not None:
            tracked.enter(team, now_s)
        return tracked

    def leave(self, tracked: Tracked, now_s: float) -> None:
        """Release the entry that `enter` returned; to be called however the request ended."""
        tracked.leave(now_s)
        self._on_leave(tracked, now_s)

    def go(self, tracked: Tracked, now_s: float) -> None:
        """Mark a resident as being unloaded: no new request may use it."""
        tracked.go(now_s + GOING_S)
        self._epoch.advance()

    def stay(self, tracked: Tracked) -> None:
        """Revoke `go` after a failed unload: the resident may be used again."""
        tracked.go(0.0)
        self._epoch.advance()

    def are_to_stay(self, now_s: float) -> bool:
        """Return True if one of them is not being unloaded."""
        return any(now_s >= tracked.going_until_s for tracked in self._entries.values())

    def move(self, old: str, new: str) -> None:
        """Enter a resident under other weights: until its model was shown, `old` stood in for them."""
        if old in self._entries and new not in self._entries:
            tracked = self._entries[new] = self._entries.pop(old)
            tracked.known_as(new)
            self._epoch.advance()

    def spilled(self, tracked: Tracked) -> None:
        """Mark a resident as not fully on the GPU."""
        tracked.spilled()
        self._epoch.advance()

    def keep(self, tracked: Tracked, *, is_kept: bool) -> None:
        """Evict a resident last of all and never let it expire, or treat it as any other again."""
        tracked.keep(is_kept=is_kept)
        self._epoch.advance()

    def let_spill(self, weights: str) -> None:
        """Record that a request may load these weights, though they do not fit."""
        self._by_request.add(weights)

    def is_ours(self, tracked: Tracked) -> bool:
        """Return True if the router, or a request that it let through, caused the load."""
        return tracked.options is not None or tracked.weights in self._by_request

    def assume(self, tracked: Tracked, held_bytes: dict[int, int]) -> None:
        """Book the memory that a resident is assumed to hold, in bytes per card."""
        tracked.assumed(held_bytes)
        self._epoch.advance()

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """Book all memory under new numbers of the cards; what a card without one held is dropped."""
        for tracked in (*self._entries.values(), *self._leaving.values()):
            tracked.renumbered(numbers)
        self._epoch.advance()

    def held_on(self, card: int) -> int:
        """Return the bytes that all entries hold of `card`."""
        return sum(tracked.held_bytes.get(card, 0) for tracked in self._entries.values())

    def merge(
        self, seen: Mapping[str, PsRow], display_name: Callable[[str], str], guess: Guess, now_s: float
    ) -> list[Tracked]:
        """Take over the rows of ps by weights; return the entries that have gone."""
        gone = [self._entries.pop(weights) for weights in list(self._entries) if weights not in seen]
        for tracked in gone:
            self._remember_uses(tracked)
            self._by_request.discard(tracked.weights)
            if tracked.in_flight:  # their ends must be counted even if it never comes back
                self._leaving[tracked.weights] = tracked
            self._epoch.advance()
        entries = FreeEntries(one.entry for one in self._entries.values())
        for weights, row in seen.items():
            if (known := self._entries.get(weights)) is None:
                self._add(weights, row, display_name(row.name), guess, now_s, entries.take())
            elif known.see(row):
                self._order += 1
                entries.give_back(known.entry)
                known.reloaded(self._order, entries.take(), guess(row))
                self._epoch.advance()
        return gone

    def _remember_uses(self, gone: Tracked) -> None:
        self._used[gone.weights] = gone.uses
        if len(self._used) > USES_KEPT:
            del self._used[next(iter(self._used))]

    def _add(self, weights: str, row: PsRow, name: str, guess: Guess, now_s: float, entry: int) -> None:
        self._order += 1  # Ollama evicts, and the router unloads, by the age of loads
        kept = key_of(name) in self._keep
        tracked = Tracked(
            weights, name, row, self._order, now_s, guess(row), idle_since_s=now_s, is_kept=kept, entry=entry
        )
        tracked.recall(self._used.pop(weights, NEVER_USED))
        before = self._leaving.pop(weights, None)
        if before is not None and before.in_flight:
            before.back_as(tracked)
            tracked = before
            self._by_request.add(weights)  # one was sent to it just as it left, and Ollama has loaded it for that
        self._entries[weights] = tracked
        self._epoch.advance()
