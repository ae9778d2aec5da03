"""The decision: which variant of a chain serves a request now, and why not the others.

`choose` looks at the variants in the chain's order and gives each one a verdict, in these numbered cases:

 1. MISSING      it is not installed
 2. INCAPABLE    it cannot do what the request needs (vision, tools, thinking, insert, embedding)
 3. CONTEXT      its own maximum is below the context that the request needs
 4. RESIDENT     it is loaded, fully on the GPU, with enough context: no memory is needed
 4b. LOADING     a switch under way makes it so
 5. FITS         it can be loaded fully on the GPU now, evicting idle residents at most
 6. WAITS        it can, once residents with requests in flight have become idle
 7. TRIES        free memory is unknown (verify mode): the load itself will tell
 8. SPILLED      it was measured to spill at this free level, just failed to load, or Ollama would interfere
 9. TOO_BIG      it does not fit whatever goes
10. HELD_BACK    it fits, but only by evicting somebody although a later variant is resident: an upgrade, and the swap
                 budget is spent, or the memory has not been free for long enough

The first variant of cases 4–7 is chosen, except in case 10. Nothing chosen: the outcome is REJECTED, or PASSTHROUGH
where there is no GPU at all. Pure: no I/O, no clock, no await, no log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from router.core.decision.chain import Chain, Variant
from router.core.decision.context import ContextNeed, ContextRules, context_need
from router.core.decision.need import MachineRules, room_of
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.switching import Plan, Shortage, plan_switch
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.options import DEFAULT_BATCH, LARGEST_BATCH, automatic_num_ctx, can_complete
from router.core.ollama.runner import RunnerOptions
from router.core.payload.read import InferenceRequest


class VerdictKind(Enum):
    """The finding on one candidate; see the module's numbered cases."""

    MISSING = "not installed"
    INCAPABLE = "cannot do what the request needs"
    CONTEXT = "its maximum context is too small"
    RESIDENT = "resident"
    LOADING = "is being loaded"
    FITS = "fits"
    WAITS = "fits once busy residents are idle"
    TRIES = "free memory unknown, will be verified"
    SPILLED = "would spill"
    TOO_BIG = "too big"
    HELD_BACK = "fits, but an upgrade is held back"


READY = frozenset({VerdictKind.RESIDENT, VerdictKind.LOADING})
USABLE = READY | frozenset({VerdictKind.FITS, VerdictKind.WAITS, VerdictKind.TRIES})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The finding on one variant. Bytes are 0 where they were not computed; `detail` is a short sentence for people."""

    variant: Variant
    kind: VerdictKind
    num_ctx: int = 0
    need_bytes: int = 0
    have_bytes: int = 0
    detail: str = ""
    plan: Plan | None = None
    resident: Resident | None = None
    facts: ModelFacts | None = None
    is_upgrade: bool = False


class Outcome(Enum):
    """The kind of the answer."""

    EXACT = "exact"
    FALLBACK = "fallback"
    PASSTHROUGH = "passthrough"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Decision:
    """What shall run, and one verdict for each variant that was looked at."""

    outcome: Outcome
    chosen: Verdict | None
    verdicts: tuple[Verdict, ...]

    @property
    def reason(self) -> str:
        """Why the chosen variant serves, in the words of the `X-Router-Reason` header."""
        if self.chosen is None:
            return self.outcome.value
        if self.outcome is Outcome.EXACT:
            return "resident" if self.chosen.kind is VerdictKind.RESIDENT else "fits"
        first = self.verdicts[0]
        return f"fallback: {first.variant.model} {first.kind.value}"


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's rules for decisions."""

    context: ContextRules = field(default_factory=ContextRules)
    machine: MachineRules = field(default_factory=MachineRules)


def choose(request: InferenceRequest, chain: Chain, snapshot: Snapshot, rules: Rules) -> Decision:
    """The decision for `request` over `chain` under `snapshot`; never raises, always explained."""
    if snapshot.gpus == ():
        return Decision(Outcome.PASSTHROUGH, None, ())
    asked = _facts(chain.variants[0], snapshot) if chain.variants else None
    limit = _limit(chain, asked, snapshot)
    look = _looker(request, asked, limit, snapshot, rules)
    verdicts: list[Verdict] = []
    held: list[int] = []  # case 10
    free: int | None = None  # the first after those that is no upgrade
    for at, variant in enumerate(chain.variants):
        verdict = look(variant)
        if verdict.plan is not None and verdict.plan.evict and _has_resident(chain.variants[at + 1 :], snapshot):
            verdict = replace(verdict, is_upgrade=True)
        verdicts.append(verdict)
        if verdict.kind in READY:
            return _decide(verdicts, held, at if free is None else free)
        if verdict.kind in USABLE and free is None:
            if verdict.is_upgrade and _is_held_back(verdict.plan, snapshot):
                held.append(at)
            elif not held:
                return _decide(verdicts, [], at)
            else:
                free = at
    # nothing of the chain that is resident can serve: then it was no upgrade, and nothing holds it back
    return _decide(verdicts, [], held[0] if held else None)


def _has_resident(variants: tuple[Variant, ...], snapshot: Snapshot) -> bool:
    """Whether one of `variants` is resident, so that loading something bigger for them would be an upgrade."""
    loaded = {resident.weights for resident in snapshot.residents if resident.is_fully_resident}
    return bool(loaded) and any(
        facts.weights in loaded for variant in variants if (facts := _facts(variant, snapshot)) is not None
    )


def _decide(verdicts: list[Verdict], held: list[int], chosen: int | None) -> Decision:
    """The decision for the verdict at `chosen`; what comes after it was only looked at to know who is resident."""
    if chosen is None:
        return Decision(Outcome.REJECTED, None, tuple(verdicts))
    for index in held:
        verdicts[index] = replace(verdicts[index], kind=VerdictKind.HELD_BACK)
    outcome = Outcome.EXACT if chosen == 0 else Outcome.FALLBACK
    return Decision(outcome, verdicts[chosen], tuple(verdicts[: chosen + 1]))


def _is_held_back(plan: Plan | None, snapshot: Snapshot) -> bool:
    """True while the swap budget is spent, or memory that an upgrade needs has not been free for long enough."""
    if plan is None or not snapshot.may_upgrade:
        return True
    floors = snapshot.floor_bytes
    return any(need > floors.get(card, need) for card, need in zip(plan.cards, plan.need_by_card, strict=True))


def _facts(variant: Variant, snapshot: Snapshot) -> ModelFacts | None:
    return snapshot.catalog.get(key_of(variant.model))


def _limit(chain: Chain, asked: ModelFacts | None, snapshot: Snapshot) -> int:
    """The most context that the request can mean: that of the asked model, else the largest of the chain."""
    if asked is not None:
        return asked.context_length
    installed = (_facts(variant, snapshot) for variant in chain.variants)
    return max((facts.context_length for facts in installed if facts is not None), default=0)


def _looker(
    request: InferenceRequest, asked: ModelFacts | None, limit: int, snapshot: Snapshot, rules: Rules
) -> Callable[[Variant], Verdict]:
    settings = rules.machine.settings
    automatic = automatic_num_ctx(snapshot.gpus, settings) if snapshot.gpus else rules.context.default_num_ctx

    def look(variant: Variant) -> Verdict:
        facts = _facts(variant, snapshot)
        if facts is None:  # case 1
            return Verdict(variant, VerdictKind.MISSING)
        if lacking := _lacking(request, facts, asked):  # case 2
            return Verdict(variant, VerdictKind.INCAPABLE, detail=f"lacks {', '.join(lacking)}", facts=facts)
        need = context_need(request, variant, facts, limit, automatic, rules.context)
        if not need.is_enough:  # case 3
            detail = f"at most {facts.context_length} tokens"
            return Verdict(variant, VerdictKind.CONTEXT, need.lower, detail=detail, facts=facts)
        resident = usable_resident(facts, request, need, snapshot)
        if resident is not None and resident.options is None:  # somebody else's: adopted before it is used
            return _adopted(variant, facts, resident, is_automatic=request.is_automatic)
        if resident is not None:  # case 4
            return Verdict(
                variant, VerdictKind.RESIDENT, resident.context_length, resident=resident, facts=facts, detail="loaded"
            )
        if snapshot.loading is not None and snapshot.loading[0] == facts.weights and snapshot.loading[1] >= need.lower:
            return Verdict(variant, VerdictKind.LOADING, snapshot.loading[1], facts=facts)  # case 4b
        return _look_for_room(variant, facts, request, need, snapshot, rules)

    return look


def _adopted(variant: Variant, facts: ModelFacts, resident: Resident, *, is_automatic: bool) -> Verdict:
    """A runner that somebody else started, with options that nobody can see but its context: it becomes ours by a
    load-only request with the options that will follow. Where they are the same that costs nothing; where they differ
    Ollama reloads it under our eyes, and not by a client's request."""
    waits = (resident.weights,) if resident.in_flight else ()
    is_named = can_complete(facts) and not is_automatic
    options = RunnerOptions(num_ctx=resident.context_length if is_named else None)
    plan = Plan(options, (), waits, (), 0, 0, adopts=True)
    kind = VerdictKind.WAITS if waits else VerdictKind.FITS
    return Verdict(variant, kind, resident.context_length, plan=plan, facts=facts, detail="loaded by somebody else")


def _lacking(request: InferenceRequest, facts: ModelFacts, asked: ModelFacts | None) -> list[str]:
    """The needs that `facts` cannot serve. The asked model itself is left to Ollama's own answer."""
    if asked is facts:
        return []
    if "embedding" in request.needs:
        same = asked is not None and _is_same_embedder(asked, facts)
        return [] if same else ["the same embedding space"]
    return sorted(need for need in request.needs if facts.capabilities and need not in facts.capabilities)


def _is_same_embedder(asked: ModelFacts, other: ModelFacts) -> bool:
    """True for another quantization of the same weights: same family, size and embedding width."""
    key = (asked.family, asked.parameter_size, asked.value("embedding_length"))
    return key == (other.family, other.parameter_size, other.value("embedding_length"))


def usable_resident(
    facts: ModelFacts, request: InferenceRequest, need: ContextNeed, snapshot: Snapshot
) -> Resident | None:
    """The resident that serves the request as it is, without a reload; None when there is none.

    A larger context than asked for is kept. `shift` is the one runner option with a meaning of its own for clients.
    """
    for resident in snapshot.residents:
        if not _is_resident_of(resident, facts) or not resident.is_fully_resident:
            continue
        if resident.context_length < need.lower:
            continue
        if request.is_automatic and resident.options not in (None, RunnerOptions()):
            continue
        shift = resident.options.shift if resident.options else None
        if (request.options.shift is False) == (shift is False):  # shifting is Ollama's default
            return resident
    return None


def _is_resident_of(resident: Resident, facts: ModelFacts) -> bool:
    if resident.weights and facts.weights:
        return resident.weights == facts.weights
    return key_of(resident.name) == key_of(facts.name)


def base_options(request: InferenceRequest, facts: ModelFacts) -> RunnerOptions:
    """The runner options of a load for `request`, without num_ctx and main_gpu, which the plan decides.

    512 where nobody names a batch: small, predictable, and the only one without a surcharge in Ollama's pre-flight.
    num_gpu, num_thread, use_mmap and draft_num_predict are the router's business: one set of options per resident.
    """
    named = request.options.num_batch or facts.parameters.get("num_batch")
    if request.is_automatic:
        return RunnerOptions(num_batch=int(named or LARGEST_BATCH))  # what Ollama may choose, counted at its largest
    if not named and not can_complete(facts):
        return RunnerOptions(shift=request.options.shift)  # an embedder wants its whole input in one batch
    return RunnerOptions(num_batch=int(named or DEFAULT_BATCH), shift=request.options.shift)


def _look_for_room(
    variant: Variant,
    facts: ModelFacts,
    request: InferenceRequest,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: Rules,
) -> Verdict:
    if (reason := snapshot.barred.get(facts.weights)) is not None:
        return Verdict(variant, VerdictKind.SPILLED, need.lower, detail=reason, facts=facts)
    base = base_options(request, facts)
    if snapshot.gpus is None:
        verdict = _look_without_probe(variant, facts, base, need, snapshot, rules)
        if request.is_automatic and verdict.plan is not None:
            plan = replace(verdict.plan, options=RunnerOptions(), counted=verdict.plan.options)
            verdict = replace(verdict, plan=plan)
        return verdict
    found = plan_switch(facts, base, need, snapshot, rules.machine, may_pin=not request.is_automatic)
    if isinstance(found, Shortage):  # cases 8, 9
        if found.need_bytes > found.have_bytes:
            return Verdict(variant, VerdictKind.TOO_BIG, need.lower, found.need_bytes, found.have_bytes, facts=facts)
        need_bytes, reason = found.need_bytes, found.reason
        return Verdict(variant, VerdictKind.SPILLED, need.lower, need_bytes, found.have_bytes, reason, facts=facts)
    kind = VerdictKind.WAITS if found.waits_for else VerdictKind.FITS  # cases 6, 5
    num_ctx, plan = found.options.num_ctx or 0, found
    if request.is_automatic:
        plan = replace(found, options=RunnerOptions(), counted=found.options)
    elif not can_complete(facts) and request.num_ctx is None:  # Ollama's own choice, so that /v1 shares the runner
        plan = replace(found, options=found.options.at(None, found.options.main_gpu), counted=found.options)
    return Verdict(variant, kind, num_ctx, found.need_bytes, found.have_bytes, plan=plan, facts=facts)


def _look_without_probe(
    variant: Variant,
    facts: ModelFacts,
    base: RunnerOptions,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: Rules,
) -> Verdict:
    """Verify mode: everything else goes first, then the load is the judge; what spilled there is banned for a while."""
    least_bytes = room_of(facts, base.at(need.lower), rules.machine).footprint.need_bytes
    if snapshot.ceiling_bytes is not None and least_bytes > snapshot.ceiling_bytes:
        have_bytes, why = snapshot.ceiling_bytes, "seen by a spill"
        return Verdict(variant, VerdictKind.TOO_BIG, need.lower, least_bytes, have_bytes, why, facts=facts)
    options = base.at(need.upper)
    if rules.machine.learned.spilled_alone(facts.weights, need.upper, rules.machine.now_s):
        options = base.at(need.lower)
        if need.lower == need.upper or rules.machine.learned.spilled_alone(
            facts.weights, need.lower, rules.machine.now_s
        ):
            return Verdict(variant, VerdictKind.SPILLED, need.lower, detail="spilled when it was tried", facts=facts)
    going = sorted(snapshot.residents, key=lambda resident: -resident.order)
    plan = Plan(
        options=options,
        evict=tuple(resident.weights for resident in going),
        waits_for=tuple(resident.weights for resident in going if resident.in_flight),
        cards=(),
        need_bytes=0,
        have_bytes=0,
    )
    return Verdict(variant, VerdictKind.TRIES, options.num_ctx or 0, plan=plan, facts=facts)
