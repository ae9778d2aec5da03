"""Which node a request goes to, by an index of what the nodes hold. Pure.

The order is that of `core/decision/fleet/rank.py`. Where a node holds the first variant that can be served and has
nobody waiting for it, the holder is picked without looking at the others, since no rule puts another node before it.
Otherwise the rules are applied to those that can come first: the holders, those that load it, and the best for a copy.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import islice

from router.core.decision.fleet.holders import LOAD_FACTOR, Holders, bound_of_mean
from router.core.decision.fleet.offer import Offer, Tier
from router.core.decision.fleet.passed_over import NOT_PASSED_OVER, PassedOver, passed_over
from router.core.decision.fleet.rank import Ranked, copy_rank, rank
from router.core.nodes.index import Index
from router.core.nodes.offers import Fit, Load, busy_on, fit_of, is_barred, load_on, load_s, offer_of
from router.core.nodes.rooms import BESIDE, EVICTS
from router.core.nodes.state import NodeState
from router.core.nodes.view import is_enough
from router.core.nodes.wanted import Wanted, WantedVariant

MOST_COPIES, MOST_HOLDERS = 3, 16
"""Nodes that are compared by all rules: more could not come first."""

AS_ASKED = Fit(Tier.BESIDE)
"""A request that says how many layers go to the GPU: Ollama is left to do that."""

SLACK = 32
"""Nodes need different amounts for one model, as they have learned: this part of it at most is looked over."""

Row = tuple[Tier, bool, int, float, int, NodeState]
Conversation = Callable[[], int]
"""Returns the number of a request's conversation, 0 for none: it is read only where it matters."""

IsOut = Callable[[str], bool]
"""Returns whether a node is not asked."""

LeftOut = Callable[[str, str], float]
"""Returns for how many seconds a model on a node ("" = the node) is left out after failures; 0 if it is not."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A node for a request. `position` is the variant of the chain that it is to serve or exceed, by the front's view.

    `last` is the last variant that the node may choose: a later one is loaded there, and whether a bigger one takes its
    place is decided by the rules for that where they can be told, which is there. `tier` None = nothing is known to fit
    anywhere, and the node is to do what it can.
    """

    node: str
    position: int
    last: int
    weights: str
    tier: Tier | None


class Choice:
    """Picks nodes. `own` counts what this front has under way."""

    def __init__(self, index: Index, own: Load, load_factor: float = LOAD_FACTOR) -> None:
        self._index = index
        self._own = own
        self._load_factor = load_factor

    def pick(
        self,
        wanted: Wanted,
        conversation: Conversation,
        now_s: float,
        failed: Collection[str] = (),
        left_out: LeftOut | None = None,
    ) -> Pick | None:
        """Return the node for a request, None if by what is known no node can serve it. `failed` are not asked again.

        `left_out` knows the breakers, None if none is open. What they leave out is asked if nobody else can serve.
        """
        for leaves_out in (left_out, None) if left_out is not None else (None,):
            for position, one in enumerate(wanted.variants):
                if not one.is_able:
                    continue
                if not (failed or leaves_out) and (found := self._holder(wanted, position, conversation)) is not None:
                    return found
                is_out = _out(failed, leaves_out, one.model)
                if (found := self._of_all(wanted, position, conversation, now_s, is_out)) is not None:
                    return found
        return None

    def why_passed_over(self, wanted: Wanted, served: str, away: Iterable[Offer], now_s: float) -> PassedOver:
        """Return why the first variant is not to serve a request that goes to the node `served`.

        `away` are the offers of nodes that requests cannot go to. Of many nodes with the variant those with the biggest
        cards stand for all, and one stands for those without it.
        """
        key = wanted.variants[0].key
        having = [state for state in self._index if state.models.get(key) is not None]
        lacking = (state for state in self._index if state.models.get(key) is None)
        shown = heapq.nlargest(MOST_HOLDERS, having, key=_biggest_card)
        states = {state.name: state for state in (self._index.get(served), *shown, *islice(lacking, 1)) if state}
        offers = (offer_of(state, wanted, now_s, self._own) for state in states.values())
        ranked = rank((*offers, *away), 0, self._load_factor)
        return passed_over(ranked) if ranked else NOT_PASSED_OVER

    def last_resort(self, wanted: Wanted, now_s: float, failed: Collection[str] = ()) -> str | None:
        """Return the node that is to do what it can where no variant can be served: one that has most of the memory.

        None if requests may go to none.
        """
        usable = [one for one in self._index if one.is_usable and one.name not in failed]
        offers = [offer_of(state, wanted, now_s, self._own) for state in usable]
        return rank(offers, 0, self._load_factor)[0].place if offers else None

    def ranked(self, wanted: Wanted, now_s: float) -> tuple[Ranked, ...]:
        """Return all nodes for a plain request, the best first, each with a reason."""
        offers = [offer_of(state, wanted, now_s, self._own) for state in self._index]
        return rank(offers, 0, self._load_factor)

    # --- parts -------------------------------------------------------------------------------------------------

    def _holder(self, wanted: Wanted, position: int, conversation: Conversation) -> Pick | None:
        """Return the holder that the request goes to if nobody waits for the model there."""
        one = wanted.variants[position]
        holders = self._index.holders(one.weights, one.held_ctx)
        if holders is None or one.verdict is not None:
            return None
        name = self._of_holders(holders, one.weights, conversation)
        state = self._index.get(name)
        if state is None or state.residents[one.weights].wait_s or state.models.get(one.key) is None:
            return None
        return Pick(name, position, position, one.weights, Tier.HOLDS)

    def _of_holders(self, holders: Holders, weights: str, conversation: Conversation) -> str:
        if len(holders.places) == 1:
            return holders.places[0]
        held, own = self._index.held(weights), self._own

        def load_of(name: str) -> int:
            one = held[name]
            return max(one.in_flight + one.waiting, own(name, weights))

        return holders.pick(conversation(), load_of, self._load_factor)

    def _of_all(
        self, wanted: Wanted, position: int, conversation: Conversation, now_s: float, is_out: IsOut
    ) -> Pick | None:
        """Return the best node for one variant, of those that may come first in the order."""
        one = wanted.variants[position]
        there = self._holding(one, is_out)
        copies = self._copies(one, now_s, (lambda name: name in there or is_out(name)) if there else is_out)
        if copies and not there and copies[0][0] is not Tier.WAITS:  # common case of a load: in the order of `rank`
            return self._pick(wanted, position, copies[0][-1], copies[0][0])
        alone = Wanted(wanted.chain, (one,))
        states = (*filter(None, map(self._index.get, there)), *(row[-1] for row in copies))
        best = self._best([offer_of(state, alone, now_s, self._own) for state in states], conversation)
        state = self._index.get(best.place) if best is not None else None
        return self._pick(wanted, position, state, best.tier) if best is not None and state is not None else None

    def _holding(self, one: WantedVariant, is_out: IsOut) -> dict[str, None]:
        """Return the nodes that hold a variant, the least busy of many, and those that load it."""
        holders = [name for name in self._index.held(one.weights) if not is_out(name)]
        if len(holders) > MOST_HOLDERS:
            holders = heapq.nsmallest(MOST_HOLDERS, holders, key=lambda name: self._load(name, one.weights))
        return dict.fromkeys((*holders, *(name for name in self._index.loading(one.weights) if not is_out(name))))

    def _copies(self, one: WantedVariant, now_s: float, is_out: IsOut) -> list[Row]:
        """Return the best nodes for a load of a variant, by the order of `rank`.

        Where a model fits on one of a node's equal cards the first in the order of the best size is found at once. All
        others are compared.
        """
        most, index = self._most_busy(), self._index
        need = index.need(one.model, one.key, one.num_ctx) if one.verdict is None else None
        if need is not None:
            first = self._of_sizes(one, need.need_bytes, now_s, is_out, most)
            if first is not None:
                odd = index.rooms.odd | index.rooms.split_below(need.need_bytes)
                if not odd:
                    return [first]
                at = index.order(one.model).index(first[-1].name)  # its place among all, and not among its size
                return _least([(*first[:4], at, first[-1]), *self._rows(one, odd, now_s, is_out, most)])
        return _least(self._rows(one, None, now_s, is_out, most))

    def _of_sizes(self, one: WantedVariant, need_bytes: int, now_s: float, is_out: IsOut, most: float) -> Row | None:
        """Return the first node that can load a variant beside what is loaded, or in place of what is idle."""
        least_bytes = need_bytes - need_bytes // SLACK
        for kind, tier in ((BESIDE, Tier.BESIDE), (EVICTS, Tier.EVICTS)):
            over: Row | None = None
            for at, name in enumerate(self._index.with_room(one.model, kind, least_bytes)):
                if is_out(name) or (row := self._row(one, at, name, now_s, most)) is None or row[0] is not tier:
                    continue
                if not row[1]:
                    return row
                over = over or row
            if over is not None:
                return over
        return None

    def _rows(
        self,
        one: WantedVariant,
        names: Collection[str] | None,
        now_s: float,
        is_out: IsOut,
        most: float,
    ) -> list[Row]:
        """Return how soon these nodes (None = all) can load a variant."""
        order = enumerate(self._index.order(one.model))
        rows = (self._row(one, at, name, now_s, most) for at, name in order if names is None or name in names)
        return [row for row in rows if row is not None and not is_out(row[-1].name)]

    def _row(self, one: WantedVariant, at: int, name: str, now_s: float, most: float) -> Row | None:
        """Return how soon a node can load a variant, and what tells it from others; None if it cannot."""
        state = self._index.get(name)
        if state is None or not self._index.may_load(state, now_s):
            return None
        model = state.models.get(one.key)
        if model is None or (state.view.barred and is_barred(state, model.weights)):
            return None
        fit = fit_of(state, one.key, one.num_ctx) if one.verdict is None else AS_ASKED
        if fit.tier is None:
            return None
        is_busy, gib = copy_rank(busy_on(state, self._own), most, fit.card_bytes)
        in_s = state.view.wait_s + load_s(model) if fit.tier is Tier.WAITS else 0.0
        return (fit.tier, is_busy, 0 if in_s else gib, in_s, at, state)

    def _best(self, offers: list[Offer], conversation: Conversation) -> Ranked | None:
        if not offers:
            return None
        best = rank(offers, conversation(), self._load_factor, self._most_busy())[0]
        return best if best.is_usable else None

    def _most_busy(self) -> float:
        return bound_of_mean(self._index.mean_busy, self._load_factor)

    def _load(self, name: str, weights: str) -> int:
        state = self._index.get(name)
        assert state is not None
        return load_on(state, weights, self._own)

    def _pick(self, wanted: Wanted, position: int, state: NodeState, tier: Tier | None) -> Pick:
        last = position
        if tier not in (Tier.HOLDS, Tier.LOADING):
            last = next((at for at in range(position + 1, len(wanted.variants)) if _holds(state, wanted, at)), position)
        return Pick(state.name, position, last, wanted.variants[position].weights, tier)


def _least(rows: list[Row]) -> list[Row]:
    return heapq.nsmallest(MOST_COPIES, rows, key=lambda row: row[:-1])


def _biggest_card(state: NodeState) -> int:
    return max((card.total_bytes for card in state.cards), default=0)


def _holds(state: NodeState, wanted: Wanted, position: int) -> bool:
    one = wanted.variants[position]
    held = state.residents.get(one.weights)
    return one.verdict is None and held is not None and held.is_full and is_enough(held.context, one.held_ctx)


def _out(failed: Collection[str], left_out: LeftOut | None, model: str) -> IsOut:
    if left_out is None:
        return failed.__contains__
    return lambda name: name in failed or left_out(name, "") > 0 or left_out(name, model) > 0
