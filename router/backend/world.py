"""The known state of one Ollama, polled in the background and frozen into a Snapshot for each decision.

The state is kept by `Residents` (loaded models), `Cards` (memory) and `Installed` (the catalog). This module reads them
together, and keeps whether Ollama answers at all. `snapshot()` does no I/O; `refresh()` reads `/api/ps` and the probe.
Loads and unloads by other clients of Ollama are noticed at the next refresh.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol

from router.adapters.ollama import ModelServer, PsRow
from router.backend.cards import Cards
from router.backend.epoch import Epoch
from router.backend.health import Health
from router.backend.installed import READ_S, Installed
from router.backend.loads import Loads
from router.backend.residents import Residents
from router.backend.tracked import Tracked
from router.config import Config
from router.core.decision.snapshot import Snapshot
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import is_name, key_of
from router.errors import RouterError, UpstreamError, UpstreamGone
from router.telemetry import Telemetry, UpstreamDown, UpstreamUp

NOT_ASKED = "not asked yet"

AGAIN_S = 0.5
"""Least time between two readings of an Ollama that is away, which requests ask for."""

RISE_PAUSE_S = 0.1
"""Pause between the readings that bring an Ollama up again: one that comes and goes is not back."""


class Signs(Protocol):
    """What looks for the doings of other clients of the same Ollama in readings of ps."""

    def note_rows(self, rows: Mapping[str, PsRow]) -> None:
        """Note the rows by weights, before the residents take them over."""

    def note_gone(self, gone: Iterable[Tracked]) -> None:
        """Note the residents that are not among them any more."""


class World:
    """The state of one backend. All methods run on the event loop; only `refresh*` and `watch` await."""

    def __init__(
        self,
        server: ModelServer,
        installed: Installed,
        residents: Residents,
        cards: Cards,
        epoch: Epoch,
        telemetry: Telemetry,
        name: str,
        config: Config,
    ) -> None:
        self.server = server
        self.installed = installed
        self.residents = residents
        self.cards = cards
        self.epoch = epoch
        self.version, self.last_error = "", NOT_ASKED
        self.loads = Loads(cards, residents, epoch, config.defaults.max_load_wait_s)
        self.wanted: Mapping[str, int] = {}  # weights → number of requests that wait for them
        self.name, self._times = name, (times := config.snapshot)
        self.health = Health(rise=times.rise, fall=times.fall)
        self._asked_at_s = self._probed_at_s = self._failed_at_s = self._read_at_s = -math.inf
        self._stale_s = times.stale_after_s + config.timeouts.control_s
        self._barred: dict[str, tuple[float, str]] = {}  # weights → (until, reason)
        self._on_change: Callable[[], None] = lambda: None
        self._on_restart: Callable[[], None] = lambda: None
        self._signs: Signs | None = None
        self._telemetry = telemetry
        self._refreshing: asyncio.Task[None] | None = None
        self._now = asyncio.get_running_loop().time  # kept: get_running_loop is a system call, too slow per request

    def notify(
        self,
        *,
        on_change: Callable[[], None],
        on_restart: Callable[[], None],
        signs: Signs,
    ) -> None:
        """Set the callbacks: `on_change` after each refresh, `on_restart` when Ollama answers at first or again.

        `signs` is shown each reading of ps, unless a switch is under way or Ollama has just restarted.
        """
        self._on_change, self._on_restart, self._signs = on_change, on_restart, signs

    # --- reading -----------------------------------------------------------------------------------------------

    async def refresh(self, *, is_fresh: bool = False) -> None:
        """Read `/api/ps` and the probe. Concurrent callers share one reading; cancelling one does not cancel it."""
        await self._share(lambda: self._refresh(is_fresh=is_fresh))

    async def _share(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(work())
        await asyncio.shield(self._refreshing)

    async def refresh_fresh(self) -> None:
        """Refresh by a reading that begins after this call: one under way may have seen an older state."""
        if self._refreshing is not None and not self._refreshing.done():
            with suppress(Exception):
                await asyncio.shield(self._refreshing)
        await self.refresh(is_fresh=True)

    async def refresh_surely(self) -> None:
        """Refresh until a reading has succeeded. Raises UpstreamError if Ollama counts as away."""
        await self.refresh_fresh()
        while self.health.is_doubtful:
            await asyncio.sleep(RISE_PAUSE_S)
            await self.refresh_fresh()
        if not self.is_up:
            raise UpstreamError(self.why_away())

    async def look_again(self) -> None:
        """Refresh an Ollama that is away, but soon after a failed reading not at once, however many requests ask."""
        await asyncio.sleep(max(0.0, self._failed_at_s + AGAIN_S - self._now()))
        if not self.is_up:
            await self.refresh()

    async def watch(self) -> None:
        """Read `/api/ps` and the probe, each at its own interval, until cancelled."""
        ps_s, probe_s = self._times.ps_interval_s, self._times.probe_interval_s
        tick_s = min(ps_s, probe_s)
        while True:
            now_s = self._now() + tick_s / 2  # round to the nearest tick, so that jitter does not postpone a reading
            has_ps, has_probe = now_s - self._asked_at_s >= ps_s, now_s - self._probed_at_s >= probe_s
            if has_ps or has_probe:
                await self._share(partial(self._refresh, is_fresh=False, has_ps=has_ps, has_probe=has_probe))
            await asyncio.sleep(tick_s)

    async def _refresh(self, *, is_fresh: bool, has_ps: bool = True, has_probe: bool = True) -> None:
        now_s = self._now()
        if has_ps and has_probe:
            self._asked_at_s = self._probed_at_s = now_s
            await asyncio.gather(self.cards.read(is_fresh=is_fresh), self._read_upstream())
        elif has_ps:
            self._asked_at_s = now_s
            await self._read_upstream()
        else:
            self._probed_at_s = now_s
            await self.cards.read(is_fresh=is_fresh)
        if has_probe:
            self._compare_memory()
        self._on_change()
        if has_ps:
            self._read_at_s = self._now()  # whatever the answer was

    def _compare_memory(self) -> None:
        """Compare the latest reading with what the residents are booked with."""
        self.cards.reconcile()
        if not self.loads.are_on:  # free memory and ps disagree for a moment
            for tracked in self.cards.find_dead():
                self.residents.spilled(tracked)
        self.cards.note_floor(is_switching=self.loads.are_on)
        self.loads.note_runners()

    @property
    def is_up(self) -> bool:
        """True while Ollama counts as one that answers; a reading or two that fail do not change that."""
        return self.health.is_up

    @property
    def is_stale(self) -> bool:
        """True if it is up, and no reading of `/api/ps` has come to its end for longer than one may take."""
        return self.is_up and self._now() - self._read_at_s > self._stale_s

    async def _read_upstream(self) -> None:
        was_up = self.is_up and not self.health.is_doubtful
        try:
            # A runner without a valid name can be neither used nor unloaded: its memory counts as taken by others.
            rows = [row for row in await self._read_ps() if is_name(row.name)]
            if not self.is_up:
                self.version = await self.server.version()
            if not self.is_up or self.installed.is_due:
                await self.installed.refresh()
        except RouterError as error:
            self._failed(error)
            return
        self._answered(is_restarted=not any(map(self._is_known, rows)))
        if not all(self.installed.knows(row.name) for row in rows):  # installed and loaded since the last reading
            with suppress(RouterError):
                await self.installed.refresh()
        # What a runner runs must be known before a request may use it, but one model's show must not hold up the rest.
        await self.installed.read_first([key_of(row.name) for row in rows if not self._is_known(row)], READ_S)
        self._merge(rows, may_be_taken=was_up and not self.loads.are_on)

    async def _read_ps(self) -> list[PsRow]:
        """Return the rows of `/api/ps`, read as often as it takes to come up."""
        rows = await self.server.ps()
        for _ in range(1, self.health.readings_to_rise):
            await asyncio.sleep(RISE_PAUSE_S)
            rows = await self.server.ps()
        return rows

    def _answered(self, *, is_restarted: bool) -> None:
        """Count a good reading; `is_restarted`: nothing is loaded of what was."""
        self.last_error = ""
        has_lost_all = is_restarted and self.health.is_doubtful and self.residents.are_to_stay(self._now())
        is_back = self.health.note_success()
        if not (is_back or has_lost_all):
            return
        self._barred.clear()
        if is_restarted:  # else it was only away, and what runs still bears its numbers
            self.cards.retry_gpu()
        if is_back:
            self._telemetry.emit(UpstreamUp(version=self.version, backend=self.name))
        self._on_restart()

    def _failed(self, error: RouterError) -> None:
        """Count a failed reading. What is loaded goes on being served until Ollama counts as down."""
        is_first = self.last_error == NOT_ASKED
        self.last_error, self._failed_at_s = error.message, self._now()
        # A connection that is refused is no failed answer: nothing listens there, so a request would fail as well.
        if self.health.note_failure(is_certain=isinstance(error, UpstreamGone)) or is_first:
            self._telemetry.emit(UpstreamDown(error=error.message, backend=self.name))
            self.epoch.advance()

    def _is_known(self, row: PsRow) -> bool:
        return self.installed.weights_of(row.name, row.digest) in self.residents

    def _merge(self, rows: list[PsRow], *, may_be_taken: bool) -> None:
        seen = {self.installed.weights_of(row.name, row.digest): row for row in rows}
        signs = self._signs if may_be_taken else None
        if signs is not None:
            signs.note_rows(seen)
        gone = self.residents.merge(seen, self.installed.display_name, self.cards.guess_held, self._now())
        for tracked in gone:
            self.cards.expect_back(tracked)
        self.loads.note_listed(self._asked_at_s)
        if signs is not None:
            signs.note_gone(gone)
        if self.cards.is_unprobed:
            self.cards.capacity.note_together(tracked.row for tracked in self.residents.values())

    # --- state -------------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Mapping[str, ModelFacts]:
        """The installed models by canonical name, without derived tags."""
        return self.installed.catalog

    def why_away(self) -> str:
        """Return the text of the error for requests that Ollama cannot get now."""
        why = self.last_error or "it went away"
        return why if why.startswith("cannot reach") else f"cannot reach Ollama: {why}"

    def snapshot(self) -> Snapshot:
        """Return everything that a decision depends on, frozen. No I/O."""
        now_s = self._now()
        return Snapshot(
            # What a switch loads, or a departed runner still holds, is not other programs': nothing is too big for it.
            gpus=self.cards.undisturbed if self.loads.are_on or self.cards.is_memory_returning() else self.cards.gpus,
            residents=tuple(one.frozen(self.wanted.get(one.weights, 0), now_s) for one in self.residents.values()),
            catalog=self.catalog,
            loading=self.loads.switch,
            left_bytes=self.cards.left_bytes(),
            ceiling_bytes=self.cards.capacity.ceiling_bytes(),
            proven_bytes=self.cards.capacity.proven_bytes,
            unproven=self.cards.check.unproven if self.cards.is_measured else frozenset(),  # else none is ever proven
            awaited=frozenset(self.wanted),
            barred={weights: why for weights, (_, why) in self.bars(now_s).items()},
        )

    def bars(self, now_s: float) -> dict[str, tuple[float, str]]:
        """Return the weights that are left alone now (or ALL_WEIGHTS), until which loop time, and why."""
        return {weights: bar for weights, bar in self._barred.items() if bar[0] > now_s}

    # --- reports from the queue --------------------------------------------------------------------------------

    def want(self, wanted: Mapping[str, int]) -> None:
        """Record the number of waiting requests by weights."""
        self.wanted = wanted

    def unbar(self, weights: str | None) -> None:
        """Lift the bar of these weights, or all bars (None)."""
        for barred in list(self._barred) if weights is None else [weights]:
            self._barred.pop(barred, None)
        self.epoch.advance()

    def bar(self, weights: str, for_s: float, why: str) -> None:
        """Do not load these weights (or ALL_WEIGHTS) for `for_s` seconds: a load just failed."""
        now_s = self._now()
        self._barred = {**self.bars(now_s), weights: (now_s + for_s, why)}
        self.epoch.advance()
