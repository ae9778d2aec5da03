"""The verdict on one variant: cases 1 to 9 of `policy.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from router.core.decision.chain import Variant
from router.core.decision.context import Automatic, ContextNeed, ContextRules, context_need
from router.core.decision.foreseen import Books
from router.core.decision.load_context import plan_switch
from router.core.decision.need import memory_options, need_of
from router.core.decision.snapshot import ALL_WEIGHTS, Resident, Snapshot
from router.core.decision.switching import Plan, Shortage
from router.core.decision.unprobed import plan_unprobed
from router.core.decision.verdict import Rules, Verdict, VerdictKind
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.options import DEFAULT_BATCH, LARGEST_BATCH, automatic_num_ctx, can_complete
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest


def facts_of(variant: Variant, snapshot: Snapshot) -> ModelFacts | None:
    """Return the facts of the variant's model, or None if it is not installed."""
    return snapshot.catalog.get(key_of(variant.model))


def evaluator(
    request: InferenceRequest, asked: ModelFacts | None, limit: int, snapshot: Snapshot, rules: Rules
) -> Callable[[Variant], Verdict]:
    """Return the function that gives a variant its verdict, for one request under one snapshot.

    `limit` is the largest context that the request can mean, in tokens (0 = unknown).
    """
    settings = rules.machine.settings
    tier = automatic_num_ctx(snapshot.gpus, settings) if snapshot.gpus else rules.context.default_num_ctx
    automatic = Automatic(tier, settings.context_length or tier)
    books = cache(partial(Books.of, snapshot))  # once for the whole chain, and only if something must be loaded

    def evaluate(variant: Variant) -> Verdict:
        facts = facts_of(variant, snapshot)
        found = need_or_verdict(request, variant, facts, asked, limit, automatic, rules.context)
        if isinstance(found, Verdict):
            return found
        assert facts is not None
        need = found
        resident = usable_resident(facts, request, need, snapshot)
        if resident is not None and resident.options is None:  # another client's: adopted before it is used
            failed = snapshot.barred.get(facts.weights)
            return _adopted(variant, facts, resident, failed, is_automatic=request.is_automatic)
        if resident is not None:  # case 4
            num_ctx = resident.context_length or 0
            return Verdict(variant, VerdictKind.RESIDENT, num_ctx, resident=resident, facts=facts, detail="loaded")
        if snapshot.loading is not None and snapshot.loading[0] == facts.weights and snapshot.loading[1] >= need.lower:
            return Verdict(variant, VerdictKind.LOADING, snapshot.loading[1], facts=facts)  # case 4b
        if not isinstance(variant.num_ctx, int):  # else the operator says how much it is
            loaded = (one.context_length for one in snapshot.residents if _is_resident_of(one, facts))
            need = need.with_headroom(next(loaded, None), facts, rules.context)
        return _evaluate_load(variant, facts, request, need, snapshot, rules, books)

    return evaluate


def need_or_verdict(
    request: InferenceRequest,
    variant: Variant,
    facts: ModelFacts | None,
    asked: ModelFacts | None,
    limit: int,
    automatic: Automatic,
    rules: ContextRules,
) -> ContextNeed | Verdict:
    """Return the contexts with which a variant may serve a request, or the verdict that nothing loaded can change."""
    if facts is None:  # case 1
        return Verdict(variant, VerdictKind.MISSING)
    if facts.is_remote:  # case 2: it has no footprint here
        return Verdict(variant, VerdictKind.INCAPABLE, detail="runs on another server", facts=facts)
    if lacking := _lacking(request, facts, asked):  # case 2
        return Verdict(variant, VerdictKind.INCAPABLE, detail=f"lacks {', '.join(lacking)}", facts=facts)
    need = context_need(request, variant, facts, limit, automatic, rules)
    if not need.is_enough:  # case 3
        detail = f"at most {facts.context_length} tokens"
        return Verdict(variant, VerdictKind.CONTEXT, need.lower, detail=detail, facts=facts)
    if asked_for := asked_placement(request, facts):  # case 3b
        return Verdict(variant, VerdictKind.PLACED, need.lower, detail=asked_for, facts=facts)
    return need


def _adopted(
    variant: Variant, facts: ModelFacts, resident: Resident, failed: str | None, *, is_automatic: bool
) -> Verdict:
    """Return the verdict on a runner that another client started, of whose options only the context is visible.

    A load-only request with the options that will follow takes it over. If they equal the runner's, that costs nothing.
    If they differ, Ollama reloads it now, under the router's control, and not during a client's request. If that has
    just `failed`, and why, it is left alone as after any load.
    """
    if failed is not None:  # case 8b
        return Verdict(variant, VerdictKind.FAILED, resident.context_length or 0, detail=failed, facts=facts)
    waits = (resident.weights,) if resident.in_flight else ()
    is_named = can_complete(facts) and not is_automatic
    options = LoadOptions(num_ctx=resident.context_length if is_named else None)
    plan = Plan(options, (), waits, (), 0, 0, adopts=True)
    kind = VerdictKind.WAITS if waits else VerdictKind.FITS
    num_ctx = resident.context_length or 0
    return Verdict(variant, kind, num_ctx, plan=plan, facts=facts, detail="loaded by another client")


def asked_placement(request: InferenceRequest, facts: ModelFacts) -> str:
    """Return where the request or the Modelfile puts the model, in words; "" if that is left to us or all of it fits.

    It is the operator's (or client's) own choice, so nothing is planned for it and nothing is learned from it. num_gpu
    counts the blocks and the output layer; negative is automatic, and as much as there is means all of it.
    """
    is_named = request.options.num_gpu is not None
    named = request.options.num_gpu if is_named else facts.parameters.get("num_gpu")
    layers = named[-1] if isinstance(named, tuple) else named
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 0:
        return ""
    asks = "the request" if is_named else "its Modelfile"
    total = int(facts.value("block_count", 0)) + 1
    if layers == 0:
        return f"on the CPU as {asks} asks"
    return f"{layers} of {total} layers on the GPU as {asks} asks" if total > 1 and layers < total else ""


def _lacking(request: InferenceRequest, facts: ModelFacts, asked: ModelFacts | None) -> list[str]:
    """Return the needs that `facts` cannot serve. For the requested model itself Ollama gives that answer."""
    if asked is facts:
        return []
    if "embedding" in request.needs:
        same = asked is not None and _is_same_embedder(asked, facts)
        return [] if same else ["the same embedding space"]
    return sorted(need for need in request.needs if facts.capabilities and need not in facts.capabilities)


def _is_same_embedder(asked: ModelFacts, other: ModelFacts) -> bool:
    """Return whether `other` is another quantization of the same weights: equal family, size and embedding width."""
    key = (asked.family, asked.parameter_size, asked.value("embedding_length"))
    return key == (other.family, other.parameter_size, other.value("embedding_length"))


def usable_resident(
    facts: ModelFacts, request: InferenceRequest, need: ContextNeed, snapshot: Snapshot
) -> Resident | None:
    """Return the resident that serves the request without a reload, or None.

    A larger context than requested is kept. `shift` is the one runner option whose effect clients notice.
    """
    for resident in snapshot.residents:
        if not _is_resident_of(resident, facts) or not resident.is_fully_resident:
            continue
        if not _has_context(resident, facts, request, need):
            continue
        if request.is_automatic and resident.options not in (None, LoadOptions()):
            continue
        shift = resident.options.shift if resident.options else None
        if (request.options.shift is False) == (shift is False):  # shifting is Ollama's default
            return resident
    return None


def _has_context(resident: Resident, facts: ModelFacts, request: InferenceRequest, need: ContextNeed) -> bool:
    """Return whether its context is enough. One that is unknown is, unless another client chose it: it may be smaller.

    Where Ollama chooses the context itself, another client's runner has the same as one of ours.
    """
    if not facts.context_length and resident.options is not None and (resident.options.num_ctx or 0) >= need.lower:
        return True  # it was asked for with enough, and has the model's maximum, which is not known
    if need.is_ollamas and resident.options is not None and resident.options.num_ctx is None:
        return True  # Ollama has chosen it: a reload would get the same, whatever was expected
    if resident.context_length is not None:
        return resident.context_length >= need.lower
    return resident.options is not None or request.is_automatic or not can_complete(facts)


RESERVED = "some of the memory is reserved for other teams"


def _is_resident_of(resident: Resident, facts: ModelFacts) -> bool:
    if resident.weights and facts.weights:
        return resident.weights == facts.weights
    return key_of(resident.name) == key_of(facts.name)


def base_options(request: InferenceRequest, facts: ModelFacts) -> LoadOptions:
    """Return the options of a load for `request`, without num_ctx and main_gpu, which the plan decides.

    Unless a batch is named it is 512: small, predictable, and the only one without a surcharge in Ollama's pre-flight
    check. num_gpu, num_thread, use_mmap and draft_num_predict are never taken from a request: a resident has one set of
    options.
    """
    named = request.options.num_batch or facts.parameters.get("num_batch")
    if request.is_automatic:
        return LoadOptions(num_batch=int(named or LARGEST_BATCH))  # Ollama chooses; count its largest
    if not named and not can_complete(facts):
        return LoadOptions(shift=request.options.shift)  # the whole input in one batch
    return LoadOptions(num_batch=int(named or DEFAULT_BATCH), shift=request.options.shift)


def _evaluate_load(
    variant: Variant,
    facts: ModelFacts,
    request: InferenceRequest,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: Rules,
    books: Callable[[], Books],
) -> Verdict:
    """Give the verdict on a variant that must be loaded: cases 5 to 9."""
    if (reason := snapshot.barred.get(ALL_WEIGHTS)) is not None:  # case 8c
        return Verdict(variant, VerdictKind.NO_GPU, need.lower, detail=reason, facts=facts)
    if (reason := snapshot.barred.get(facts.weights)) is not None:  # case 8b
        return Verdict(variant, VerdictKind.FAILED, need.lower, detail=reason, facts=facts)
    base = base_options(request, facts)
    if snapshot.gpus is None:
        verdict = _evaluate_without_probe(variant, facts, base, need, snapshot, rules)
        if request.is_automatic and verdict.plan is not None:
            plan = replace(verdict.plan, options=LoadOptions(), counted=verdict.plan.options)
            verdict = replace(verdict, plan=plan)
        return verdict
    found = plan_switch(
        facts,
        base,
        need,
        snapshot,
        rules.machine,
        may_pin=not request.is_automatic,
        least_num_ctx=rules.context.min_num_ctx,
        costs=rules.costs,
        books=books(),
    )
    if isinstance(found, Shortage):  # cases 8, 9
        if found.need_bytes > found.have_bytes:
            detail = RESERVED if any(one.is_reserved for one in snapshot.residents) else ""
            needs = need.lower, found.need_bytes, found.have_bytes
            return Verdict(variant, VerdictKind.TOO_BIG, *needs, detail, facts=facts)
        need_bytes, reason = found.need_bytes, found.reason
        return Verdict(variant, VerdictKind.SPILLED, need.lower, need_bytes, found.have_bytes, reason, facts=facts)
    kind = VerdictKind.WAITS if found.waits_for else VerdictKind.FITS  # cases 6, 5
    num_ctx, plan = found.options.num_ctx or 0, found
    if request.is_automatic:
        plan = replace(found, options=LoadOptions(), counted=found.options)
    elif not can_complete(facts) and request.num_ctx is None:  # left to Ollama, so that /v1 shares the runner
        plan = replace(found, options=found.options.at(None, found.options.main_gpu), counted=found.options)
    return Verdict(variant, kind, num_ctx, found.need_bytes, found.have_bytes, plan=plan, facts=facts)


def _size_bytes(facts: ModelFacts, options: LoadOptions, rules: Rules) -> int:
    """Return what a load takes by `/api/ps`, if such a load was whole before, else by the formula."""
    asked = memory_options(facts, options, rules.machine.settings)
    seen_bytes = rules.machine.learned.shown_bytes(facts.weights, asked)
    return seen_bytes or need_of(facts, options, rules.machine).footprint.need_bytes


def _evaluate_without_probe(
    variant: Variant,
    facts: ModelFacts,
    base: LoadOptions,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: Rules,
) -> Verdict:
    """Give the verdict in verify mode: the load shows whether it fits; after a spill it is left alone for a while."""
    least_bytes = _size_bytes(facts, base.at(need.lower), rules)
    if snapshot.ceiling_bytes is not None and least_bytes > snapshot.ceiling_bytes:
        have_bytes, why = snapshot.ceiling_bytes, "as far as is known of the cards"
        return Verdict(variant, VerdictKind.TOO_BIG, need.lower, least_bytes, have_bytes, why, facts=facts)
    options = base.at(need.upper)
    if rules.machine.learned.spilled_alone(facts.weights, need.upper, rules.machine.now_s):
        options = base.at(need.lower)
        if need.lower == need.upper or rules.machine.learned.spilled_alone(
            facts.weights, need.lower, rules.machine.now_s
        ):
            return Verdict(
                variant, VerdictKind.SPILLED, need.lower, detail="spilled in an earlier attempt", facts=facts
            )
    plan = plan_unprobed(facts, options, _size_bytes(facts, options, rules), snapshot)
    return Verdict(variant, VerdictKind.TRIES, options.num_ctx or 0, plan=plan, facts=facts)
