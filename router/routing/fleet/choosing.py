"""Which place a request goes to: by the ranking, or by what it needs if no decision is to be made for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Sequence

from router.backend.tracked import Tracked
from router.core.decision.fleet.offer import Tier
from router.core.decision.fleet.passed_over import passed_over
from router.core.decision.fleet.rank import COPY_MARGIN_S, Ranked
from router.core.decision.lasting import is_lasting
from router.core.decision.report import lines_of
from router.errors import NoVariantFits, UpstreamAway
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.fleet.away import RETRY_S, Away, until_done
from router.routing.fleet.failures import Failures
from router.routing.fleet.offers import Offers
from router.routing.fleet.place import Place
from router.routing.fleet.stays import Stays
from router.routing.outcomes import LOOK_AGAIN_S, Blocked
from router.routing.ruled import RuledChain

FACTS_S = 2.0
"""How long a request waits for facts about its models on all backends."""

BUSY_S = 60.0
"""Assumed time until models that are in use become idle."""


class Choosing:
    """Chooses among places. `wait_s` bounds `nothing_fits: wait`."""

    def __init__(
        self, places: Sequence[Place], chains: Chains, offers: Offers, failures: Failures, away: Away, wait_s: float
    ) -> None:
        self._places = {place.name: place for place in places}
        self._chains = chains
        self._offers = offers
        self._failures = failures
        self._away = away
        self._wait_s = wait_s
        self._stays = Stays()
        self._now = places[0].backend.now

    def choose(self, call: Call) -> Place | Blocked:
        """Return the place for a call; Blocked if something must be awaited before that is known."""
        up, request = [place for place in self._places.values() if place.is_up], call.request
        if not up or (len(up) < len(self._places) and self._away.is_starting()):
            return Blocked("upstream", self._away.reach)
        if not request.has_model:
            return up[0]
        unread = [place for place in up if place.decisions.lacks_facts(request.model, call.chain_rules)]
        if unread and call.visit is not None and not call.visit.moves:
            return Blocked("facts", lambda: self._read_facts(call, unread))
        destinations = up[0].decisions.destinations
        if destinations.has_automatic and destinations.is_automatic(call) and not request.is_automatic:
            call.use_default_options()
        chain = up[0].decisions.chain_of(call)
        if chain is None:
            return self._without_chain(call, up)
        if request.options_error or request.is_unload:
            return self._with_model(chain, up, unloads_as=call.unloads_as if request.is_unload else None)
        ranked = self._offers.ranked(call, chain)
        best = ranked[0]
        if (best.offer.away or not best.offer.is_installed) and (having := self._away.having(chain)):
            return self._awaited(call, having)
        if call.visit is not None:
            call.visit.pass_over(passed_over(ranked))
        self._failures.begin(best.offer)
        return self._places[best.place]

    def _without_chain(self, call: Call, up: Sequence[Place]) -> Place | Blocked:
        """Return the place for a name without a chain: that which has it from another server, else any."""
        name = call.request.model
        having = [place for place in up if place.has_model(name)]
        if not having and self._chains.is_local(name) and not call.is_looked_up:
            call.mark_looked_up()
            return Blocked("name", lambda: until_done((place.backend.installed.look_up() for place in up), FACTS_S))
        if not having and (away := self._away.having_model(name)):
            return self._awaited(call, away)
        return (having or up)[0]

    def _awaited(self, call: Call, away: Sequence[Place]) -> Blocked:
        """Return what blocks a request that only places can serve that are away. With `nothing_fits: wait` it waits."""
        rule = call.nothing_fits or self._chains.rule(call.request.model, call.chain_rules).nothing_fits

        async def until() -> None:
            try:
                await self._away.reach_one_of(away)
            except UpstreamAway:
                if rule != "wait" or self._now() - call.since_s >= self._wait_s:
                    raise
                await asyncio.sleep(LOOK_AGAIN_S)

        return Blocked("upstream", until)

    def _with_model(self, chain: RuledChain, up: Sequence[Place], *, unloads_as: str | None) -> Place | Blocked:
        """Return the place for a request that needs no decision: where a variant is loaded, or else installed.

        An unload, of the team `unloads_as`, is for all of them: on the others the router itself unloads.
        """
        loaded = [place for place in up if any(_resident(place, variant.model) for variant in chain.variants)]
        for place in loaded[1:] if unloads_as is not None else ():
            for variant in chain.variants:
                if (tracked := _resident(place, variant.model)) is not None:
                    place.backend.keepalive.apply(tracked, 0.0, unloads_as or "")
        installed = [place for place in up if place.variants_of(chain)]
        if not (loaded or installed) and (having := self._away.having(chain)):
            return Blocked("upstream", lambda: self._away.reach_one_of(having))
        return (loaded or installed or up)[0]

    def has_others(self, call: Call, failed: Collection[str]) -> bool:
        """Return True if a place that has not failed a call could serve it."""
        up = [place for place in self._places.values() if place.is_up and place.name not in failed]
        chain = up[0].decisions.chain_of(call) if up and call.request.has_model else None
        if chain is None:
            return False
        return any(one.is_usable and one.place not in failed for one in self._offers.ranked(call, chain))

    def refused_by_all(self, call: Call, place: Place, error: NoVariantFits) -> NoVariantFits:
        """Return the refusal of a place with why the others cannot serve the request either.

        It says that waiting does not help only if that is so of each, and none is away that may have a variant.
        """
        chain = place.decisions.chain_of(call)
        if chain is None:
            return error
        others = [one for one in self._offers.ranked(call, chain) if one.place != place.name]
        why = "; ".join(
            f"{one.place}: {lines_of(one.offer.decision) if one.offer.decision else one.reason}" for one in others
        )
        text = f"{place.name}: {error.message}; {why}"
        if all(self._never_fits(one, chain) for one in others):
            return type(error)(text, retry_after_s=error.retry_after_s)
        return NoVariantFits(text, retry_after_s=error.retry_after_s or RETRY_S)

    def _never_fits(self, one: Ranked, chain: RuledChain) -> bool:
        """Return True if a place cannot serve a chain, however long a request waits for it."""
        place = self._places[one.place]
        if one.offer.decision is not None:
            return is_lasting(one.offer.decision, place.backend.cards.gpus)
        return place.backend.installed.is_known and not place.variants_of(chain)

    def is_better_elsewhere(self, place: Place, call: Call) -> bool:
        """Return True if a request that waits at `place` should go elsewhere: sooner served, or by a bigger variant."""
        chain = place.decisions.chain_of(call)
        if chain is None:
            return not place.is_up
        alike, now_s = self._alike(place, call, chain), self._now()
        waited_s = now_s - call.visit.since_s if call.visit is not None else 0.0
        if self._stays.holds(alike, waited_s, now_s):
            return False
        ranked = self._offers.ranked(call, chain)
        best, here = ranked[0], next(one for one in ranked if one.place == place.name)
        if _is_better(best, here):
            return True
        if not any(_is_better(one, here) for one in ranked):  # not for the sake of its own conversation either
            self._stays.note(alike, waited_s, now_s)
        return False

    def _alike(self, place: Place, call: Call, chain: RuledChain) -> Hashable:
        """Return what the ranking depends on for a request that waits at `place`, but for its conversation and time."""
        key = place.decisions.key(call.request, chain, call.team, place.decisions.kept(call, chain))
        failed = tuple(call.visit.failed) if call.visit is not None else ()
        return place.name, key, call.team, call.needs_slot, failed

    async def _read_facts(self, call: Call, unread: Sequence[Place]) -> None:
        model, rules = call.request.model, call.chain_rules
        await until_done((place.decisions.read_facts(model, rules) for place in unread), FACTS_S)
        if call.visit is not None:
            call.visit.leave()  # waited for once per request


def _is_better(one: Ranked, here: Ranked) -> bool:
    """Return True if a request should leave where it waits for another place."""
    if one is here or not one.is_usable:
        return False
    if not here.is_usable:
        return True
    if one.offer.position != here.offer.position:
        return one.offer.position < here.offer.position
    if here.tier is Tier.LOADING and one.tier not in (Tier.HOLDS, Tier.LOADING) and not here.offer.is_late:
        return False  # its load is under way: a second one would be saved by an estimate at most
    return _in_s(one) + COPY_MARGIN_S < _in_s(here)


def _in_s(ranked: Ranked) -> float:
    """Return in how many seconds a place could serve, as far as that can be estimated."""
    if ranked.tier in (Tier.HOLDS, Tier.LOADING):
        return ranked.offer.wait_s
    return ranked.offer.copy_s + (BUSY_S if ranked.tier is Tier.WAITS else 0.0)


def _resident(place: Place, model: str) -> Tracked | None:
    return place.backend.world.residents.get(place.backend.installed.weights_of(model))
