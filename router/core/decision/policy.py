"""The decision: which variant of a chain serves a request now, and why not the others.

`choose` evaluates the variants in the chain's order and gives each one a verdict, by these numbered cases:

 1. MISSING      it is not installed
 2. INCAPABLE    it cannot do what the request needs (vision, tools, thinking, insert, embedding)
 3. CONTEXT      its own maximum is below the context that the request needs
 3b. PLACED      the request or its Modelfile says how many layers go to the GPU (num_gpu): Ollama is left to do that
 4. RESIDENT     it is loaded, fully on the GPU, with enough context: no memory is needed
 4b. LOADING     a switch in progress is loading it
 5. FITS         it can be loaded fully on the GPU now, evicting at most idle residents
 6. WAITS        it can, once residents with requests in flight have become idle
 7. TRIES        free memory is unknown (verify mode): the load itself will show
 8. SPILLED      it spilled before at this free level, or Ollama would handle the load differently
 8b. FAILED      it could not be loaded a moment ago
 8c. NO_GPU      Ollama put nothing of the last load on the GPU
 9. TOO_BIG      it does not fit, whatever is evicted
10. HELD_BACK    it is an upgrade (it fits, but only by evicting while a later variant serves the chain), and the swap
                 budget is spent or the memory has not been free for long enough

The first variant of cases 3b–7 is chosen, except in case 10. If none is chosen the outcome is REJECTED, or PASSTHROUGH
if there is no GPU at all. Pure: no I/O, no clock, no await, no log.
"""

from __future__ import annotations

from dataclasses import replace

from router.core.decision.candidate import evaluator, facts_of
from router.core.decision.chain import Chain, Variant
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import Plan
from router.core.decision.verdict import READY, USABLE, Decision, Outcome, Rules, Verdict, VerdictKind
from router.core.ollama.model import ModelFacts
from router.core.payload.read import InferenceRequest


def choose(request: InferenceRequest, chain: Chain, snapshot: Snapshot, rules: Rules) -> Decision:
    """Return the decision for `request` over `chain` under `snapshot`.

    Never raise; explain every outcome by verdicts.
    """
    if snapshot.gpus == ():
        return Decision(Outcome.PASSTHROUGH, None, ())
    asked = facts_of(chain.variants[0], snapshot) if chain.variants else None
    limit = _limit(chain, asked, snapshot)
    evaluate = evaluator(request, asked, limit, snapshot, rules)
    verdicts: list[Verdict] = []
    held_back: list[int] = []  # case 10
    loadable: int | None = None  # the first usable one after those
    for at, variant in enumerate(chain.variants):
        verdict = evaluate(variant)
        if _is_upgrade(verdict, chain.variants[at + 1 :], snapshot):
            verdict = replace(verdict, is_upgrade=True)
        verdicts.append(verdict)
        if verdict.kind in READY:
            return _decide(verdicts, held_back, at if loadable is None else loadable)
        if verdict.kind in USABLE and loadable is None:
            if verdict.is_upgrade and _is_held_back(verdict.plan, snapshot):
                held_back.append(at)
            elif not held_back:
                return _decide(verdicts, [], at)
            else:
                loadable = at
    # No resident variant can serve, so nothing was an upgrade, and nothing is held back.
    return _decide(verdicts, [], held_back[0] if held_back else None)


def _is_upgrade(verdict: Verdict, later: tuple[Variant, ...], snapshot: Snapshot) -> bool:
    """Return whether a load would take this chain back up: one of `later` serves it now, in place of this variant.

    A later variant that is only loaded for somebody else holds nothing back.
    """
    has_victims = verdict.plan is not None and bool(verdict.plan.evict)
    return snapshot.is_moved_down and has_victims and _has_resident(later, snapshot)


def _has_resident(variants: tuple[Variant, ...], snapshot: Snapshot) -> bool:
    """Return whether one of `variants` is resident, so that loading a bigger one instead would be an upgrade."""
    loaded = {resident.weights for resident in snapshot.residents if resident.is_fully_resident}
    return bool(loaded) and any(
        facts.weights in loaded for variant in variants if (facts := facts_of(variant, snapshot)) is not None
    )


def _decide(verdicts: list[Verdict], held_back: list[int], chosen: int | None) -> Decision:
    """Return the decision for the verdict at `chosen`, without those after it.

    Later variants were evaluated only to find out whether one is resident.
    """
    if chosen is None:
        return Decision(Outcome.REJECTED, None, tuple(verdicts))
    for index in held_back:
        verdicts[index] = replace(verdicts[index], kind=VerdictKind.HELD_BACK)
    outcome = Outcome.EXACT if chosen == 0 else Outcome.FALLBACK
    return Decision(outcome, verdicts[chosen], tuple(verdicts[: chosen + 1]))


def _is_held_back(plan: Plan | None, snapshot: Snapshot) -> bool:
    """Return whether the swap budget is spent, or memory that an upgrade needs has not been free for long enough."""
    if plan is None or not snapshot.may_upgrade:
        return True
    floors = snapshot.floor_bytes
    return any(need > floors.get(card, need) for card, need in zip(plan.cards, plan.need_by_card, strict=True))


def _limit(chain: Chain, asked: ModelFacts | None, snapshot: Snapshot) -> int:
    """Return the largest context that the request can mean: the asked model's, else the largest of the chain."""
    if asked is not None:
        return asked.context_length
    installed = (facts_of(variant, snapshot) for variant in chain.variants)
    return max((facts.context_length for facts in installed if facts is not None), default=0)
