"""What a node seems to offer for a request, by its newest view. It decides again by itself, on fresh readings. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from router.core.decision.fleet.offer import Offer, Tier
from router.core.decision.plan import Plan
from router.core.decision.snapshot import ALL_WEIGHTS
from router.core.decision.verdict import USABLE, Decision, Outcome, Verdict, VerdictKind
from router.core.nodes.catalog import NodeModel
from router.core.nodes.state import LOADS_S, OUT_S, NodeCard, NodeState
from router.core.nodes.view import is_enough
from router.core.nodes.wanted import Wanted, WantedVariant
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB

Load = Callable[[str, str], int]
"""Counts the requests that this front has under way, by the name of a node and a model's weights ("" = all)."""

UNKNOWN_BYTES_PER_S = float(GIB)
"""Assumed speed of a load of which the node does not say how long it takes."""

_OPTIONS = LoadOptions()


class Fit(NamedTuple):
    """Whether a model could be loaded on a node: how, on cards with how much memory, and on which.

    `tier` is None if it does not fit whatever is unloaded.
    """

    tier: Tier | None
    card_bytes: int = 0
    need_bytes: int = 0
    have_bytes: int = 0
    cards: tuple[int, ...] = ()


def fit_of(state: NodeState, key: str, num_ctx: int) -> Fit:
    """Return whether a model could be loaded on a node with so many tokens: on one card if possible, else on all."""
    cards, memory = state.cards, state.view.memory
    if memory == "no_gpu":
        return Fit(None)
    need = state.models.need(key, num_ctx)
    if memory == "verify" or need is None:
        return Fit(Tier.TRIES, sum([card.total_bytes for card in cards]))
    best, need_bytes = None, need.need_bytes
    for at, card in enumerate(cards):
        tier = _tier(need_bytes, card)
        if tier is not None and (best is None or (tier, card.total_bytes) < best[:2]):
            best = (tier, card.total_bytes, at)
    if best is not None:
        return Fit(best[0], best[1], need_bytes, cards[best[2]].free_bytes, (best[2],))
    if need.split_bytes is None or len(cards) < 2:
        total_bytes = max((card.total_bytes for card in cards), default=0)
        return Fit(None, total_bytes, need_bytes, max((sum(card[1:]) for card in cards), default=0))
    whole = NodeCard(*(sum(column) for column in zip(*cards, strict=True)))
    tier = _tier(need.split_bytes, whole)
    have_bytes = sum(whole[1:]) if tier is None else whole.free_bytes
    return Fit(tier, whole.total_bytes, need.split_bytes, have_bytes, tuple(range(len(cards))))


def is_barred(state: NodeState, weights: str) -> bool:
    """Return whether a node loads nothing now, or not these weights."""
    return ALL_WEIGHTS in state.view.barred or weights in state.view.barred


def _tier(need_bytes: int, card: NodeCard) -> Tier | None:
    _, free_bytes, idle_bytes, busy_bytes = card
    if need_bytes <= free_bytes:
        return Tier.BESIDE
    if need_bytes <= free_bytes + idle_bytes:
        return Tier.EVICTS
    return Tier.WAITS if need_bytes <= free_bytes + idle_bytes + busy_bytes else None


def _evicted(state: NodeState, fit: Fit) -> tuple[str, ...]:
    """Return what would have to go, as far as that is known: everything on these cards that may."""
    if fit.tier not in (Tier.EVICTS, Tier.WAITS):
        return ()
    residents = (one for one in state.view.residents if fit.tier is Tier.WAITS or not (one.in_flight or one.waiting))
    return tuple(one.weights for one in residents if any(one.held_bytes[at : at + 1] > (0,) for at in fit.cards))


def load_s(model: NodeModel) -> float:
    """Return how long a load of a model takes on its node."""
    return model.size_bytes / UNKNOWN_BYTES_PER_S if model.load_s is None else model.load_s


def offer_of(state: NodeState, wanted: Wanted, now_s: float, own: Load) -> Offer:
    """Return what a node offers: the first variant in order that it could serve."""
    having = [one for one in wanted.variants if state.models.get(one.key) is not None]
    has_first = bool(having) and having[0] is wanted.variants[0]
    card_bytes = sum([gpu.total_bytes for gpu in state.view.gpus])
    if why := state.why_out or (f"not heard of for {OUT_S:g} s" if state.at_s < now_s - OUT_S else ""):
        return Offer(state.name, card_bytes=card_bytes, is_installed=bool(having), has_first=has_first, away=why)
    if state.view.memory == "no_gpu":
        nothing = Decision(Outcome.PASSTHROUGH, None, ())
        return Offer(state.name, nothing, is_installed=bool(having), has_first=has_first)
    verdicts: list[Verdict] = []
    for one in wanted.variants:
        verdict, load_bytes = verdict_of(state, one, now_s)
        verdicts.append(verdict)
        if verdict.kind in USABLE:
            return _offer(state, one, verdicts, load_bytes or card_bytes, own, has_first=has_first)
    rejected = Decision(Outcome.REJECTED, None, tuple(verdicts))
    return Offer(state.name, rejected, card_bytes=card_bytes, is_installed=bool(having), has_first=has_first)


def _offer(
    state: NodeState, one: WantedVariant, verdicts: list[Verdict], card_bytes: int, own: Load, *, has_first: bool
) -> Offer:
    chosen = verdicts[-1]
    model = state.models.get(one.key)
    weights = model.weights if model is not None else one.weights
    outcome = Outcome.EXACT if len(verdicts) == 1 else Outcome.FALLBACK
    return Offer(
        state.name,
        Decision(outcome, chosen, tuple(verdicts)),
        load=load_on(state, weights, own),
        busy=busy_on(state, own),
        wait_s=wait_on(state, weights, chosen.kind),
        queue_s=state.view.wait_s,
        card_bytes=card_bytes,
        has_first=has_first,
    )


def load_on(state: NodeState, weights: str, own: Load) -> int:
    """Return how many requests for a model are at work or wait on a node, those included that it has not told yet."""
    resident = state.residents.get(weights)
    told = resident.in_flight + resident.waiting if resident is not None else 0
    return max(told, own(state.name, weights))


def busy_on(state: NodeState, own: Load) -> int:
    """Return how many requests are at work or wait on a node."""
    return max(state.busy, own(state.name, ""))


def wait_on(state: NodeState, weights: str, kind: VerdictKind) -> float:
    """Return how many seconds one more request would wait for what a node holds or loads."""
    if kind is VerdictKind.LOADING and (loading := state.loading.get(weights)) is not None:
        return loading.eta_s
    resident = state.residents.get(weights)
    return resident.wait_s if resident is not None and kind is VerdictKind.RESIDENT else 0.0


def verdict_of(state: NodeState, one: WantedVariant, now_s: float) -> tuple[Verdict, int]:
    """Return the verdict on one variant on a node, and the memory of the cards that a load would use."""
    model = state.models.get(one.key)
    if model is None:
        return Verdict(one.variant, VerdictKind.MISSING), 0
    if one.verdict is not None:
        return one.verdict, 0
    weights, facts = model.weights, one.facts
    resident, loading = state.residents.get(weights), state.loading.get(weights)
    if resident is not None and resident.is_full and is_enough(resident.context, one.held_ctx):
        return Verdict(one.variant, VerdictKind.RESIDENT, resident.context, facts=facts, detail="loaded"), 0
    if loading is not None and is_enough(loading.context, one.held_ctx):
        return Verdict(one.variant, VerdictKind.LOADING, loading.context, facts=facts), 0
    if state.at_s < now_s - LOADS_S:
        detail = f"not heard of for {LOADS_S:g} s, so that nothing is loaded there"
        return Verdict(one.variant, VerdictKind.FAILED, one.num_ctx, detail=detail, facts=facts), 0
    if ALL_WEIGHTS in state.view.barred:
        return Verdict(one.variant, VerdictKind.NO_GPU, one.num_ctx, facts=facts), 0
    if weights in state.view.barred:
        return Verdict(one.variant, VerdictKind.FAILED, one.num_ctx, detail="a load failed there", facts=facts), 0
    return _to_load(state, one, model, fit_of(state, one.key, one.num_ctx))


def _to_load(state: NodeState, one: WantedVariant, model: NodeModel, fit: Fit) -> tuple[Verdict, int]:
    if fit.tier is None:
        found = one.variant, VerdictKind.TOO_BIG, one.num_ctx, fit.need_bytes, fit.have_bytes
        return Verdict(*found, facts=one.facts), fit.card_bytes
    kinds = {Tier.TRIES: VerdictKind.TRIES, Tier.WAITS: VerdictKind.WAITS}
    kind = kinds.get(fit.tier, VerdictKind.FITS)
    plan = Plan(_OPTIONS.at(one.num_ctx), _evicted(state, fit), (), fit.cards, fit.need_bytes, fit.have_bytes)
    verdict = Verdict(
        one.variant,
        kind,
        one.num_ctx,
        fit.need_bytes,
        fit.have_bytes,
        plan=plan,
        facts=one.facts,
        cost_s=load_s(model),
    )
    return verdict, fit.card_bytes
