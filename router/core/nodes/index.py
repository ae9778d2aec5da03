"""The nodes as a front looks them up: by what they have loaded, and in the order in which they want a model.

It is kept up to date by the views that come, and not rebuilt per request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from router.core.decision.fleet.holders import Holders
from router.core.decision.fleet.rank import order_for
from router.core.nodes.catalog import NodeNeed
from router.core.nodes.rooms import Rooms
from router.core.nodes.state import LOADS_S, NodeState
from router.core.nodes.view import NodeResident, is_enough
from router.core.ollama.model import ModelFacts

MOST_ORDERS = 1024
"""Models whose order of the nodes is kept."""

_NOBODY: Mapping[str, NodeResident] = {}


class Index:
    """The states of all nodes by name, and who holds which weights fully on its GPUs."""

    def __init__(self) -> None:
        self._states: dict[str, NodeState] = {}
        self._held: dict[str, dict[str, NodeResident]] = {}
        self._loading: dict[str, set[str]] = {}
        self._holders: dict[str, dict[int, Holders | None]] = {}
        self._orders: dict[str, Sequence[str]] = {}
        self._orders_of_size: dict[tuple[str, int], Sequence[str]] = {}
        self.rooms = Rooms()
        self._catalog = Catalog()
        self._busy = 0

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[NodeState]:
        return iter(self._states.values())

    def get(self, name: str) -> NodeState | None:
        """Return the state of a node."""
        return self._states.get(name)

    @property
    def catalog(self) -> Mapping[str, ModelFacts]:
        """All models of all nodes; the same object until one comes or goes."""
        return self._catalog.whole()

    @property
    def mean_busy(self) -> float:
        """How many requests are at work or wait on a node in the mean."""
        return self._busy / (len(self._states) or 1)

    # --- changes -----------------------------------------------------------------------------------------------

    def put(self, state: NodeState) -> None:
        """Take the state of a node."""
        before = self._states.get(state.name)
        self._states[state.name] = state
        self._busy += state.busy - (before.busy if before is not None else 0)
        size_before = self.rooms.size_of(state.name)
        self.rooms.put(state)
        if before is None:
            self._orders.clear()
        if before is None or self.rooms.size_of(state.name) != size_before:
            self._orders_of_size.clear()
        if before is None or before.models is not state.models:
            self._catalog.replace(before.models.facts if before is not None else {}, state.models.facts)
        self._hold(state.name, _held_by(before), _held_by(state))
        self._load(state.name, _loaded_by(before), _loaded_by(state))

    def remove(self, name: str) -> None:
        """Forget a node."""
        state = self._states.pop(name, None)
        if state is None:
            return
        self._busy -= state.busy
        self.rooms.remove(name)
        self._orders.clear()
        self._orders_of_size.clear()
        self._catalog.replace(state.models.facts, {})
        self._hold(name, _held_by(state), _NOBODY)
        self._load(name, _loaded_by(state), frozenset())

    def _hold(self, name: str, before: Mapping[str, NodeResident], now: Mapping[str, NodeResident]) -> None:
        for weights in before.keys() - now.keys():
            del self._held[weights][name]
            self._holders.pop(weights, None)
            if not self._held[weights]:
                del self._held[weights]
        for weights, resident in now.items():
            old = before.get(weights)
            if old is None or old.context != resident.context:
                self._holders.pop(weights, None)
            self._held.setdefault(weights, {})[name] = resident

    def _load(self, name: str, before: frozenset[str], now: frozenset[str]) -> None:
        for weights in before - now:
            self._loading[weights].discard(name)
            if not self._loading[weights]:
                del self._loading[weights]
        for weights in now - before:
            self._loading.setdefault(weights, set()).add(name)

    # --- questions ---------------------------------------------------------------------------------------------

    def holders(self, weights: str, num_ctx: int) -> Holders | None:
        """Return the nodes that hold these weights with at least so many tokens of context; None if there is none."""
        known = self._holders.get(weights)
        if known is None:
            if weights not in self._held:
                return None
            known = self._holders[weights] = {}
        if num_ctx not in known:
            rows = self._held[weights].items()
            names = [name for name, one in rows if is_enough(one.context, num_ctx)]
            known[num_ctx] = Holders(names) if names else None
        return known[num_ctx]

    def held(self, weights: str) -> Mapping[str, NodeResident]:
        """Return how the nodes hold these weights, by their names."""
        return self._held.get(weights, _NOBODY)

    def loading(self, weights: str) -> Sequence[str]:
        """Return the nodes that load these weights."""
        return sorted(self._loading.get(weights, ()))

    def order(self, model: str) -> Sequence[str]:
        """Return all nodes in the order in which they want a model that is loaded nowhere: the same in all fronts."""
        found = self._orders.get(model)
        if found is None:
            if len(self._orders) >= MOST_ORDERS:
                self._orders.clear()
            found = self._orders[model] = order_for(model, self._states)
        return found

    def order_of_size(self, model: str, gib: int) -> Sequence[str]:
        """Return the same of the nodes whose cards have this size."""
        key = model, gib
        found = self._orders_of_size.get(key)
        if found is None:
            if len(self._orders_of_size) >= MOST_ORDERS:
                self._orders_of_size.clear()
            rooms = self.rooms
            found = [name for name in self.order(model) if rooms.size_of(name) == gib]
            self._orders_of_size[key] = found
        return found

    def with_room(self, model: str, kind: int, need_bytes: int) -> Iterator[str]:
        """Yield the nodes that have so much room, by the size of their cards, and then in the order for a model."""
        for gib in self.rooms.with_room(kind, need_bytes):
            few = self.rooms.few_with_room(gib, kind, need_bytes)
            if few is not None:
                yield from order_for(model, few)
            else:
                yield from self.rooms.those_with_room(self.order_of_size(model, gib), kind, need_bytes)

    def need(self, model: str, key: str, num_ctx: int) -> NodeNeed | None:
        """Return what a model needs on some node that has it; None if that is not known."""
        having = (state for name in self.order(model) if (state := self._states[name]).models.get(key) is not None)
        first = next(having, None)
        return first.models.need(key, num_ctx) if first is not None else None

    def may_load(self, state: NodeState, now_s: float) -> bool:
        """Return whether a node may get what it would have to load: by a view that is fresh."""
        return state.is_usable and state.at_s >= now_s - LOADS_S


class Catalog:
    """The models of all nodes as one mapping. Of a name that several have, the facts of the first that came count."""

    def __init__(self) -> None:
        self._having: dict[str, dict[ModelFacts, int]] = {}
        self._whole: dict[str, ModelFacts] | None = {}

    def replace(self, before: Mapping[str, ModelFacts], now: Mapping[str, ModelFacts]) -> None:
        """Take the models of a node in place of those that it had before."""
        for key, facts in before.items():
            if now.get(key) is not facts:
                self._leave(key, facts)
        for key, facts in now.items():
            if before.get(key) is not facts:
                rows = self._having.setdefault(key, {})
                self._note(is_other=not rows)
                rows[facts] = rows.get(facts, 0) + 1

    def _leave(self, key: str, facts: ModelFacts) -> None:
        rows = self._having[key]
        rows[facts] -= 1
        if not rows[facts]:
            self._note(is_other=next(iter(rows)) is facts)
            del rows[facts]
        if not rows:
            del self._having[key]

    def _note(self, *, is_other: bool) -> None:
        if is_other:
            self._whole = None

    def whole(self) -> Mapping[str, ModelFacts]:
        """Return all of them."""
        if self._whole is None:
            self._whole = {key: next(iter(rows)) for key, rows in self._having.items()}
        return self._whole


def _held_by(state: NodeState | None) -> Mapping[str, NodeResident]:
    """Return what a node holds so that requests may be sent to it."""
    if state is None or not state.is_usable:
        return _NOBODY
    return {weights: one for weights, one in state.residents.items() if one.is_full}


def _loaded_by(state: NodeState | None) -> frozenset[str]:
    return frozenset(state.loading) if state is not None and state.is_usable else frozenset()
