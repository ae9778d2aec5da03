"""Everything that runs for one configuration, except the listeners: connected, started and stopped. No logic."""

from __future__ import annotations

import time

from router.adapters.gpu.reading import VramProbe
from router.admin.accounts import Accounts
from router.admin.configuration import Configuration
from router.admin.inspector import Inspector
from router.admin.outage import Outage
from router.backend.backend import Backend
from router.config import Loaded
from router.core.teams.rights import forget_permits
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.directory import Directory
from router.routing.dispatch import Dispatcher
from router.routing.named import NamedModels
from router.routing.ruled import RulesInForce
from router.routing.warmup import Warmup
from router.telemetry import Notified, RecentDecisions, Reloaded, Supervisor, Telemetry
from router.wiring import build_store, version_warnings


class Router:
    """Everything that runs for one configuration, except the listeners."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        probe: VramProbe | None,
        telemetry: Telemetry,
        recent: RecentDecisions,
        outage: Outage | None = None,
        accounts: Accounts,
    ) -> None:
        config, book = loaded.config, loaded.book
        name = next(iter(config.backends))
        self.telemetry = telemetry
        self.recent = recent
        self.accounts = accounts
        self.store = build_store(config.store.path, lambda text: telemetry.emit(Notified(text, level="warning")))
        self.backend = Backend(name, config, probe, self.store, telemetry, time.time)
        self.rules = RulesInForce(book)
        chains = self._chains = Chains(self.rules)
        decisions = self._decisions = Decisions(self.backend, chains, config.defaults)
        self.directory = Directory(self.backend, chains, decisions)
        self.dispatcher = Dispatcher(self.backend, chains, decisions, config.queue.wait_s, telemetry)
        self.warmup = Warmup(self.backend, decisions, chains, self.rules)
        self.named = NamedModels(loaded.named, self.backend.world, telemetry)
        self.configuration = Configuration(config, book.serial, book.digest)
        self.inspector = Inspector(
            self.backend, self.directory, decisions, telemetry, recent, self.configuration, self.named.notes, outage
        )
        self.upkeep, self._loading = Supervisor(telemetry), Supervisor(telemetry)
        self._warned_of = ""

    async def start(self) -> None:
        """Read the state of the backend, and start the background tasks. May be cancelled."""
        self.upkeep.keep("usage", self.accounts.watch)
        await self.backend.start(self._ollama_came)
        self._loading.keep("warmup", self.warmup.watch)
        self._loading.keep("named_models", self.named.watch)

    def _ollama_came(self) -> None:
        """Warn of an old version, once, and schedule the models to load."""
        version = self.backend.world.version
        if version != self._warned_of:
            self._warned_of = version
            for warning in version_warnings(version):
                self.telemetry.emit(Notified(warning, level="warning"))
        self.warmup.restart()

    def take_over(self, loaded: Loaded) -> None:
        """Put the rules of a reloaded configuration in force for the requests that begin from now on."""
        self.rules.replace(loaded.book)
        self.named.replace(loaded.named)
        self.configuration.replace(loaded.config, loaded.book.serial, loaded.book.digest)
        self.warmup.restart()
        self._forget_rules(loaded.book.names)
        self.backend.keep_teams(loaded.book.names)
        self.backend.line.configure(loaded.config.fairness)
        self.telemetry.emit(Reloaded(teams=loaded.book.names))

    def _forget_rules(self, teams: frozenset[str]) -> None:
        """Drop what was remembered by the rules of before; requests that keep them find it out once more."""
        self._chains.forget()
        self._decisions.forget(teams)
        forget_permits()

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
        await self.backend.stop(keeps_tags=keeps_tags)
        await self.store.aclose()
        self.telemetry.flush()
        await self.accounts.stop()

    def stores_up(self) -> dict[str, bool]:
        """Return which of the stores can be used."""
        return {**self.accounts.stores_up(), "learned": not self.store.error}
