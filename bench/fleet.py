"""Many Ollamas behind one router: where requests go, against round robin, and what the choice costs.

usage: bench/fleet.py [--places 50] [--requests 4000] [--seeds 3]
Requests for 60 models of 2 to 20 GiB, a few of them asked for often, come to places with one card of 12 or 24 GB each.
A place loads one model at a time, unloads what is idle for it (the longest unused first), answers two requests of a
model at once, and lets the others wait. `rank` chooses by the rules of router/core/decision/fleet/rank.py and knows
all; `fronts` are six that take requests in turn and choose by router/core/nodes/choice.py: each knows its own requests,
and what the places have told up to a second ago. Round robin takes the next place whose card can hold the model. On a
virtual clock of its own, without HTTP: the choice is compared.

Then the cost of a choice among the holders of a model, where 1,000 places hold 200 models, in CPU time.

Exit code 1 if, of either, the loads are more than 1/6 of round robin's, the 95th percentile of the wait more than 1/10,
or a choice takes more than 20 microseconds.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from router.core.decision.chain import Chain, Variant
from router.core.decision.context import ContextRules
from router.core.decision.fleet.holders import Holders
from router.core.decision.fleet.offer import Offer
from router.core.decision.fleet.rank import rank
from router.core.decision.plan import Plan
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from router.core.nodes.catalog import NodeCatalog, NodeModel, NodeNeed
from router.core.nodes.choice import Choice
from router.core.nodes.index import Index
from router.core.nodes.state import Models, NodeState
from router.core.nodes.view import NodeGpu, NodeLoading, NodeResident, NodeView
from router.core.nodes.wanted import Wanted, wanted_of
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest
from router.core.units import GIB
from router.planning.stage import p95, table

MODELS = 60
LOAD_GIB_PER_S = 1.0
SERVICE_S = 3.0
SLOTS = 2
FRONTS, TOLD_S = 6, 1.0
MOST_LOADS, MOST_WAIT, MOST_PICK_S = 1 / 6, 1 / 10, 20e-6


@dataclass(slots=True)
class Request:
    """A request for a model, and the conversation that it continues."""

    model: int
    conversation: int
    service_s: float
    came_s: float
    front: Front | None = None


@dataclass(slots=True)
class Loaded:
    """A model on a card: requests at work and waiting."""

    at_work: int = 0
    used_s: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class Place:
    """One Ollama with one card. `line` are the models to load, in order, with those that wait for them."""

    name: str
    card_gib: float
    loaded: dict[int, Loaded] = field(default_factory=dict)
    line: dict[int, deque[Request]] = field(default_factory=dict)
    loading: int | None = None
    until_s: float = 0.0

    def busy(self) -> int:
        """Count the requests at work and waiting."""
        return sum(one.at_work + len(one.waiting) for one in self.loaded.values()) + sum(map(len, self.line.values()))


class World:
    """The places, and the clock. `choose` returns the place for a request."""

    def __init__(self, places: Iterable[Place], sizes: list[float]) -> None:
        self.places = list(places)
        self.sizes = sizes
        self.now_s = 0.0
        self.loads = 0
        self.waits: list[float] = []
        self.left = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (when_s, next(self._count), do))

    def run(self) -> None:
        """Let the time pass until nothing is left to do."""
        while self._events:
            self.now_s, _, do = heapq.heappop(self._events)
            do()

    @property
    def goes_on(self) -> bool:
        """True while requests are to come, or are not done."""
        return self.left > 0

    def load_s(self, model: int) -> float:
        """Return how long a load takes."""
        return self.sizes[model] / LOAD_GIB_PER_S

    def room_for(self, place: Place, model: int) -> list[int] | None:
        """Return what is to be unloaded for a model, None if models in use are in its way."""
        free = place.card_gib - sum(self.sizes[one] for one in place.loaded)
        if place.loading is not None:
            free -= self.sizes[place.loading]
        evicted = []
        idle = (one for one, state in place.loaded.items() if not (state.at_work or state.waiting))
        for one in sorted(idle, key=lambda one: place.loaded[one].used_s):
            if free >= self.sizes[model]:
                break
            evicted.append(one)
            free += self.sizes[one]
        return evicted if free >= self.sizes[model] else None

    def send(self, place: Place, request: Request) -> None:
        """Send a request to a place."""
        if (state := place.loaded.get(request.model)) is not None:
            state.waiting.append(request)
        else:
            place.line.setdefault(request.model, deque()).append(request)
        self.go_on(place)

    def go_on(self, place: Place) -> None:
        """Let requests begin, and the next load."""
        for state in place.loaded.values():
            while state.waiting and state.at_work < SLOTS:
                self._begin(place, state, state.waiting.popleft())
        if place.loading is None and place.line:
            model = next(iter(place.line))
            evicted = self.room_for(place, model)
            if evicted is not None:
                for one in evicted:
                    del place.loaded[one]
                place.loading, place.until_s = model, self.now_s + self.load_s(model)
                self.loads += 1
                self.at(place.until_s, lambda: self._load(place, model))

    def _load(self, place: Place, model: int) -> None:
        place.loading = None
        place.loaded[model] = Loaded(used_s=self.now_s, waiting=place.line.pop(model))
        self.go_on(place)

    def _begin(self, place: Place, state: Loaded, request: Request) -> None:
        self.waits.append(self.now_s - request.came_s)
        state.at_work += 1
        state.used_s = self.now_s

        def end() -> None:
            self.left -= 1
            state.at_work -= 1
            state.used_s = self.now_s
            if request.front is not None:
                request.front.leave(place.name, request.model)
            self.go_on(place)

        self.at(self.now_s + request.service_s, end)


def offer(world: World, place: Place, model: int) -> Offer:
    """Return what a place offers for a model, as the router would see it."""
    state, waiting = place.loaded.get(model), len(place.line.get(model, ()))
    rest_s = max(0.0, place.until_s - world.now_s) if place.loading is not None else 0.0
    queue_s = rest_s + sum(world.load_s(one) for one in place.line if one not in (model, place.loading))
    kind, plan, wait_s, evicted = VerdictKind.TOO_BIG, None, 0.0, None
    if state is not None:
        kind = VerdictKind.RESIDENT
        wait_s = 0.0 if state.at_work < SLOTS else (len(state.waiting) + 1) * SERVICE_S / SLOTS
    elif model in place.line:
        kind, wait_s = VerdictKind.LOADING, queue_s + world.load_s(model) + waiting * SERVICE_S / SLOTS
    elif world.sizes[model] <= place.card_gib:
        evicted = world.room_for(place, model)
        kind = VerdictKind.WAITS if evicted is None else VerdictKind.FITS
        plan = Plan(LoadOptions(), tuple(map(str, evicted or ())), (), (0,), 1, 1)
    verdict = Verdict(Variant(f"m{model}"), kind, plan=plan, cost_s=world.load_s(model))
    is_able = kind is not VerdictKind.TOO_BIG
    decision = Decision(Outcome.EXACT if is_able else Outcome.REJECTED, verdict if is_able else None, (verdict,))
    load = waiting if state is None else state.at_work + len(state.waiting)
    card_bytes = int(place.card_gib * GIB)
    return Offer(place.name, decision, load, place.busy(), wait_s, queue_s, card_bytes)


def ranked(world: World) -> Callable[[Request], Place]:
    """Return what chooses by rank."""
    by_name = {place.name: place for place in world.places}

    def choose(request: Request) -> Place:
        offers = (offer(world, place, request.model) for place in world.places)
        return by_name[rank(offers, request.conversation)[0].place]

    return choose


class Front:
    """One front: what the places have told, and what it has under way itself."""

    def __init__(self, places: list[Place], models: Models) -> None:
        self.index = Index()
        self._models = models
        self._own: dict[tuple[str, str], int] = {}
        self._places = {place.name: place for place in places}
        self._choice = Choice(self.index, lambda node, weights: self._own.get((node, weights), 0))
        self._wanted: dict[int, Wanted] = {}

    def take(self, view: NodeView, now_s: float) -> None:
        """Take what a place tells."""
        self.index.put(NodeState.of(view.name, view, self._models, now_s))

    def choose(self, request: Request, now_s: float) -> Place:
        """Choose a place for a request, and count it there."""
        wanted = self._wanted.get(request.model)
        if wanted is None:
            name = f"m{request.model}:latest"
            chain, plain = Chain(name, (Variant(name),)), InferenceRequest(name)
            wanted = self._wanted[request.model] = wanted_of(plain, chain, self.index.catalog, ContextRules())
        found = self._choice.pick(wanted, lambda: request.conversation, now_s)
        assert found is not None
        request.front = self
        self._count(found.node, request.model, 1)
        return self._places[found.node]

    def leave(self, node: str, model: int) -> None:
        """Count that a request has left a place."""
        self._count(node, model, -1)

    def _count(self, node: str, model: int, more: int) -> None:
        for weights in ("", f"w{model}"):
            self._own[node, weights] = self._own.get((node, weights), 0) + more


def told_by(world: World, place: Place) -> NodeView:
    """Return what a place tells of itself."""
    loading = place.loading
    used = [*place.loaded, *([loading] if loading is not None else [])]
    rest_s = max(0.0, place.until_s - world.now_s) if loading is not None else 0.0
    return NodeView(
        name=place.name,
        boot_id="b",
        seq=1,
        version="1",
        is_up=True,
        draining=False,
        memory="probed",
        gpus=(
            NodeGpu(
                place.name,
                int(place.card_gib * GIB),
                int((place.card_gib - sum(world.sizes[one] for one in used)) * GIB),
            ),
        ),
        residents=tuple(
            NodeResident(
                weights=f"w{model}",
                context=32768,
                is_full=True,
                in_flight=state.at_work,
                waiting=len(state.waiting),
                wait_s=0.0 if state.at_work < SLOTS else (len(state.waiting) + 1) * SERVICE_S / SLOTS,
                held_bytes=(int(world.sizes[model] * GIB),),
            )
            for model, state in place.loaded.items()
        ),
        loading=(NodeLoading(f"w{loading}", 32768, rest_s),) if loading is not None else (),
        wait_s=rest_s + sum(world.load_s(one) for one in place.line if one != loading),
    )


def fronts(world: World) -> Callable[[Request], Place]:
    """Return what lets six fronts choose in turn, to which each place tells its state once a second."""
    catalog = Models(NodeCatalog.of(tuple(_model(at, size, world) for at, size in enumerate(world.sizes))))
    six = [Front(world.places, catalog) for _ in range(FRONTS)]

    def tell(place: Place) -> None:
        view = told_by(world, place)
        for front in six:
            front.take(view, world.now_s)
        if world.goes_on:
            world.at(world.now_s + TOLD_S, lambda: tell(place))

    for at, place in enumerate(world.places):
        view = told_by(world, place)
        for front in six:
            front.take(view, 0.0)
        world.at(TOLD_S * at / len(world.places), lambda place=place: tell(place))
    turns = itertools.cycle(six)
    return lambda request: next(turns).choose(request, world.now_s)


def _model(number: int, size: float, world: World) -> NodeModel:
    need = int(size * GIB)
    return node_model(number, need, (NodeNeed(8192, need), NodeNeed(131072, need)), world.load_s(number))


def node_model(number: int, size_bytes: int, needs: tuple[NodeNeed, ...], load_s: float) -> NodeModel:
    """Return a model as a node tells of it."""
    return NodeModel(
        name=f"m{number}:latest",
        digest=f"d{number}",
        size_bytes=size_bytes,
        weights=f"w{number}",
        capabilities=("completion",),
        architecture="llama",
        context_length=131072,
        needs=needs,
        load_s=load_s,
    )


def round_robin(world: World) -> Callable[[Request], Place]:
    """Return what takes the next place whose card can hold the model."""
    places = itertools.cycle(world.places)

    def choose(request: Request) -> Place:
        return next(place for place in places if place.card_gib >= world.sizes[request.model])

    return choose


def play(chooser: Callable[[World], Callable[[Request], Place]], places: int, requests: int, seed: int) -> World:
    """Play a crowd's requests."""
    dice = random.Random(seed)
    sizes = [dice.choice((2, 4, 5, 9, 9, 14, 20)) for _ in range(MODELS)]
    world = World((Place(f"p{at}", 22.0 if at % 2 else 11.0) for at in range(places)), sizes)
    world.left = requests
    choose, came_s = chooser(world), 0.0
    weights = [1 / (rank + 1) ** 0.9 for rank in range(MODELS)]
    for _ in range(requests):
        came_s += dice.expovariate(places / 8)
        model = dice.choices(range(MODELS), weights)[0]
        request = Request(model, dice.randrange(1, 400) * MODELS + model, dice.expovariate(1 / SERVICE_S), came_s)
        world.at(came_s, lambda request=request: world.send(choose(request), request))
    world.run()
    return world


def pick_s(places: int = 1000, models: int = 200, picks: int = 20000) -> float:
    """Return the CPU seconds of a choice among the holders of a model, by an index from models to holders."""
    dice = random.Random(1)
    held: dict[int, list[str]] = {model: [f"p{dice.randrange(places)}"] for model in range(models)}
    for at in range(places):
        for model in dice.sample(range(models), 2):
            held[model].append(f"p{at}")
    index = {model: Holders(tuple(set(names))) for model, names in held.items()}
    load = {f"p{at}": dice.randrange(4) for at in range(places)}
    asked = [(dice.randrange(models), dice.getrandbits(56)) for _ in range(picks)]
    began_s = time.process_time()
    for model, conversation in asked:
        index[model].pick(conversation, load.__getitem__)
    return (time.process_time() - began_s) / picks


def pick_for_a_load_s(places: int = 1000, models: int = 200, rounds: int = 20) -> float:
    """Return the CPU seconds of a choice for a model that no place holds; on most of them one half is loaded."""
    dice = random.Random(1)
    sizes: list[float] = [dice.choice((2, 4, 5, 9, 9, 14, 20)) for _ in range(models)]
    world = World((Place(f"p{at}", dice.choice((11.0, 22.0, 22.0, 46.0))) for at in range(places)), sizes)
    for place in world.places:
        for number in dice.sample(range(models // 2), 2):
            if world.room_for(place, number) == []:
                place.loaded[number] = Loaded(at_work=dice.randrange(3))
    catalog = Models(NodeCatalog.of(tuple(_model(at, size, world) for at, size in enumerate(sizes))))
    front = Front(world.places, catalog)
    for place in world.places:
        front.take(told_by(world, place), 0.0)
    asked = [Request(number, 0, 0.0, 0.0) for number in range(models // 2, models)]
    took_s = 0.0
    for number in range(rounds + 1):
        began_s = time.process_time()
        for request in asked:
            front.leave(front.choose(request, 0.0).name, request.model)
        took_s += time.process_time() - began_s if number else 0.0  # the orders of the places are made in the first
    return took_s / (rounds * len(asked))


def main() -> int:
    """Print both choices for each seed, and what a choice costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=50)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    rows: list[tuple[object, ...]] = [("seed", "choice", "loads", "per 1,000", "p95 wait s", "loads of", "wait of")]
    is_good = True
    for seed in range(1, asked.seeds + 1):
        control = play(round_robin, asked.places, asked.requests, seed)
        for name, chooser in (("round robin", None), ("rank", ranked), ("fronts", fronts)):
            world = control if chooser is None else play(chooser, asked.places, asked.requests, seed)
            loads, wait = world.loads / control.loads, p95(world.waits) / max(0.1, p95(control.waits))
            is_good = is_good and (chooser is None or (loads <= MOST_LOADS and wait <= MOST_WAIT))
            shares = (f"{loads:.3f}", f"{wait:.3f}") if chooser is not None else ("", "")
            per = round(1000 * world.loads / asked.requests)
            rows.append((seed, name, world.loads, per, f"{p95(world.waits):.1f}", *shares))
    print(table(rows))
    cost_s = pick_s()
    print(f"a choice among the holders, 1,000 places and 200 models: {cost_s * 1e6:.1f} us of CPU time")
    load_cost_s = pick_for_a_load_s()
    print(
        f"a choice for a model that nobody holds, 1,000 places and 200 models: {load_cost_s * 1e6:.1f} us of CPU time"
    )
    return 0 if is_good and max(cost_s, load_cost_s) <= MOST_PICK_S else 1


if __name__ == "__main__":
    sys.exit(main())
