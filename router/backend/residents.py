"""The book of what is loaded on one Ollama: one entry per runner, with what only the router knows about it.

`/api/ps` decides what is in the book (`merge`). Requests hold an entry between `enter` and `leave`; an entry that
disappears from ps meanwhile is kept aside, so that the count stays right when the model comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from router.adapters.ollama import PsRow
from router.backend.epoch import Epoch
from router.core.decision.snapshot import Resident
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions

GOING_S = 10.0
"""An unload counts as under way for at most this long; then the model is usable again if it is still there."""

Guess = Callable[[PsRow], dict[int, int]]
"""Bytes per card that a runner is assumed to hold while nothing has measured it."""


@dataclass(slots=True, eq=False)
class Tracked:
    """One resident. Times are loop times; `order` rises with each load, so the youngest has the highest.

    `held_bytes` is what it holds per card, measured where `is_measured`, else assumed. `options` is None for a runner
    that somebody else loaded. `lease_s` is the keep_alive that Ollama was given, `client_keep_alive_s` the last one
    that a client named. `served` counts the requests that it was given since it was loaded.
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

    @property
    def sent_options(self) -> LoadOptions:
        """The options that each request to it carries, so that Ollama never reloads it."""
        return self.options if self.options is not None else LoadOptions(num_ctx=self.row.context_length)

    def enter(self) -> None:
        """Count a request in."""
        self.in_flight += 1
        self.served += 1

    def leave(self, now_s: float) -> bool:
        """Count a request out; True when it was the last one."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle_since_s = now_s
        return self.in_flight == 0

    def loaded(self, options: LoadOptions, lease_s: float, now_s: float, free_before: Mapping[int, int]) -> None:
        """Record that we have loaded it; `free_before` is what each card had free just before."""
        self.options, self.lease_s, self.loaded_at_s = options, lease_s, now_s
        self.free_at_load_bytes = dict(free_before)

    def measured(self, held_bytes: dict[int, int]) -> None:
        """Record what the probe saw it take."""
        self.held_bytes, self.is_measured = held_bytes, True

    def assumed(self, held_bytes: dict[int, int]) -> None:
        """Record what it is believed to hold; nothing has measured it."""
        self.held_bytes, self.is_measured = held_bytes, False

    def spilled(self) -> None:
        """Record that it is not (wholly) on the GPU: no request may be sent to it."""
        self.is_spilled = True

    def keep_for(self, keep_alive_s: float) -> None:
        """Record the keep_alive that a client named."""
        self.client_keep_alive_s = keep_alive_s

    def go(self, until_s: float) -> None:
        """Record that it is being unloaded; 0 takes that back."""
        self.going_until_s = until_s

    def see(self, row: PsRow) -> bool:
        """Take over its row of ps; True when it was loaded again with other options behind our back."""
        old, self.row = self.row, row
        return (old.size_bytes, old.size_vram_bytes, old.context_length) != (
            row.size_bytes,
            row.size_vram_bytes,
            row.context_length,
        )

    def reloaded(self, held_bytes: dict[int, int]) -> None:
        """Forget everything that was known about the runner before."""
        self.options, self.is_spilled, self.free_at_load_bytes = None, False, {}
        self.assumed(held_bytes)

    def back_as(self, new: Tracked) -> None:
        """Become `new`, which has the same weights, and keep the requests in flight."""
        self.order, self.row, self.name, self.options = new.order, new.row, new.name, new.options
        self.loaded_at_s, self.is_spilled, self.going_until_s = new.loaded_at_s, False, 0.0
        self.assumed(new.held_bytes)

    def frozen(self, wanted: int, now_s: float) -> Resident:
        """What a decision may know of it; `wanted` requests wait for it."""
        return Resident(
            name=self.name,
            weights=self.weights,
            size_bytes=self.row.size_bytes,
            size_vram_bytes=self.row.size_vram_bytes,
            context_length=self.row.context_length,
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
        )


class Residents(Mapping[str, Tracked]):
    """Weights → entry. `keep` are the keys of the models that are unloaded last."""

    def __init__(self, keep: frozenset[str], epoch: Epoch) -> None:
        self._entries: dict[str, Tracked] = {}
        self._leaving: dict[str, Tracked] = {}  # gone from ps, but requests to it have not ended
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
        """The entry, or None: on the path of each request, so without Mapping's exception."""
        return self._entries.get(weights)

    def enter(self, weights: str) -> Tracked | None:
        """Hold an entry for a request: it is not unloaded until `leave`. None when it has gone."""
        tracked = self._entries.get(weights)
        if tracked is not None:
            tracked.enter()
        return tracked

    def leave(self, tracked: Tracked, now_s: float) -> None:
        """Give back what `enter` returned, on whatever path the request has ended."""
        if tracked.leave(now_s):
            self._on_idle()

    def go(self, tracked: Tracked, now_s: float) -> None:
        """It is being unloaded: no request may rely on it any more."""
        tracked.go(now_s + GOING_S)
        self._epoch.advance()

    def stay(self, tracked: Tracked) -> None:
        """The unload has failed: it may be used again."""
        tracked.go(0.0)
        self._epoch.advance()

    def spilled(self, tracked: Tracked) -> None:
        """It is not (wholly) on the GPU."""
        tracked.spilled()
        self._epoch.advance()

    def assume(self, tracked: Tracked, held_bytes: dict[int, int]) -> None:
        """Book what it is believed to hold."""
        tracked.assumed(held_bytes)
        self._epoch.advance()

    def held_on(self, card: int) -> int:
        """Bytes that all entries hold of `card`."""
        return sum(tracked.held_bytes.get(card, 0) for tracked in self._entries.values())

    def merge(
        self, seen: Mapping[str, PsRow], shown: Callable[[str], str], guess: Guess, now_s: float
    ) -> list[Tracked]:
        """Take over what ps shows (weights → row); return the entries that have gone. `shown` names a row's model."""
        gone = [self._entries.pop(weights) for weights in list(self._entries) if weights not in seen]
        for tracked in gone:
            if tracked.in_flight:
                self._leaving[tracked.weights] = tracked
            self._epoch.advance()
        for weights, row in seen.items():
            known = self._entries.get(weights)
            if known is None:
                self._add(weights, row, shown(row.name), guess, now_s)
            elif known.see(row):
                known.reloaded(guess(row))
                self._epoch.advance()
        return gone

    def _add(self, weights: str, row: PsRow, name: str, guess: Guess, now_s: float) -> None:
        self._order += 1
        is_kept = key_of(name) in self._keep
        tracked = Tracked(weights, name, row, self._order, now_s, guess(row), idle_since_s=now_s, is_kept=is_kept)
        before = self._leaving.pop(weights, None)
        if before is not None and before.in_flight:
            before.back_as(tracked)
            tracked = before
        self._entries[weights] = tracked
        self._epoch.advance()
