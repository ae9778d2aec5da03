"""Why the variant that was asked for does not serve where there are several places: what the best of them says of it.

A place that serves a smaller variant knows only of itself that the bigger one is not installed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from router.core.decision.fleet.offer import Offer
from router.core.decision.fleet.rank import Ranked
from router.core.decision.verdict import USABLE, Verdict, VerdictKind, in_words

_BEST_FIRST = (
    VerdictKind.HELD_BACK,
    VerdictKind.FAILED,
    VerdictKind.SPILLED,
    VerdictKind.TOO_BIG,
    VerdictKind.NO_GPU,
    VerdictKind.CONTEXT,
    VerdictKind.INCAPABLE,
    VerdictKind.MISSING,
)
_WHEREVER = frozenset({VerdictKind.CONTEXT, VerdictKind.INCAPABLE})
"""Verdicts on a model that are the same on all places."""


class PassedOver(NamedTuple):
    """Why the first variant of a chain does not serve: in words for people, and as the `cause` of a decision.

    Both are "" if it serves, or if nothing more is known than what the place that serves says.
    """

    words: str = ""
    cause: str = ""


NOT_PASSED_OVER = PassedOver()


def passed_over(ranked: Sequence[Ranked]) -> PassedOver:
    """Return why the first place of the order does not serve the first variant, as the best place for it says."""
    best = ranked[0].offer
    if best.chosen is None or best.decision is None or best.position == 0:
        return NOT_PASSED_OVER
    model = best.decision.verdicts[0].variant.model
    offers = [one.offer for one in ranked]
    out = next(_unusable(offers), None)
    found = _best_verdict(offers)
    if found is None or (found[1].kind is VerdictKind.MISSING and out is not None):
        return PassedOver(f"{model} is on {out[0]}, which {out[1]}") if out is not None else NOT_PASSED_OVER
    words = _in_words(*found, offers)
    return PassedOver(
        f"{words}, and {out[0]}, which has it, {out[1]}" if out is not None else words, found[1].kind.name.lower()
    )


def reason_of(ranked: Sequence[Ranked]) -> str:
    """Return why the first place of an order serves what it serves; "" if it makes no decision."""
    decision = ranked[0].offer.decision
    return decision.reason_with(passed_over(ranked).words) if decision is not None else ""


def _unusable(offers: Iterable[Offer]) -> Iterator[tuple[str, str]]:
    """Yield the places that have the variant but cannot be used, each with why."""
    for offer in offers:
        first = _verdict(offer)
        if first is not None and offer.away and first.kind in USABLE:
            yield offer.place, "is left out after failures"
        elif first is None and offer.has_first:
            yield offer.place, "is away" if offer.away else "has no GPU"


def _best_verdict(offers: Iterable[Offer]) -> tuple[str, Verdict] | None:
    """Return the place that comes nearest to serving the variant, and its verdict; None if no place has one."""
    found = [
        (offer.place, first) for offer in offers if (first := _verdict(offer)) is not None and first.kind in _BEST_FIRST
    ]
    return min(found, key=lambda one: (_BEST_FIRST.index(one[1].kind), _short_bytes(one[1])), default=None)


def _verdict(offer: Offer) -> Verdict | None:
    return offer.decision.verdicts[0] if offer.decision is not None and offer.decision.verdicts else None


def _short_bytes(verdict: Verdict) -> int:
    return verdict.need_bytes - verdict.have_bytes


def _in_words(place: str, verdict: Verdict, offers: Sequence[Offer]) -> str:
    if verdict.kind is VerdictKind.MISSING:
        is_any_away = any(offer.decision is None for offer in offers)
        return in_words(verdict, "any backend that answers" if is_any_away else "")
    if verdict.kind in _WHEREVER:
        return in_words(verdict)
    firsts = [_verdict(offer) for offer in offers]
    is_everywhere = all(first is not None and first.kind is VerdictKind.TOO_BIG for first in firsts)
    return in_words(verdict, "every backend" if is_everywhere else place)
