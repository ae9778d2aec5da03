"""One resident: a loaded model, and what only the router knows about it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from router.adapters.ollama import PsRow
from router.backend.slots import RunnerSlots
from router.backend.uses import HOT_S, NEVER_USED, Uses
from router.core.decision.snapshot import Resident
from router.core.ollama.runner import LoadOptions
from router.core.teams.meter import Meter

MOST_USERS = 1024
"""Teams that are remembered to have used a resident: reloads may bring any number of new names."""


@dataclass(slots=True, eq=False)
class Tracked:
    """One resident. Times are loop times; `order` rises with each load, so the youngest has the highest.

    `held_bytes` is the memory per card, measured if `is_measured`, else assumed. `options` is None for a runner that
    another client of Ollama loaded. `lease_s` is the keep_alive sent to Ollama, `client_keep_alive_s` a client's last.
    `served` counts the requests since the load; `uses` are those of earlier loads too. `entry` is as in `Resident`.
    `users` are the teams that have used it, and when they did last; `last_user` is the last one of them.
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
    slots: RunnerSlots = field(default_factory=RunnerSlots)
    meter: Meter = field(default_factory=Meter)
    entry: int = 0
    users: dict[str, float] = field(default_factory=dict)
    last_user: str = ""

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

    def enter(self, team: str = "", now_s: float = 0.0) -> None:
        """Count a request that uses it, of a team if it is of one."""
        self.in_flight += 1
        self.served += 1
        if team:
            if team != self.last_user:
                self.users.pop(team, None)  # to the end: the first one has not used it for longest
                self.last_user = team
            self.users[team] = now_s
            if len(self.users) > MOST_USERS:
                del self.users[next(iter(self.users))]

    def keep_users(self, names: Collection[str]) -> None:
        """Forget which other teams have used it."""
        self.users, self.last_user = {team: used_s for team, used_s in self.users.items() if team in names}, ""

    def leave(self, now_s: float) -> None:
        """Count the end of a request."""
        self.in_flight -= 1
        self.uses = self.uses.and_at(now_s)
        if self.in_flight == 0:
            self.idle_since_s = now_s

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

    def keep(self, *, is_kept: bool) -> None:
        """Record whether it is evicted last and never expires; what clients asked for before no longer counts."""
        self.is_kept, self.client_keep_alive_s = is_kept, None

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
        self.slots.renew()
        self.options, self.is_spilled, self.free_at_load_bytes = None, False, {}
        self.assumed(held_bytes)

    def back_as(self, new: Tracked) -> None:
        """Take over the load of `new`, which has the same weights, and keep the requests in flight."""
        self.order, self.entry, self.row, self.name, self.options = new.order, new.entry, new.row, new.name, new.options
        self.loaded_at_s, self.is_spilled, self.going_until_s = new.loaded_at_s, False, 0.0
        self.free_at_load_bytes, self.served, self.is_kept = {}, self.in_flight, new.is_kept
        self.slots.renew()
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
            users=self.users_at(now_s),
        )

    def users_at(self, now_s: float) -> tuple[str, ...]:
        """Return the teams that have used it within its keep-alive."""
        return tuple(team for team, used_s in self.users.items() if now_s - used_s < self._kept_s)

    def is_shared(self, team: str, now_s: float) -> bool:
        """Return whether other teams than `team` have used it within its keep-alive."""
        return any(user != team for user in self.users_at(now_s))

    @property
    def _kept_s(self) -> float:
        """For how long after a use it stays loaded for that one."""
        if self.is_kept:
            return math.inf
        return self.lease_s if self.client_keep_alive_s is None else self.client_keep_alive_s
