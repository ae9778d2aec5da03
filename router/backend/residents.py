"""The residents: the loaded models of one Ollama, one entry per runner, with what only the router knows about it.

`/api/ps` determines the entries (`merge`). A request uses an entry between `enter` and `leave`. An entry that
disappears from ps in between is kept aside, so that its count of requests is still right if the model comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from router.adapters.ollama import PsRow
from router.backend.epoch import Epoch
from router.backend.uses import HOT_S, NEVER_USED, Uses
from router.core.decision.snapshot import Resident
from router.core.ollama.names import key_of
from router.core.ollama.recovery import free_entry
from router.core.ollama.runner import LoadOptions

USES_KEPT = 256
"""The number of unloaded models of which the last uses are kept: models that are wanted in turn are hot, too."""

GOING_S = 10.0
"""An unload counts as under way for at most this long; a model that is still loaded then can be used again."""

Guess = Callable[[PsRow], dict[int, int]]
"""Estimates the bytes per card that an unmeasured runner holds."""


@dataclass(slots=True, eq=False)
class Tracked:
    """One resident. Times are loop times; `order` rises with each load, so the youngest has the highest.

    `held_bytes` is the memory per card, measured if `is_measured`, else assumed. `options` is None for a runner that
    another client of Ollama loaded. `lease_s` is the keep_alive sent to Ollama, `client_keep_alive_s` a client's last.
    `served` counts the requests since the load; `uses` are those of earlier loads too. `entry` is as in `Resident`.
    """

    weights: str
    name: str
    row: PsRow
    order: int
    loaded_at_s: float
    held_bytes: dict[int, int] = field(default_factory=dict)
    free_at_load_bytes: dict[int, int] = field(default_factory=dict)
    options: LoadOptions | None = None
    lease_s: float = 300.0
    client_keep_alive_s: float | None = None
    idle_since_s: float = 0.0
    in_flight: int = 0
    served: int = 0
    is_spilled: bool = False
    is_kept: bool = False
    is_measured: bool = False
    going_until_s: float = 0.0
    uses: Uses = NEVER_USED
    entry: int = 0

    @property
    def sent_options(self) -> LoadOptions:
        """The options to send with each request, so that Ollama never reloads the model."""
        return self.options if self.options is not None else LoadOptions(num_ctx=self.row.context_length)

    @property
    def context_length(self) -> int | None:
        """Its context in tokens, None if neither Ollama nor the router's own load says."""
        if self.row.context_length is None and self.options is not None:
            return self.options.num_ctx
        return self.row.context_length

    def known_as(self, weights: str) -> None:
        """Record the weights that it runs."""
        self.weights = weights

    def enter(self) -> None:
        """Count a request that uses it."""
        self.in_flight += 1
        self.served += 1

    def leave(self, now_s: float) -> bool:
        """Count the end of a request; return True if it was the last one under way."""
        self.in_flight -= 1
        self.uses = self.uses.and_at(now_s)
        if self.in_flight == 0:
            self.idle_since_s = now_s
        return self.in_flight == 0

    def loaded(self, options: LoadOptions, lease_s: float, now_s: float, free_before: Mapping[int, int]) -> None:
        """Record a load by the router; `free_before` is the free memory per card just before it."""
        self.options, self.lease_s, self.loaded_at_s = options, lease_s, now_s
        self.free_at_load_bytes = dict(free_before)

    def measured(self, held_bytes: dict[int, int]) -> None:
        """Record the memory that the probe saw it take."""
        self.held_bytes, self.is_measured = held_bytes, True

    def assumed(self, held_bytes: dict[int, int]) -> None:
        """Record the memory that it is assumed to hold."""
        self.held_bytes, self.is_measured = held_bytes, False

    def renumbered(self, numbers: Mapping[int, int]) -> None:
        """Take over new numbers of the cards: old → new."""
        self.held_bytes = {numbers[card]: size for card, size in self.held_bytes.items() if card in numbers}
        free = self.free_at_load_bytes
        self.free_at_load_bytes = {numbers[card]: size for card, size in free.items() if card in numbers}

    def spilled(self) -> None:
        """Record that it is not fully on the GPU: no request may be sent to it."""
        self.is_spilled = True

    def keep_for(self, keep_alive_s: float) -> None:
        """Record the keep_alive of a client, in seconds."""
        self.client_keep_alive_s = keep_alive_s

    def go(self, until_s: float) -> None:
        """Record that it is being unloaded until `until_s`; 0 revokes that."""
        self.going_until_s = until_s

    def recall(self, uses: Uses) -> None:
        """Take over the uses of an earlier load of the same weights."""
        self.uses = uses

    def see(self, row: PsRow) -> bool:
        """Take over its row of ps; return True if another client made Ollama reload it with other options."""
        old, self.row = self.row, row
        return (old.size_bytes, old.size_vram_bytes, old.context_length) != (
            row.size_bytes,
            row.size_vram_bytes,
            row.context_length,
        )

    def reloaded(self, order: int, entry: int, held_bytes: dict[int, int]) -> None:
        """Drop what was known about the previous runner; the new one is load number `order`, in `entry`."""
        self.order, self.entry, self.served = order, entry, self.in_flight
        self.options, self.is_spilled, self.free_at_load_bytes = None, False, {}
        self.assumed(held_bytes)

    def back_as(self, new: Tracked) -> None:
        """Take over the load of `new`, which has the same weights, and keep the requests in flight."""
        self.order, self.entry, self.row, self.name, self.options = new.order, new.entry, new.row, new.name, new.options
        self.loaded_at_s, self.is_spilled, self.going_until_s = new.loaded_at_s, False, 0.0
        self.free_at_load_bytes, self.served, self.is_kept = {}, self.in_flight, new.is_kept
        self.assumed(new.held_bytes)

    def frozen(self, wanted: int, now_s: float) -> Resident:
        """Return it as a decision sees it; `wanted` is the number of requests that wait for it."""
        return Resident(
            name=self.name,
            weights=self.weights,
            size_bytes=self.row.size_bytes,
            size_vram_bytes=self.row.size_vram_bytes,
            context_length=self.context_length,
            held_bytes=self.held_bytes,
            free_at_load_bytes=self.free_at_load_bytes,
            options=self.options,
            order=self.order,
            keep_alive_s=self.lease_s,
            in_flight=self.in_flight,
            wanted=wanted,
            kept=self.is_kept,
            is_spilled=self.is_spilled,
            is_going=now_s < self.going_until_s,
            is_hot=now_s - self.uses.before_last_s < HOT_S,
            uses=self.uses.weight_at(now_s),
            entry=self.entry,
        )


class Residents(Mapping[str, Tracked]):
    """Maps weights to entries. `keep` are the keys of the models that are unloaded last."""

    def __init__(self, keep: frozenset[str], epoch: Epoch) -> None:
        self._entries: dict[str, Tracked] = {}
        self._leaving: dict[str, Tracked] = {}  # gone from ps while requests are still under way
        self._used: dict[str, Uses] = {}  # of weights that are not loaded now
        self._let_spill: set[str] = set()  # weights that requests loaded because a rule allows them to spill
        self._keep = keep
        self._epoch = epoch
        self._on_idle: Callable[[], None] = lambda: None
        self._order = 0

    def notify(self, on_idle: Callable[[], None]) -> None:
        """Call `on_idle` whenever the last request to an entry has ended."""
        self._on_idle = on_idle

    def __getitem__(self, weights: str) -> Tracked:
        return self._entries[weights]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, weights: str, default: None = None) -> Tracked | None:  # type: ignore[override]
        """Return the entry or `default`. Overridden because Mapping's own `get` raises and catches per miss."""
        return self._entries.get(weights, default)

    def enter(self, weights: str) -> Tracked | None:
        """Use an entry for a request: it is not unloaded before `leave`. Returns None if it has gone."""
        tracked = self._entries.get(weights)
        if tracked is not None:
            tracked.enter()
        return tracked

    def leave(self, tracked: Tracked, now_s: float) -> None:
        """Release the entry that `enter` returned; to be called however the request ended."""
        if tracked.leave(now_s):
            self._on_idle()

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

    def let_spill(self, weights: str) -> None:
        """Record that a request may load these weights, though they do not fit."""
        self._let_spill.add(weights)

    def is_ours(self, tracked: Tracked) -> bool:
        """Return True if the router, or a request that it let through, caused the load."""
        return tracked.options is not None or tracked.weights in self._let_spill

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
            self._let_spill.discard(tracked.weights)
            if tracked.in_flight:  # their ends must be counted even if it never comes back
                self._leaving[tracked.weights] = tracked
            self._epoch.advance()
        for weights, row in seen.items():
            if (known := self._entries.get(weights)) is None:
                self._add(weights, row, display_name(row.name), guess, now_s)
            elif known.see(row):
                self._order += 1
                entry = free_entry(one.entry for one in self._entries.values() if one is not known)
                known.reloaded(self._order, entry, guess(row))
                self._epoch.advance()
        return gone

    def _remember_uses(self, gone: Tracked) -> None:
        self._used[gone.weights] = gone.uses
        if len(self._used) > USES_KEPT:
            del self._used[next(iter(self._used))]

    def _add(self, weights: str, row: PsRow, name: str, guess: Guess, now_s: float) -> None:
        self._order += 1  # Ollama evicts, and the router unloads, by the age of loads
        kept, entry = key_of(name) in self._keep, free_entry(one.entry for one in self._entries.values())
        tracked = Tracked(
            weights, name, row, self._order, now_s, guess(row), idle_since_s=now_s, is_kept=kept, entry=entry
        )
        tracked.recall(self._used.pop(weights, NEVER_USED))
        before = self._leaving.pop(weights, None)
        if before is not None and before.in_flight:
            before.back_as(tracked)
            tracked = before
        self._entries[weights] = tracked
        self._epoch.advance()
