"""Everything that runs for one configuration, except the listeners: connected, started and stopped. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from router.adapters.gpu.reading import VramProbe
from router.adapters.shared_quotas import SharedQuotas
from router.admin.accounts import Accounts
from router.admin.configuration import Configuration
from router.admin.fleet import inspector_of
from router.admin.fleet_board import board_of
from router.admin.front import FrontBoard, FrontInspector
from router.admin.inspector import Inspector
from router.admin.outage import Outage
from router.admin.reporting import Boarding, Reporting
from router.admin.timeline import Timeline
from router.admin.totals import Totals
from router.api.node import Node
from router.backend.backend import Backend
from router.backend.team_counts import TeamCounts
from router.config import Loaded
from router.core.ollama.model import ModelFacts
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.rights import forget_permits
from router.routing.directing import Directing
from router.routing.dispatching import Dispatching
from router.routing.fleet.assembled import routes_to
from router.routing.fleet.place import Place
from router.routing.front.assembled import front_routes
from router.routing.named import NamedModels
from router.routing.ruled import RulesInForce
from router.telemetry import Notified, RecentDecisions, Reloaded, Supervisor, Telemetry
from router.wiring import build_node, build_store, version_warnings


class Assembled:
    """What runs for any configuration: rules, accounts, and the work in the background."""

    backends: Mapping[str, Backend]
    dispatcher: Dispatching
    directory: Directing
    inspector: Reporting
    node: Node | None = None
    """What fronts ask of this router; None if it is not a node."""

    def __init__(
        self,
        loaded: Loaded,
        telemetry: Telemetry,
        recent: RecentDecisions,
        accounts: Accounts,
        shared: SharedQuotas | None = None,
    ) -> None:
        config, book = loaded.config, loaded.book
        self.telemetry, self.recent = telemetry, recent
        self.accounts, self._shared = accounts, shared
        self.rules = RulesInForce(book)
        self.configuration = Configuration(config, book.serial, book.digest)
        self.upkeep, self._loading = Supervisor(telemetry), Supervisor(telemetry)
        self.named = NamedModels(loaded.named, self._catalog_if_up, telemetry)

    def _catalog_if_up(self) -> Mapping[str, ModelFacts] | None:
        """Return the installed models; None while they are not known."""
        raise NotImplementedError

    async def recall(self, local: MemoryQuotas | None) -> None:
        """Find out what teams have used before the first request: today, and of the limits that routers share.

        `local` is None if it knows.
        """
        if local is not None:
            await self.accounts.restore(local.restore)
        if self._shared is not None:
            self.upkeep.keep("shared_limits", self._shared.watch)
            await self._shared.tried()

    async def start(self) -> None:
        """Read the state, and start the background tasks. May be cancelled."""
        self.upkeep.keep("usage", self.accounts.watch)

    def take_over(self, loaded: Loaded) -> None:
        """Put the rules of a reloaded configuration in force for the requests that begin from now on."""
        self.rules.replace(loaded.book)
        self.named.replace(loaded.named)
        self.configuration.replace(loaded.config, loaded.book.serial, loaded.book.digest)
        self._follow(loaded)
        forget_permits()
        self.telemetry.emit(Reloaded(teams=loaded.book.names))

    def _follow(self, loaded: Loaded) -> None:
        """Have the parts go by the rules of a reloaded configuration."""
        raise NotImplementedError

    def refuse_reload(self, error: str) -> None:
        """Show and count that a reload has failed; what is in force stays."""
        self.configuration.refuse(error)
        self.telemetry.emit(Reloaded(error))

    def retire(self) -> None:
        """Load nothing any more but what waiting requests need: another router has taken over."""
        self._loading.cancel()

    async def stop(self, *, keeps_tags: bool = False) -> None:
        """Stop the background tasks and release everything; idempotent."""
        await self._loading.stop()
        await self.upkeep.stop()
        if self._shared is not None:
            await self._shared.aclose()
        await self._stop_parts(keeps_tags=keeps_tags)
        self.telemetry.flush()
        await self.accounts.stop()

    async def _stop_parts(self, *, keeps_tags: bool) -> None:
        """Stop what the router consists of."""
        raise NotImplementedError

    def stores_up(self) -> dict[str, bool]:
        """Return which of the stores can be used."""
        shared = {"limits": not self._shared.error} if self._shared is not None else {}
        return {**self.accounts.stores_up(), **shared}

    def notes(self) -> dict[str, object]:
        """Return further details for `/readyz`."""
        return {"limits": self._shared.note} if self._shared is not None else {}

    def nodes(self) -> dict[str, int]:
        """Return how many nodes there are; nothing if the router is no front."""
        return {}

    def board(self, totals: Totals, timeline: Timeline) -> Boarding:
        """Return what builds the data of the dashboard."""
        raise NotImplementedError


class Router(Assembled):
    """A router with Ollamas of its own."""

    inspector: Inspector

    def __init__(
        self,
        loaded: Loaded,
        *,
        probes: Mapping[str, VramProbe | None],
        telemetry: Telemetry,
        recent: RecentDecisions,
        outage: Outage | None = None,
        accounts: Accounts,
        unix_now: Callable[[], float],
        shared: SharedQuotas | None = None,
    ) -> None:
        super().__init__(loaded, telemetry, recent, accounts, shared)
        config, self._unix_now = loaded.config, unix_now
        self.store = build_store(config.store.path, lambda text: telemetry.emit(Notified(text, level="warning")))
        counts = TeamCounts()
        self.backends = {
            name: Backend(name, config, probes.get(name), self.store, telemetry, unix_now, counts)
            for name in config.backends
        }
        self.routes = routes_to(self.backends, config, self.rules, telemetry)
        self.directory, self.dispatcher = self.routes.directory, self.routes.dispatcher
        self.inspector = inspector_of(self.routes, telemetry, recent, self.configuration, self.named.notes, outage)
        self.inspector.add_notes(self.notes)
        self.node = build_node(config, self.routes.places[0], self.rules)
        self._warned_of: dict[str, str] = {}

    @property
    def backend(self) -> Backend:
        """The first backend, which is the only one as a rule."""
        return self.routes.places[0].backend

    def _catalog_if_up(self) -> Mapping[str, ModelFacts] | None:
        """Return the installed models; None while a backend does not answer, since it may have others."""
        is_whole = all(backend.world.is_up for backend in self.backends.values())
        return self.routes.places[0].decisions.catalog() if is_whole else None

    async def start(self) -> None:
        """Read the state of the backend, and start the background tasks. May be cancelled."""
        await super().start()
        if self.node is not None:
            self.upkeep.keep("node_models", self.node.watch)
        # At once, so that one that is away does not hold up the others.
        await asyncio.gather(*(place.backend.start(partial(self._ollama_came, place)) for place in self.routes.places))
        for place in self.routes.places:
            self._loading.keep(f"warmup_{place.name}" if len(self.backends) > 1 else "warmup", place.warmup.watch)
        self._loading.keep("named_models", self.named.watch)

    def _ollama_came(self, place: Place) -> None:
        """Warn of an old version, once, and schedule the models to load."""
        version = place.backend.world.version
        if version != self._warned_of.get(place.name):
            self._warned_of[place.name] = version
            for warning in version_warnings(version):
                self.telemetry.emit(Notified(warning, level="warning"))
        place.warmup.restart()

    def _follow(self, loaded: Loaded) -> None:
        for place in self.routes.places:
            place.warmup.restart()
            place.backend.keep_teams(loaded.book.names)
            place.backend.line.configure(loaded.config.fairness)
        self.routes.forget_rules(loaded.book.names)

    async def _stop_parts(self, *, keeps_tags: bool) -> None:
        await asyncio.gather(*(backend.stop(keeps_tags=keeps_tags) for backend in self.backends.values()))
        await self.store.aclose()

    def stores_up(self) -> dict[str, bool]:
        """Return which of the stores can be used."""
        return {**super().stores_up(), "learned": not self.store.error}

    def board(self, totals: Totals, timeline: Timeline) -> Boarding:
        """Return what builds the data of the dashboard."""
        return board_of(self.routes, self.inspector, totals, timeline, self._unix_now)


class FrontRouter(Assembled):
    """A front: nodes in place of Ollamas. It has no card, no line and nothing learned."""

    inspector: FrontInspector

    def __init__(
        self,
        loaded: Loaded,
        telemetry: Telemetry,
        recent: RecentDecisions,
        accounts: Accounts,
        shared: SharedQuotas | None = None,
    ) -> None:
        super().__init__(loaded, telemetry, recent, accounts, shared)
        self.backends = {}
        name, now = next(iter(loaded.config.backends)), asyncio.get_running_loop().time
        self.routes = front_routes(name, loaded.config, self.rules, telemetry, now)
        self.directory, self.dispatcher = self.routes.directory, self.routes.dispatcher
        self.inspector = FrontInspector(self.routes, telemetry, recent, self.configuration, self.named.notes)
        self.inspector.add_notes(self.notes)

    def _catalog_if_up(self) -> Mapping[str, ModelFacts] | None:
        members = self.routes.members
        return members.index.catalog if members.usable() and not members.is_starting else None

    async def start(self) -> None:
        """Begin to find nodes, and wait a moment for what they say. May be cancelled."""
        await super().start()
        await self.routes.members.start()
        await self.routes.members.settled()
        self._loading.keep("named_models", self.named.watch)

    def _follow(self, loaded: Loaded) -> None:
        self.routes.forget_rules(loaded.book.names)

    async def _stop_parts(self, *, keeps_tags: bool) -> None:  # noqa: ARG002 (its nodes have the tags)
        await self.routes.dispatcher.stop()
        await self.routes.members.stop()

    def nodes(self) -> dict[str, int]:
        """Return how many nodes were found, and how many of them can be used."""
        return {"found": len(self.routes.members.all()), "usable": len(self.routes.members.usable())}

    def board(self, totals: Totals, timeline: Timeline) -> Boarding:
        """Return what builds the data of the dashboard."""
        return FrontBoard(self.routes, self.inspector, totals, timeline)
