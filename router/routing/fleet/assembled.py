"""Connects what routes requests: to one backend directly, to several through the fleet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from router.backend.backend import Backend
from router.config import ChainRules, Config
from router.core.decision.fleet.rank import Ranked
from router.core.payload.read import InferenceRequest
from router.routing.chains import Chains
from router.routing.conversations import Conversations
from router.routing.directory import Directory
from router.routing.dispatching import Dispatching
from router.routing.fleet.away import Away
from router.routing.fleet.choosing import Choosing
from router.routing.fleet.directory import FleetDirectory
from router.routing.fleet.failures import Failures
from router.routing.fleet.fleet import Fleet
from router.routing.fleet.offers import Offers
from router.routing.fleet.place import Place, Union
from router.routing.ruled import RuledChain, RulesInForce
from router.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Routes:
    """What routes requests: a place for each backend, and what chooses among them. `offers` is None if there is one."""

    places: tuple[Place, ...]
    chains: Chains
    dispatcher: Dispatching
    directory: Directory
    offers: Offers | None = None

    def ranked(self, request: InferenceRequest, chain: RuledChain, team: str = "") -> Sequence[Ranked]:
        """Return the places for a plain request of a team, the best first; nothing if there is only one."""
        return self.offers.explained(request, chain, team) if self.offers is not None else ()

    def best(self, request: InferenceRequest, chain: RuledChain) -> Place:
        """Return the place that would serve a plain request now."""
        ranked = self.ranked(request, chain)
        return next((place for place in self.places if ranked and place.name == ranked[0].place), self.places[0])

    def forget_rules(self, teams: Collection[str]) -> None:
        """Drop what was remembered by the rules before a reload; requests that keep them find it out once more."""
        self.chains.forget()
        for place in self.places:
            place.decisions.forget(teams)


def routes_to(backends: Mapping[str, Backend], config: Config, rules: RulesInForce, telemetry: Telemetry) -> Routes:
    """Return what routes requests to these backends."""
    chains, all_of_them = Chains(rules), tuple(backends.values())
    if len(all_of_them) == 1:
        place = Place(all_of_them[0], config, chains, rules, telemetry)
        return Routes((place,), chains, place.dispatcher, place.directory)
    for times in (all_times := [backend.residency.load_times for backend in all_of_them]):
        times.learn_from(other for other in all_times if other is not times)
    catalog = Union(lambda: tuple(backend.world.catalog for backend in all_of_them))
    conversations = Conversations(config.defaults.conversations)
    failures = Failures(config.fleet, telemetry, all_of_them[0].now)

    def is_mine(name: str, model: str, chain_rules: ChainRules) -> bool:
        chain = chains.find(model, catalog(), rules=chain_rules)
        return chain is None or routes.best(InferenceRequest(model), chain).name == name

    places = tuple(
        Place(
            backend,
            config,
            chains,
            rules,
            telemetry,
            catalog=catalog,
            conversations=conversations,
            elsewhere=failures,
            is_mine=is_mine,
        )
        for backend in all_of_them
    )
    offers = Offers(places, failures, config.fleet.load_factor)
    away = Away(places)
    choosing = Choosing(places, chains, offers, failures, away, config.queue.wait_s)
    fleet = Fleet(places, chains, choosing, failures)

    def best(model: str, chain: RuledChain) -> Place:
        return routes.best(InferenceRequest(model), chain)

    routes = Routes(places, chains, fleet, FleetDirectory(places, chains, away, best), offers)
    return routes
