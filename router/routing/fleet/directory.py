"""The names that clients see where there are several backends, and on which of them models are managed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.core.ollama.names import key_of
from router.core.teams.team import Team
from router.errors import BadRequest, ModelNotFound
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.chains import Chains
from router.routing.directory import Directory, Managed, numbers_of
from router.routing.fleet.away import Away, not_answering
from router.routing.fleet.managed import Uploads
from router.routing.fleet.place import Catalog, Place, Union
from router.routing.ruled import RuledChain


class FleetDirectory(Directory):
    """Answers questions about names on all backends. `best` returns the place that would serve a chain now."""

    def __init__(
        self, places: Sequence[Place], chains: Chains, away: Away, best: Callable[[str, RuledChain], Place]
    ) -> None:
        super().__init__(places[0].backend, chains, places[0].decisions)
        self._places = places
        self._best = best
        self._away = away
        self._union_of_up = Union(lambda: tuple(place.backend.world.catalog for place in places if place.is_up))
        self._uploads = Uploads()

    @property
    def has_several(self) -> bool:
        """True: answers say which backend they are from."""
        return True

    async def settled(self) -> None:
        """Return when it is known which backends answer, or soon after the start."""
        await self._away.settled()

    def sources(self, _kind: str = "") -> tuple[Directory, ...]:
        """Return the backends whose lists are shown: all that are up. Raises UpstreamError if none is."""
        return tuple(place.directory for place in self._up())

    def _listed_catalog(self) -> Catalog:
        return self._union_of_up()

    def _up(self) -> list[Place]:
        up = [place for place in self._places if place.is_up]
        if not up:
            raise not_answering(self._places)
        return up

    async def shown_by(self, name: str, team: Team | None = None) -> tuple[Directory, str]:
        """Return the backend that shows a model: one that has it, or would serve the chain of that name now."""
        await self.settled()
        up = self._up()
        key = key_of(name)
        having = [place for place in up if key in place.backend.world.catalog]
        if having:
            return having[0].directory, name
        chain = self._chains.find(name, self._decisions.catalog(), rules=self._chains.rules_of(team))
        if chain is None:
            return up[0].directory, name
        place = self._best(name, chain)
        if away := self._away.having(chain):
            raise not_answering(away)
        if not place.variants_of(chain):
            raise ModelNotFound(f"model '{name}' not found")
        return place.directory, await place.directory.show_name(name, team)

    async def read(self, request: UpstreamRequest) -> UpstreamResponse:
        """Ask the first backend that is up what is the same on all: a show without a name is refused alike."""
        await self.settled()
        return await self._up()[0].directory.read(request)

    def catalog_changed(self) -> None:
        """Note that models may have changed on any backend."""
        for place in self._places:
            place.directory.catalog_changed()

    def is_ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether a backend can be used, with the details of each for `/readyz`."""
        rows = {place.name: place.directory.is_ready() for place in self._places}
        up = [details for is_up, details in rows.values() if is_up]
        first = up[0] if up else next(iter(rows.values()))[1]
        errors = "; ".join(f"{name}: {details['error']}" for name, (is_up, details) in rows.items() if not is_up)
        backends = {name: {"ready": is_up, **details} for name, (is_up, details) in rows.items()}
        return bool(up), {**first, "upstream": bool(up), "error": errors, "backends": backends}

    async def version(self) -> str:
        """Return the lowest version of the backends that are up: clients use it to enable features."""
        await self.settled()
        versions = [place.backend.world.version for place in self._up()]
        return min(versions, key=numbers_of)

    # --- where models are managed ------------------------------------------------------------------------------

    def targets(self, what: Managed, asked: str = "") -> tuple[Directory, ...]:
        """Return the backends on which models are managed: the one that is asked for, else where they belong.

        Raises BadRequest, UpstreamError.
        """
        up, named = self._up(), next((place for place in self._places if place.name == asked), None)
        if asked and named is None:
            names = ", ".join(place.name for place in self._places)
            raise BadRequest(f"X-Router-Backend: there is no backend {asked[:64]!r}, only {names}")
        found = self._uploads.targets(what, named, up, self._absent)
        return tuple(place.directory for place in found)

    def _absent(self, name: str) -> None:
        """Raise UpstreamAway for a model that only places have that are away."""
        if away := self._away.having_model(name):
            raise not_answering(away)
