"""The data of the dashboard: cards to scale, the queue, figures and the timeline, as one JSON object.

It holds times and not durations, so that it changes only when something has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from router import __version__
from router.admin.inspector import Inspector
from router.admin.timeline import Timeline
from router.admin.totals import Totals
from router.backend.backend import Backend
from router.backend.switches import Target
from router.backend.tracked import Tracked
from router.core.ollama.runner import Gpu

NEVER_S = 10 * 365 * 86400.0
"""A model that would stay loaded for longer than this has no end to show."""


OBSERVE_S = 0.5
"""How often the timeline notes what is loaded."""

DECISIONS_SHOWN = 60
"""The newest decisions and switches are on the page."""


class Board:
    """Builds the data. `unix_now` is the wall clock in seconds."""

    def __init__(
        self,
        backend: Backend,
        inspector: Inspector,
        totals: Totals,
        timeline: Timeline,
        unix_now: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._inspector = inspector
        self._totals = totals
        self._timeline = timeline
        self._unix_now = unix_now
        self._seen: tuple[Target, float] | None = None  # the load that was seen last, and when first
        self._others: dict[str, int] = {}  # bytes of other programs by card, as of the last reading without a switch

    def observe(self) -> None:
        """Let the timeline note what is loaded now."""
        residents = self._backend.world.residents.values()
        self._timeline.observe((card, one.name) for one in residents for card in one.held_bytes)
        self._loading()

    async def watch(self) -> None:
        """Observe every `OBSERVE_S` until cancelled; nobody may be looking meanwhile."""
        while True:
            self.observe()
            await asyncio.sleep(OBSERVE_S)

    def data(self) -> dict[str, Any]:
        """Return everything that the dashboard shows, except the decisions."""
        self.observe()
        (is_ready, details), shown = self._inspector.ready(), self._inspector
        world = self._backend.world
        return {
            "version": __version__,
            "ready": is_ready,
            "draining": details["draining"],
            "memory": details.get("memory", ""),
            "ollama": shown.ollama(),
            "cards": None if world.cards.gpus is None else [self._card(gpu) for gpu in world.cards.gpus],
            "models": [self._model(one) for one in world.residents.values()],
            "loading": self._loading(),
            "queue": self._queue(),
            "totals": self._totals.since_start(),
            "minutes": self._totals.by_minute(),
            "timeline": self._timeline.as_data(),
            "barred": [
                {**row, "until": round(self._unix_now() + row["for_s"]), "for_s": None} for row in shown.barred()
            ],
            "notes": shown.notes(),
            "installed": sorted(facts.name for facts in world.catalog.values()),
        }

    def decisions(self) -> list[dict[str, Any]]:
        """Return the newest decisions and switches, newest first."""
        return self._inspector.decisions(DECISIONS_SHOWN)

    def _card(self, gpu: Gpu) -> dict[str, Any]:
        """Return a card and what is on it: residents by age, what is being loaded, other programs, free memory."""
        residents = [one for one in self._backend.world.residents.values() if gpu.index in one.held_bytes]
        blocks = [
            {"kind": "model", "model": one.name, "bytes": one.held_bytes[gpu.index]}
            for one in sorted(residents, key=lambda one: one.order)
        ]
        loading = self._backend.line.loading
        if loading is not None and (need := self._backend.line.reserved_bytes(gpu.index)):
            blocks.append({"kind": "loading", "model": loading.facts.name, "bytes": need})
        blocks.append(
            {"kind": "others", "model": ", ".join(self._inspector.programs_on(gpu)), "bytes": self._others_on(gpu)}
        )
        about = {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name}
        return {
            **about,
            "total_bytes": gpu.total_bytes,
            "free_bytes": gpu.free_bytes,
            "blocks": within(blocks, gpu.total_bytes),
        }

    def _others_on(self, gpu: Gpu) -> int:
        """Return the bytes of other programs; during a switch those of before, because memory is in flux then."""
        if self._backend.line.is_switching and gpu.uuid in self._others:
            return self._others[gpu.uuid]
        self._others[gpu.uuid] = others = max(0, self._inspector.foreign_bytes(gpu))
        return others

    def _model(self, one: Tracked) -> dict[str, Any]:
        row = one.row
        expiry = self._backend.keepalive.expiry(one) or row.expires_at
        return {
            "name": one.name,
            "bytes": row.size_vram_bytes,
            "on_cpu_bytes": max(0, row.size_bytes - row.size_vram_bytes),
            "context": one.context_length,
            "in_flight": one.in_flight,
            "slots": one.slots.count or None,
            "served": one.served - one.in_flight,
            "kept": one.is_kept,
            "ours": self._backend.world.residents.is_ours(one),
            "unloads_at": None if one.in_flight else self._shown_expiry(expiry),
            "cards": sorted(one.held_bytes),
        }

    def _shown_expiry(self, expiry: datetime) -> int | None:
        at_s = expiry.timestamp()
        return round(at_s) if at_s - self._unix_now() < NEVER_S else None

    def _loading(self) -> dict[str, Any] | None:
        loading = self._backend.line.loading
        if loading is None:
            return None
        names = (self._backend.installed.by_weights(weights) for weights in loading.plan.evict)
        evicts = [facts.name for facts in names if facts is not None]
        facts, costs = loading.facts, self._backend.residency.load_times.costs
        if self._seen is None or self._seen[0] is not loading:
            self._seen = loading, self._backend.now()
        return {
            "model": facts.name,
            "evicts": evicts,
            "cards": list(loading.plan.cards),
            "since": self._shown_since(self._seen[1]),
            "expected_s": round(costs.load_s(facts.weights, facts.size_bytes), 1),
        }

    def _queue(self) -> list[dict[str, Any]]:
        """Return the waiting requests, oldest first: what each waits for, since when."""
        rows = []
        for position, (weights, since_s, team) in enumerate(self._backend.line.waiting_for(), 1):
            facts = self._backend.installed.by_weights(weights)
            model = facts.name if facts is not None else ""
            rows.append({"position": position, "model": model, "since": self._shown_since(since_s), "team": team})
        return rows

    def _shown_since(self, since_s: float) -> float:
        """Return a time of the loop as Unix time."""
        return round(since_s + self._unix_now() - self._backend.now(), 1)


def within(blocks: list[dict[str, Any]], total_bytes: int) -> list[dict[str, Any]]:
    """Return the blocks, the rest of the card as free memory; together never more than the card has."""
    left, kept = total_bytes, []
    for block in blocks:
        size = min(left, block["bytes"])
        left -= size
        if size > 0:
            kept.append({**block, "bytes": size})
    return [*kept, {"kind": "free", "model": "", "bytes": left}]
