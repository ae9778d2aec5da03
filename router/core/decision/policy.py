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

from dataclasses import replace

from router.core.decision.candidate import facts_of, looker
from router.core.decision.chain import Chain, Variant
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import Plan
from router.core.decision.verdict import READY, USABLE, Decision, Outcome, Rules, Verdict, VerdictKind
from router.core.ollama.model import ModelFacts
from router.core.payload.read import InferenceRequest


def choose(request: InferenceRequest, chain: Chain, snapshot: Snapshot, rules: Rules) -> Decision:
    """The decision for `request` over `chain` under `snapshot`; never raises, always explained."""
    if snapshot.gpus == ():
        return Decision(Outcome.PASSTHROUGH, None, ())
    asked = facts_of(chain.variants[0], snapshot) if chain.variants else None
    limit = _limit(chain, asked, snapshot)
    look = looker(request, asked, limit, snapshot, rules)
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
        facts.weights in loaded for variant in variants if (facts := facts_of(variant, snapshot)) is not None
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


def _limit(chain: Chain, asked: ModelFacts | None, snapshot: Snapshot) -> int:
    """The most context that the request can mean: that of the asked model, else the largest of the chain."""
    if asked is not None:
        return asked.context_length
    installed = (facts_of(variant, snapshot) for variant in chain.variants)
    return max((facts.context_length for facts in installed if facts is not None), default=0)
