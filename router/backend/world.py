"""What the router knows of the upstream right now: cards, residents, catalog; refreshed in the background.

One World per backend. `snapshot()` costs no I/O; `refresh()` reads `/api/ps` and the probe anew (before a switch).
Everything here is told by the upstream or measured; what others do behind our back is noticed at the next refresh.
A lost probe: the last reading holds for `stale_after_s`, then memory counts as unknown (verify mode).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from router.adapters.catalog import CatalogReader
from router.adapters.gpu.reading import GpuProcess, ProbeReading, VramProbe
from router.adapters.ollama import ModelServer, PsRow
from router.core.decision.snapshot import Resident, Snapshot
from router.core.ollama.derived_names import is_derived
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.runner import Gpu, RunnerOptions
from router.errors import ProbeError, RouterError
from router.telemetry import ProbeBack, ProbeLost, Telemetry, UpstreamDown, UpstreamUp

NOT_ASKED = "not asked yet"
LOOK_S = 1.0
NO_GPU_S = 60.0
CEILING_S = 600.0
GOING_S = 10.0
"""An unload that was asked for counts as under way so long; then the model is looked at again."""

DEAD_SHARE = 0.5
"""A runner of whose memory the probe finds more than this free again has died, whatever ps says (scheduler.md §9)."""


@dataclass(slots=True)
class Tracked:
    """A resident with what only the router knows of it. Times are loop times."""

    weights: str
    name: str
    row: PsRow
    order: int
    loaded_at_s: float
    held_bytes: dict[int, int] = field(default_factory=dict)
    free_at_load_bytes: dict[int, int] = field(default_factory=dict)
    options: RunnerOptions | None = None
    lease_s: float = 300.0
    client_keep_alive_s: float | None = None
    idle_since_s: float = 0.0
    in_flight: int = 0
    served: int = 0
    is_spilled: bool = False
    is_kept: bool = False
    is_measured: bool = False
    going_until_s: float = 0.0


BACK_SHARE = 0.9
"""This share of what a runner held must be free again before its memory counts as back."""


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Intervals and limits, each a config key (`snapshot.*`, `defaults.*`, `switch.*`)."""

    ps_interval_s: float = 1.0
    catalog_interval_s: float = 30.0
    stale_after_s: float = 10.0
    upgrade_after_s: float = 60.0
    memory_timeout_s: float = 10.0
    gpus: tuple[int | str, ...] | None = None
    has_gpu: bool = True
    keep: frozenset[str] = frozenset()
    name: str = "local"


class World:
    """The state of one backend. All methods run on the loop; only `refresh*` await."""

    def __init__(
        self,
        server: ModelServer,
        catalog_reader: CatalogReader,
        probe: VramProbe | None,
        settings: WorldSettings,
        telemetry: Telemetry,
    ) -> None:
        self.server = server
        self.probe = probe
        self.settings = settings
        self.catalog: Mapping[str, ModelFacts] = {}
        self._installed: Mapping[str, ModelFacts] = {}  # the catalog with derived tags
        self.version = ""
        self.is_up = False
        self.last_error = NOT_ASKED
        self.residents: dict[str, Tracked] = {}
        self.loading: tuple[str, int] | None = None  # weights and num_ctx of the switch under way
        self.wanted: dict[str, int] = {}
        self.epoch = 0
        self._leaving: dict[str, Tracked] = {}  # gone from ps, but requests to it have not ended
        self._no_gpu_until_s = -math.inf
        self._ceiling: tuple[float, int] | None = None  # until when, and bytes
        self.barred: dict[str, tuple[float, str]] = {}  # weights → (until, why)
        self.shown_as: dict[str, str] = {}  # key of a derived tag → the variant it stands for
        self.on_change: Callable[[], None] = lambda: None
        self.on_restart: Callable[[], None] = lambda: None
        self._catalog_reader = catalog_reader
        self._telemetry = telemetry
        self._reading: ProbeReading | None = None
        self._probe_lost = False
        self._floors: deque[tuple[float, dict[int, int]]] = deque()
        self._returning: tuple[float, dict[int, int]] = (-math.inf, {})  # until when at most, and what is waited for
        self._order = 0
        self._catalog_at_s = self._looked_at_s = -math.inf
        self._refreshing: asyncio.Task[None] | None = None
        self._time = asyncio.get_running_loop().time  # on the way of each request: asking for the loop is a system call

    # --- reading -----------------------------------------------------------------------------------------------

    async def refresh(self, *, is_fresh: bool = False) -> None:
        """Read `/api/ps` and the probe now; shared by concurrent callers, and never cut by one of them leaving."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(is_fresh=is_fresh))
        await asyncio.shield(self._refreshing)

    async def refresh_fresh(self) -> None:
        """A refresh that begins after this call: one under way may have read an older world."""
        if self._refreshing is not None and not self._refreshing.done():
            with suppress(Exception):
                await asyncio.shield(self._refreshing)
        await self.refresh(is_fresh=True)

    async def _refresh(self, *, is_fresh: bool) -> None:
        await asyncio.gather(self._read_probe(is_fresh=is_fresh), self._read_upstream())
        self._guess_unmeasured()
        self._find_dead()
        self._note_floor()
        self.on_change()

    def _guess_unmeasured(self) -> None:
        """What others have loaded is not measured: say anew what it holds, by the newest reading."""
        if not self.is_measured:
            return
        for tracked in self.residents.values():
            if not tracked.is_measured and (held := self._guess_held(tracked.row)) != tracked.held_bytes:
                tracked.held_bytes = held
                self.changed()

    def _find_dead(self) -> None:
        """A runner that died stays in ps until its next request, which would load it again behind our back."""
        if self.loading is not None:
            return
        for gpu in self.gpus or ():
            measured = [tracked for tracked in self.residents.values() if tracked.is_measured]
            missing = sum(t.held_bytes.get(gpu.index, 0) for t in measured) - (gpu.total_bytes - gpu.free_bytes)
            for tracked in sorted(measured, key=lambda t: -t.held_bytes.get(gpu.index, 0)):
                held = tracked.held_bytes.get(gpu.index, 0)
                if held and missing > held * DEAD_SHARE and not tracked.is_spilled:
                    tracked.is_spilled, missing = True, missing - held
                    self.changed()

    def going(self, tracked: Tracked) -> None:
        """It is being unloaded: no request may rely on it any more."""
        tracked.going_until_s = _now() + GOING_S
        self.changed()

    def stays(self, tracked: Tracked) -> None:
        """It would not go after all."""
        tracked.going_until_s = 0.0
        self.changed()

    def _note_floor(self) -> None:
        """Remember what others leave of each card; not during a switch, when memory is on its way."""
        gpus, now_s = self.gpus, _now()
        while self._floors and self._floors[0][0] < now_s - self.settings.upgrade_after_s:
            self._floors.popleft()
        if gpus and self.loading is None and not self.is_memory_returning():
            self._floors.append((now_s, self._left_by_others(gpus)))

    def _left_by_others(self, gpus: tuple[Gpu, ...]) -> dict[int, int]:
        """What each card would have free without the residents."""
        return {gpu.index: gpu.free_bytes + self._held_on(gpu.index) for gpu in gpus}

    def _expect_back(self, gone: Tracked) -> None:
        """A resident has left ps by itself or for a client: its memory may take a moment, and so may the reading."""
        if self._floors and self.is_measured and gone.is_measured:
            late = {card: int(held * (1 - BACK_SHARE)) for card, held in gone.held_bytes.items()}
            left = {card: count - late.get(card, 0) for card, count in self._floors[-1][1].items()}
            self._returning = _now() + self.settings.memory_timeout_s, left

    def is_memory_returning(self) -> bool:
        """True while the cards do not show yet what a resident that has gone has given back."""
        until_s, left = self._returning
        gpus = self.gpus if _now() < until_s else None
        if gpus and any(count < left.get(card, 0) for card, count in self._left_by_others(gpus).items()):
            return True
        self.memory_is_back()
        return False

    def memory_is_back(self) -> None:
        """Nothing is waited for: it has been seen, or somebody else has waited."""
        self._returning = -math.inf, {}

    async def refresh_catalog(self) -> None:
        """Read tags and show of what is installed (cached by digest)."""
        self._installed = await self._catalog_reader.refresh()
        self.catalog = {key: facts for key, facts in self._installed.items() if not is_derived(facts.name)}
        self._catalog_at_s = _now()
        self.changed()

    async def look_for(self, name: str) -> None:
        """A name that the catalog does not know: it may have been installed a moment ago. At most one look a second."""
        now_s = _now()
        if now_s - self._catalog_at_s < LOOK_S or now_s - self._looked_at_s < LOOK_S:
            return
        self._looked_at_s = now_s
        looking = asyncio.create_task(self.refresh_catalog())
        with suppress(RouterError):
            await asyncio.shield(looking)

    def catalog_changed(self) -> None:
        """What is installed may have changed: the next refresh reads it anew."""
        self._catalog_at_s = -math.inf

    async def watch(self) -> None:
        """Refresh for ever; the owner cancels it."""
        while True:
            with suppress(RouterError):
                await self.refresh()
            await asyncio.sleep(self.settings.ps_interval_s)

    async def _read_upstream(self) -> None:
        try:
            if not self.is_up:
                self.version = await self.server.version()
            if not self.is_up or _now() - self._catalog_at_s >= self.settings.catalog_interval_s:
                await self.refresh_catalog()
            rows = await self.server.ps()
        except RouterError as error:
            self._went_down(error.message)
            return
        if not self.is_up:
            self.is_up, self.last_error = True, ""
            self.barred.clear()
            self._no_gpu_until_s = -math.inf
            self._telemetry.emit(UpstreamUp(version=self.version, backend=self.settings.name))
            self.on_restart()
        if any(key_of(row.name) not in self._installed for row in rows):
            with suppress(RouterError):
                await self.refresh_catalog()
        self._merge(rows)

    def _went_down(self, message: str) -> None:
        is_news = self.is_up or self.last_error == NOT_ASKED
        self.is_up, self.last_error = False, message
        if is_news:
            self._telemetry.emit(UpstreamDown(error=message, backend=self.settings.name))
            self.changed()

    async def _read_probe(self, *, is_fresh: bool = False) -> None:
        if self.probe is None:
            return
        try:
            reading = await self.probe.read(is_fresh=is_fresh)
        except ProbeError as error:
            if not self._probe_lost:
                self._probe_lost = True
                self._telemetry.emit(ProbeLost(probe=self.probe.name, error=error.message))
            return
        if self._probe_lost:
            self._probe_lost = False
            self._telemetry.emit(ProbeBack(probe=self.probe.name))
        if self._reading is None or reading.gpus != self._reading.gpus:
            self.changed()
        self._reading = reading

    # --- what is known -----------------------------------------------------------------------------------------

    def changed(self) -> None:
        """A fact that decisions depend on has changed: cached decisions are void."""
        self.epoch += 1

    @property
    def gpus(self) -> tuple[Gpu, ...] | None:
        """The cards, restricted to those of the backend; None = no reading; () = there is no GPU."""
        if not self.settings.has_gpu or _now() < self._no_gpu_until_s:
            return ()
        if self._reading is None or _now() - self._reading.taken_at_s > self.settings.stale_after_s:
            return None
        gpus: tuple[Gpu, ...] = self._reading.gpus
        if self.settings.gpus is not None:
            chosen = [gpu for gpu in gpus if gpu.index in self.settings.gpus or gpu.uuid in self.settings.gpus]
            gpus = tuple(replace(gpu, index=index) for index, gpu in enumerate(chosen))
        return gpus if self.is_measured else tuple(self._less_residents(gpu) for gpu in gpus)

    @property
    def is_measured(self) -> bool:
        """True when the probe sees what loads take; a static one only states what an empty card has."""
        return self.probe is not None and self.probe.is_live

    def _less_residents(self, gpu: Gpu) -> Gpu:
        return replace(gpu, free_bytes=max(0, gpu.free_bytes - self._held_on(gpu.index)))

    def _held_on(self, card: int) -> int:
        """What the residents hold of a card."""
        return sum(tracked.held_bytes.get(card, 0) for tracked in self.residents.values())

    def assume_held(self, tracked: Tracked, cards: tuple[int, ...]) -> None:
        """Book a resident that no probe measures: what ps says, and a context, on each of `cards` alike."""
        context = {gpu.index: gpu.context_bytes for gpu in self.gpus or ()}
        share = tracked.row.size_vram_bytes // max(1, len(cards))
        tracked.held_bytes = {card: share + context.get(card, 0) for card in cards}
        self.changed()

    @property
    def processes(self) -> Iterable[GpuProcess]:
        """Processes on the cards, where the probe can name them."""
        return self._reading.processes if self._reading else ()

    def mark_no_gpu(self) -> None:
        """A model loaded alone showed no VRAM at all: there is no GPU, requests pass unchanged, for a minute."""
        self._no_gpu_until_s = _now() + NO_GPU_S
        self.changed()

    def note_ceiling(self, placed_bytes: int) -> None:
        """Without a probe: a model that had the cards for itself could place so much, and spilled."""
        self._ceiling = (_now() + CEILING_S, placed_bytes)
        self.changed()

    def snapshot(self, *, may_upgrade: bool = True) -> Snapshot:
        """Everything that a decision may look at, frozen. No I/O."""
        now_s = _now()
        return Snapshot(
            gpus=self.gpus,
            residents=tuple(self._resident(tracked, now_s) for tracked in self.residents.values()),
            catalog=self.catalog,
            may_upgrade=may_upgrade,
            loading=self.loading,
            floor_bytes=self._floor_bytes(),
            ceiling_bytes=self._ceiling[1] if self._ceiling is not None and now_s < self._ceiling[0] else None,
            barred={weights: why for weights, (until_s, why) in self.barred.items() if until_s > now_s},
        )

    def _floor_bytes(self) -> dict[int, int]:
        floors: dict[int, int] = {}
        for _, left in self._floors:
            for card, count in left.items():
                floors[card] = min(floors.get(card, count), count)
        return floors

    def bar(self, weights: str, for_s: float, why: str) -> None:
        """Do not try these weights for a while: they just failed to load."""
        self.barred[weights] = (_now() + for_s, why)
        self.changed()

    def _resident(self, tracked: Tracked, now_s: float) -> Resident:
        row = tracked.row
        return Resident(
            name=tracked.name,
            weights=tracked.weights,
            size_bytes=row.size_bytes,
            size_vram_bytes=row.size_vram_bytes,
            context_length=row.context_length,
            held_bytes=tracked.held_bytes,
            free_at_load_bytes=tracked.free_at_load_bytes,
            options=tracked.options,
            order=tracked.order,
            keep_alive_s=tracked.lease_s,
            in_flight=tracked.in_flight,
            wanted=self.wanted.get(tracked.weights, 0),
            kept=tracked.is_kept,
            is_spilled=tracked.is_spilled,
            is_going=now_s < tracked.going_until_s,
        )

    def weights_of(self, name: str, digest: str = "") -> str:
        """The weights blob behind a name of `/api/ps`; the name's own key where the catalog does not know it."""
        key = key_of(name)
        facts = self._installed.get(key)
        if facts is not None and digest and facts.digest and facts.digest != digest:
            return f"gone:{digest}"  # the name was pulled or created anew while the old weights are loaded
        return facts.weights if facts is not None and facts.weights else key

    def _merge(self, rows: list[PsRow]) -> None:
        """Take over what `/api/ps` says: new rows were loaded by somebody, missing ones have gone."""
        now_s = _now()
        seen = {self.weights_of(row.name, row.digest): row for row in rows}
        for weights in [weights for weights in self.residents if weights not in seen]:
            gone = self.residents.pop(weights)
            self._expect_back(gone)
            if gone.in_flight:
                self._leaving[weights] = gone
            self.changed()
        for weights, row in seen.items():
            tracked = self.residents.get(weights)
            if tracked is None:
                self.add(weights, row, now_s=now_s)
            elif (tracked.row.size_bytes, tracked.row.size_vram_bytes, tracked.row.context_length) != (
                row.size_bytes,
                row.size_vram_bytes,
                row.context_length,
            ):
                self._reloaded(tracked, row)
            else:
                tracked.row = row

    def _reloaded(self, tracked: Tracked, row: PsRow) -> None:
        """Somebody has loaded it with other options: nothing that we knew of it holds."""
        tracked.row, tracked.options, tracked.is_spilled = row, None, False
        tracked.held_bytes, tracked.is_measured = self._guess_held(row), False
        tracked.free_at_load_bytes = {}
        self.changed()

    def add(self, weights: str, row: PsRow, *, now_s: float, options: RunnerOptions | None = None) -> Tracked:
        """A resident that has just been seen or loaded."""
        self._order += 1
        name = self.shown_as.get(key_of(row.name), row.name)
        tracked = Tracked(weights, name, row, self._order, now_s, self._guess_held(row), options=options)
        tracked.idle_since_s, tracked.is_kept = now_s, key_of(name) in self.settings.keep
        if (before := self._leaving.pop(weights, None)) is not None and before.in_flight:
            before.order, before.row, before.name, before.options = tracked.order, row, name, options
            before.held_bytes, before.loaded_at_s = tracked.held_bytes, now_s
            before.is_measured = before.is_spilled = False
            before.going_until_s, tracked = 0.0, before
        self.residents[weights] = tracked
        self.changed()
        return tracked

    def _guess_held(self, row: PsRow) -> dict[int, int]:
        """What a runner holds per card where it was not measured: ps' figure on the fullest cards, plus a context."""
        gpus = self.gpus
        if not gpus:
            return {}
        if not self.is_measured:
            roomiest = max(gpus, key=lambda gpu: gpu.free_bytes)
            return {roomiest.index: row.size_vram_bytes + roomiest.context_bytes}
        left, held = row.size_vram_bytes, {}
        known = [tracked for tracked in self.residents.values() if tracked.row is not row]
        for gpu in sorted(gpus, key=lambda gpu: gpu.free_bytes - gpu.total_bytes):
            others = sum(tracked.held_bytes.get(gpu.index, 0) for tracked in known)
            share = min(left, max(0, gpu.total_bytes - gpu.free_bytes - others))
            if share > 0:
                held[gpu.index] = min(share + gpu.context_bytes, gpu.total_bytes - gpu.free_bytes - others)
                left -= share
        return held

    # --- requests in flight ------------------------------------------------------------------------------------

    def enter(self, weights: str) -> Tracked | None:
        """A request goes to the resident: it may not be unloaded until `leave`. None when it has gone meanwhile."""
        tracked = self.residents.get(weights)
        if tracked is not None:
            tracked.in_flight += 1
            tracked.served += 1
        return tracked

    def leave(self, tracked: Tracked) -> None:
        """The request has ended, on whatever path."""
        tracked.in_flight -= 1
        if tracked.in_flight == 0:
            tracked.idle_since_s = self._time()
            self.on_change()


def _now() -> float:
    return asyncio.get_running_loop().time()
