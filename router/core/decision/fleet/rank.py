"""The order of the places for a request, by one decision each.

1. CHAIN     A place that would serve a bigger variant comes before all that would serve a smaller one.
2. HOLDERS   Within one variant those that hold it come first, then those that load it. Among the holders the same
             conversation goes to the same one, unless that has too much to do (`holders.py`).
3. COPIES    Then where it can be loaded: beside what is loaded, after unloading what is idle, unverified. A copy comes
             before the holders only if the best of them would let the request wait for longer than the load takes.
4. CARDS     Of the places for a copy those with the smallest cards that can take it come first, so that the big ones
             stay free for big models; among equal ones rendezvous order, without those that have too much to do.
5. WAITS     Then where busy models must become idle first: where least waits.
6. HOPELESS  Where nothing fits, and last where there is no GPU; then those away that have a variant, and those without.

`explain` shows the order with the reason of each. Pure: no I/O, no clock, no await, no log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.core.decision.fleet.holders import LOAD_FACTOR, Holders, bound
from router.core.decision.fleet.offer import Offer, Tier, tier_of
from router.core.decision.fleet.rendezvous import ordered, seed_of
from router.core.units import GIB

COPY_MARGIN_S = 1.0
"""A further copy must save at least this much: estimates of both waits are rough."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One place in the order. `tier` is None where no variant can be served; `reason` is for people."""

    offer: Offer
    tier: Tier | None
    reason: str

    @property
    def place(self) -> str:
        """The name of the place."""
        return self.offer.place

    @property
    def is_usable(self) -> bool:
        """True if a variant can be served there without spilling."""
        return self.tier is not None


def rank(
    offers: Iterable[Offer],
    conversation: int = 0,
    load_factor: float = LOAD_FACTOR,
    most_busy: float | None = None,
) -> tuple[Ranked, ...]:
    """Return all places, the best first, by the rules of this module. `conversation` is 0 if there is none.

    `most_busy` is how many requests a place may have before a copy goes elsewhere, where these are not all places; None
    = by the mean of these.
    """
    able: dict[int, list[Offer]] = {}
    rest = []
    for offer in offers:
        if offer.chosen is not None:
            able.setdefault(offer.position, []).append(offer)
        else:
            rest.append(offer)
    found: list[Ranked] = []
    for position in sorted(able):  # rule 1
        found += _of_one_variant(able[position], conversation, load_factor, most_busy)
    return (*found, *_hopeless(rest))


def _of_one_variant(
    offers: Sequence[Offer], conversation: int, load_factor: float, most_busy: float | None
) -> list[Ranked]:
    by_tier: dict[Tier, list[Offer]] = {}
    for offer in offers:
        assert offer.chosen is not None
        by_tier.setdefault(tier_of(offer.chosen), []).append(offer)
    holders = [*_holders(by_tier.get(Tier.HOLDS, []), conversation, load_factor), *_loading(by_tier)]
    copies = [
        copy
        for tier in (Tier.BESIDE, Tier.EVICTS, Tier.TRIES)
        for copy in _copies(by_tier.get(tier, ()), load_factor, most_busy)
    ]
    waits = sorted(by_tier.get(Tier.WAITS, ()), key=lambda offer: (offer.copy_s, offer.busy, offer.place))
    order = (*_with_copies(holders, copies), *waits)
    return [Ranked(offer, tier_of(offer.chosen), _reason(offer)) for offer in order if offer.chosen is not None]


def _holders(offers: Sequence[Offer], conversation: int, load_factor: float) -> list[Offer]:
    """Apply rule 2 to those that hold the variant."""
    by_place = {offer.place: offer for offer in offers}
    if not by_place:
        return []
    names = Holders(tuple(by_place)).order(conversation, lambda place: by_place[place].load, load_factor)
    return [by_place[name] for name in names]


def _loading(by_tier: dict[Tier, list[Offer]]) -> list[Offer]:
    return sorted(by_tier.get(Tier.LOADING, ()), key=lambda offer: (offer.wait_s, offer.place))


def _copies(offers: Sequence[Offer], load_factor: float, most_busy: float | None) -> list[Offer]:
    """Apply rule 4 to places of one tier."""
    if not offers:
        return []
    first = offers[0].chosen
    order = order_for(first.variant.model if first is not None else "", (offer.place for offer in offers))
    at = {place: number for number, place in enumerate(order)}
    most = bound([offer.busy for offer in offers], load_factor) if most_busy is None else most_busy
    return sorted(offers, key=lambda offer: (*copy_rank(offer.busy, most, offer.card_bytes), at[offer.place]))


def order_for(model: str, places: Iterable[str]) -> list[str]:
    """Return the places in the order in which they want a model that is loaded nowhere."""
    return ordered(seed_of(model), places)


def copy_rank(busy: int, most: float, card_bytes: int) -> tuple[bool, int]:
    """Return by what places for a copy are told apart before their order: the lowest first."""
    return busy > most, round(card_bytes / GIB)


def _with_copies(holders: Sequence[Offer], copies: Sequence[Offer]) -> list[Offer]:
    """Apply rule 3: the holders, the copies after them, or before them if waiting is dearer than loading."""
    if not (holders and copies):
        return [*holders, *copies]
    best_s = min(offer.wait_s for offer in holders)
    cheaper = [offer for offer in copies if offer.copy_s + COPY_MARGIN_S < best_s]
    return [*cheaper, *holders, *(offer for offer in copies if offer not in cheaper)]


def _hopeless(offers: Sequence[Offer]) -> list[Ranked]:
    """Apply rule 6. The biggest cards first: `nothing_fits` may let a model spill there, and less of it will."""
    order = sorted(
        offers,
        key=lambda one: (not one.is_installed, bool(one.away), one.is_without_gpu, -one.card_bytes, one.place),
    )
    return [Ranked(offer, None, _why_not(offer)) for offer in order]


def _reason(offer: Offer) -> str:
    chosen = offer.chosen
    assert chosen is not None
    tier, model = tier_of(chosen), chosen.variant.model
    load = f", {offer.load} at work or waiting" if offer.load else ""
    if tier is Tier.HOLDS:
        return f"{model} is resident{load}" + (f", a wait of about {offer.wait_s:.0f} s" if offer.wait_s else "")
    if tier is Tier.LOADING:
        return f"{model} is being loaded{load}"
    cost = f"a load of about {max(1.0, offer.copy_s):.0f} s"
    if tier is Tier.BESIDE:
        return f"{model} fits beside what is loaded: {cost}"
    if tier is Tier.EVICTS:
        return f"{model} fits after unloading {len(chosen.plan.evict) if chosen.plan else 0}: {cost}"
    if tier is Tier.TRIES:
        return f"{model} would be tried, and verified: {cost}"
    return f"{model} fits once busy models are idle: {cost} after that"


def _why_not(offer: Offer) -> str:
    if offer.away:
        return offer.away
    if not offer.is_installed:
        return "no variant is installed"
    return "no GPU: requests would pass unchanged" if offer.is_without_gpu else "no variant fits"
