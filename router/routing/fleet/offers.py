"""What each place offers for a request now: gathered from the backends for `core/decision/fleet/rank.py`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import TypedDict

from router.core.decision.fleet.breaker import TRIAL_S
from router.core.decision.fleet.offer import Offer, Tier, tier_of
from router.core.decision.fleet.rank import Ranked, rank
from router.core.decision.groups import wanted_weights
from router.core.decision.verdict import Decision, VerdictKind
from router.core.payload.read import InferenceRequest
from router.routing.call import Call
from router.routing.fleet.failures import Failures
from router.routing.fleet.place import Place
from router.routing.ruled import RuledChain

KEPT_S = 0.25
"""Decisions that time alone may change are reused for this long: many may wait for one model."""

MOST_KEPT = 1024


class Having(TypedDict):
    """The fields of an offer that say what is installed."""

    is_installed: bool
    has_first: bool


class Offers:
    """Gathers what the places offer. `load_factor` is `fleet.load_factor`."""

    def __init__(self, places: Sequence[Place], failures: Failures, load_factor: float) -> None:
        self._places = places
        self._failures = failures
        self._load_factor = load_factor
        self._now = places[0].backend.now
        self._kept: dict[Hashable, tuple[int, float, Decision]] = {}

    def ranked(self, call: Call, chain: RuledChain) -> tuple[Ranked, ...]:
        """Return all places for a call, the best first."""
        visit = call.visit
        offers = self._of(call.request, chain, call.team, call)
        if visit is not None:
            offers = [_for_visitor(offer, visit.place, visit.failed, self._now() - visit.since_s) for offer in offers]
        return rank(offers, visit.conversation(call.body) if visit is not None else 0, self._load_factor)

    def explained(self, request: InferenceRequest, chain: RuledChain, team: str = "") -> tuple[Ranked, ...]:
        """Return all places for a plain request of a team, the best first."""
        return rank(self._of(request, chain, team), 0, self._load_factor)

    def _of(self, request: InferenceRequest, chain: RuledChain, team: str, call: Call | None = None) -> list[Offer]:
        offers = [
            self._offer(place, request, chain, team, call) if place.is_up else _away(place, chain)
            for place in self._places
        ]
        here = call.visit.place if call is not None and call.visit is not None else ""
        return self._without_failing(offers, here) if self._failures.breakers else offers

    def _without_failing(self, offers: list[Offer], here: str) -> list[Offer]:
        """Return the offers without those of at most half of the places, which have failed again and again.

        If all that could serve the request have failed none is left out: one of them may have recovered. A request that
        is the trial of a place stays there, which is `here`, for as long as its model has to be loaded.
        """
        open_s = {offer.place: self._failures.open_for_s(offer) for offer in offers if not offer.away}
        if 0.0 < open_s.get(here, 0.0) <= TRIAL_S:
            open_s[here] = 0.0
        ejected = sorted((name for name in open_s if open_s[name]), key=lambda name: -open_s[name])
        able = {offer.place for offer in offers if offer.chosen is not None}
        if not (able or open_s.keys()) - set(ejected):
            return offers
        out = ejected[: len(offers) // 2]
        return [
            replace(one, away=f"left out for {open_s[one.place]:.0f} s after failures") if one.place in out else one
            for one in offers
        ]

    def _offer(self, place: Place, request: InferenceRequest, chain: RuledChain, team: str, call: Call | None) -> Offer:
        kept = place.decisions.kept(call, chain) if call is not None else None
        decision = self._decision(place, request, chain, team, kept)
        world, line = place.backend.world, place.backend.line
        weights = wanted_weights(decision)
        tracked, waiting = world.residents.get(weights), world.wanted.get(weights, 0)
        wait_s, is_late = 0.0, False
        if decision.chosen is not None and decision.chosen.kind is VerdictKind.LOADING:
            wait_s, is_late = place.switch_left_s()
        elif tracked is not None:
            wait_s = place.entry_wait_s(tracked, team, needs_slot=call is None or call.needs_slot)
        return Offer(
            place.name,
            decision,
            load=waiting + (tracked.in_flight if tracked is not None else 0),
            busy=line.depth + sum(one.in_flight for one in world.residents.values()),
            wait_s=wait_s,
            queue_s=place.load_wait_s(),
            card_bytes=_card_bytes(place, decision),
            is_late=is_late,
            **_having(place, chain),
        )

    def _decision(
        self, place: Place, request: InferenceRequest, chain: RuledChain, team: str, kept: int | None
    ) -> Decision:
        key = place.name, place.decisions.key(request, chain, team, kept)
        epoch, now_s = place.backend.world.epoch.number, self._now()
        known = self._kept.get(key)
        if known is not None and known[0] == epoch and now_s < known[1] + KEPT_S:
            return known[2]
        decision = place.decisions.decide(request, chain, team, kept)
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[key] = epoch, now_s, decision
        return decision


def _away(place: Place, chain: RuledChain) -> Offer:
    return Offer(place.name, **_having(place, chain), away=place.why_away())


def _having(place: Place, chain: RuledChain) -> Having:
    """Return what a place has of a chain, as far as is known."""
    installed = place.variants_of(chain)
    has_first = bool(installed) and installed[0] == chain.variants[0].model
    return Having(is_installed=bool(installed), has_first=has_first)


def _for_visitor(offer: Offer, place: str, failed: Collection[str], waited_s: float) -> Offer:
    """Return an offer as a request sees it that has been to places, and waits at one of them."""
    if offer.place in failed:
        return replace(offer, away="it has failed for this request")
    if offer.place != place or offer.chosen is None:
        return offer
    if tier_of(offer.chosen) not in (Tier.HOLDS, Tier.LOADING):
        return replace(offer, queue_s=waited_s) if waited_s > offer.copy_s else offer  # the estimate was too low
    is_on_time = offer.chosen.kind is VerdictKind.LOADING and not offer.is_late
    if offer.wait_s and waited_s > offer.wait_s and not is_on_time:
        return replace(offer, wait_s=waited_s, is_late=True)
    return offer


def _card_bytes(place: Place, decision: Decision) -> int:
    """Return the memory of the cards that a load would use, of all cards if there is none."""
    gpus = place.backend.cards.gpus or ()
    plan = decision.chosen.plan if decision.chosen is not None else None
    used = [gpu.total_bytes for gpu in gpus if plan is not None and gpu.index in plan.cards]
    return sum(used or [gpu.total_bytes for gpu in gpus])
