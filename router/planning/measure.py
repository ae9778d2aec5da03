"""Traffic played to a stage, and its figures: loads, spills, answers from a smaller variant than would have fitted."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ollama_simulator.machine.spec import CardSpec
from router.core.ollama.names import key_of
from router.core.units import MIB
from router.planning.fitting import first_fitting
from router.planning.stage import Load, Reply, Stage, mean, percentile
from router.planning.traffic import Job

Send = Callable[[Job], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Served:
    """One request with its answer, and the first variant of its chain that fitted while it waited.

    `best` is "" if none did. It fitted if the other programs left room for it all the time from the request to the
    begin of service, every resident evicted.
    """

    job: Job
    chain: tuple[str, ...]
    reply: Reply
    best: str = ""
    is_spilled: bool = False

    @property
    def is_answered(self) -> bool:
        """True if a model answered."""
        return self.reply.status == 200 and not self.reply.error

    @property
    def is_below_best(self) -> bool:
        """True if a later variant than the best answered; also if a model outside the chain did."""
        if not self.is_answered or not self.best:
            return False
        names = [key_of(tag) for tag in self.chain]
        served = key_of(self.reply.served)
        return served not in names or names.index(served) > names.index(key_of(self.best))


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run. Seconds; a wait is from the request to the begin of service."""

    requests: int
    failed: int
    loads: int
    spilled_loads: int
    unused_loads: int
    spilled_answers: int
    below_best: int
    mean_s: float
    p95_s: float
    p99_s: float
    total_s: float


class Foreign:
    """The memory that other programs hold, changed through here so that its history is known."""

    def __init__(self, one: Stage) -> None:
        self._cards = one.sim.cards
        held = tuple(int(spec.foreign_mib) * MIB for spec in one.sim.cards.machine.cards)
        self._times_s: list[float] = [-1.0]
        self._held_bytes: list[tuple[int, ...]] = [held]

    def take(self, card: int, held_bytes: int) -> None:
        """Let other programs hold `held_bytes` of `card` from now on."""
        self._cards.set_foreign(card, held_bytes)
        last = self._held_bytes[-1]
        self._held_bytes.append((*last[:card], held_bytes, *last[card + 1 :]))
        self._times_s.append(asyncio.get_running_loop().time())

    def most_bytes(self, from_s: float, to_s: float) -> tuple[int, ...]:
        """Return the most that they held of each card between two times."""
        first, last = bisect_right(self._times_s, from_s) - 1, bisect_right(self._times_s, to_s)
        return tuple(max(sizes) for sizes in zip(*self._held_bytes[max(0, first) : last], strict=True))


def body_of(job: Job) -> dict[str, object]:
    """Return the body of a request."""
    if job.embeds:
        return {"model": job.model, "input": "word" * job.prompt_tokens}
    text = f"[[tokens={job.answer_tokens}]] ".ljust(4 * job.prompt_tokens, "x")
    # Without thinking, so that the length of the answer is the job's for every model.
    body: dict[str, object] = {"model": job.model, "prompt": text, "stream": False, "think": False}
    return {**body, "options": {"num_ctx": job.num_ctx}} if job.num_ctx else body


def path_of(job: Job) -> str:
    """Return the route of a request."""
    return "/api/embed" if job.embeds else "/api/generate"


async def play(jobs: Sequence[Job], send: Send) -> list[Reply]:
    """Send each job at its time, and return the answers in the order of the jobs."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def one(job: Job) -> Reply:
        await asyncio.sleep(max(0.0, began_s + job.at_s - loop.time()))
        return await send(job)

    return await asyncio.gather(*(one(job) for job in jobs))


def judged(
    one: Stage, pairs: Iterable[tuple[Job, Reply]], chains: Mapping[str, tuple[str, ...]], foreign: Foreign
) -> list[Served]:
    """Return each answer with the variant that would have been the best, and whether its model was spilled."""
    cards = one.sim.cards.machine.cards
    loads = by_model(one.loaded)
    return [
        _judged(Served(job, chains.get(job.model, (job.model,)), reply), cards, loads, foreign) for job, reply in pairs
    ]


def _judged(one: Served, cards: tuple[CardSpec, ...], loads: Mapping[str, list[Load]], foreign: Foreign) -> Served:
    bare = tuple(replace(card, foreign_mib=0.0) for card in cards)
    held = foreign.most_bytes(one.reply.asked_s, one.reply.began_s)
    best = first_fitting(one.chain, one.job.prompt_tokens, one.job.num_ctx, bare, held)
    return replace(one, best=best or "", is_spilled=is_spilled(one.reply, loads))


def by_model(loads: Iterable[Load]) -> dict[str, list[Load]]:
    """Return the loads of each model, in order."""
    found: dict[str, list[Load]] = defaultdict(list)
    for load in loads:
        found[key_of(load.model)].append(load)
    return found


def load_of(reply: Reply, loads: Mapping[str, list[Load]]) -> Load | None:
    """Return the load of the runner that gave the answer; None if there was no answer."""
    if not reply.served:
        return None
    earlier = [load for load in loads.get(key_of(reply.served), ()) if load.at_s <= reply.began_s + 0.01]
    return earlier[-1] if earlier else None


def is_spilled(reply: Reply, loads: Mapping[str, list[Load]]) -> bool:
    """Return whether some of the model that answered was on the CPU."""
    load = load_of(reply, loads)
    return load is not None and load.is_spilled


def unused(one: Stage, replies: Iterable[Reply]) -> int:
    """Count the loads that were thrown away: unloaded again before they answered anybody."""
    loads = by_model(one.loaded)
    used = {id(load_of(reply, loads)) for reply in replies if reply.status == 200}
    gone = by_model(Load(model, at_s, is_spilled=False) for model, at_s in one.unloaded)
    return sum(
        id(load) not in used and any(left.at_s >= load.at_s for left in gone.get(model, ()))
        for model, own in loads.items()
        for load in own
    )


def figures(one: Stage, served: Sequence[Served]) -> Figures:
    """Return the figures of a run that has ended."""
    done = [each for each in served if each.is_answered]
    waits = [each.reply.wait_s for each in done]
    ends = [each.reply.asked_s + each.reply.took_s for each in served]
    return Figures(
        requests=len(served),
        failed=len(served) - len(done),
        loads=len(one.loads),
        spilled_loads=sum(load.is_spilled for load in one.loaded),
        unused_loads=unused(one, [each.reply for each in served]),
        spilled_answers=sum(each.is_spilled for each in done),
        below_best=sum(each.is_below_best for each in done),
        mean_s=mean(waits),
        p95_s=percentile(waits, 0.95),
        p99_s=percentile(waits, 0.99),
        total_s=max(ends) - min(each.reply.asked_s for each in served) if served else 0.0,
    )
