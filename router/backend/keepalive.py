"""Clients' `keep_alive`: honoured by the router, not forwarded to Ollama.

In Ollama a `keep_alive` would protect a runner from eviction and block its queue (docs/ollama.md, "Keep-alive and
unload"). Ollama gets one finite lease per load instead, so that no model stays loaded indefinitely if the router dies.
The last `keep_alive` of a client counts, as in Ollama: 0 unloads when idle, a duration starts with the end of the last
request, a negative value means indefinitely. Of a model that several teams use the longest one counts: no team unloads
what another one would have to load again at its own cost. A resident that must outlast its lease is renewed here while
it is idle.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from router.backend.residency import Residency
from router.backend.residents import Residents
from router.backend.tracked import Tracked
from router.config import Defaults
from router.errors import RouterError

NEVER = datetime(2318, 1, 1, tzinfo=UTC)
"""The expiry shown for a pinned model (Ollama itself shows a date about 292 years ahead)."""

CHECK_S = 0.5
"""Polling interval for expiry and renewal."""

MARGIN_S = 5.0
"""Ollama's lease must end at least this long after ours, or Ollama could unload a model as a request arrives."""


class KeepAlive:
    """Expires residents on behalf of clients. While `is_switching` nothing is unloaded or renewed."""

    def __init__(
        self,
        residency: Residency,
        residents: Residents,
        defaults: Defaults,
        *,
        is_switching: Callable[[], bool],
        unix_now: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._residents = residents
        self._default_s = defaults.keep_alive_s
        self._longest_s = math.inf if defaults.max_keep_alive_s is None else defaults.max_keep_alive_s
        self._is_switching = is_switching
        self._unix_now = unix_now
        self._renewed_at_s: dict[str, float] = {}
        self._now = asyncio.get_running_loop().time

    def apply(self, tracked: Tracked, keep_alive_s: float | None, team: str = "") -> None:
        """Apply the `keep_alive` of a request, in seconds; None, for a request without one, keeps the last one.

        A request of a `team` ends nothing sooner that other teams use, too; "" is whoever may.
        """
        if keep_alive_s is None:
            return
        keep_s = min(math.inf if keep_alive_s < 0 else keep_alive_s, self._longest_s)
        if team and tracked.is_shared(team, self._now()):
            last_s = self._keep_s(tracked)
            keep_s = max(keep_s, tracked.lease_s if last_s is None else last_s)
        tracked.keep_for(keep_s)

    def expiry(self, tracked: Tracked | None) -> datetime | None:
        """Return the expiry to show in `/api/ps`; None if the upstream's own value is right."""
        keep_s = self._keep_s(tracked) if tracked is not None else None
        if tracked is None or keep_s is None:
            return None
        if math.isinf(keep_s):
            return NEVER
        left_s = tracked.idle_since_s + keep_s - self._now()
        return datetime.fromtimestamp(self._unix_now() + left_s, UTC)

    async def watch(self) -> None:
        """Check all residents every `CHECK_S` until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            with suppress(RouterError):
                await self.check()

    async def check(self) -> None:
        """Unload or renew each idle resident that is due; none while a switch runs, which owns the card."""
        for tracked in list(self._residents.values()):
            # Checked for each one, because a switch may begin, or the resident go, during the unload of another.
            if self._is_switching() or tracked.in_flight or self._residents.get(tracked.weights) is not tracked:
                continue
            now_s = self._now()
            keep_s = self._keep_s(tracked)
            idle_s = now_s - tracked.idle_since_s
            if keep_s is not None and idle_s >= keep_s:
                await self._residency.unloading.unload(tracked)
            elif keep_s is not None and keep_s + MARGIN_S > tracked.lease_s and self._is_due(tracked, now_s):
                await self._residency.renew(tracked)
                loaded = self._residents
                renewed = {weights: at_s for weights, at_s in self._renewed_at_s.items() if loaded.get(weights)}
                self._renewed_at_s = {**renewed, tracked.weights: now_s}

    def _keep_s(self, tracked: Tracked) -> float | None:
        """Return the seconds it stays after its last request; None if Ollama's own lease decides."""
        if tracked.client_keep_alive_s is not None:
            return tracked.client_keep_alive_s
        if tracked.is_kept:
            return math.inf
        return min(self._default_s, self._longest_s) if tracked.options is not None else None

    def _is_due(self, tracked: Tracked, now_s: float) -> bool:
        # At half the lease: early enough to repeat a renewal that fails.
        last_s = max(tracked.idle_since_s, self._renewed_at_s.get(tracked.weights, 0.0))
        return now_s - last_s >= tracked.lease_s / 2
