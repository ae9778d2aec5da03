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
10. HELD_BACK    it fits, but a later variant is loaded and serves on: see `upgrades.py`

The first variant of cases 3b–7 is chosen, except in case 10. If none is chosen the outcome is REJECTED, or PASSTHROUGH
if there is no GPU at all. Pure: no I/O, no clock, no await, no log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.core.decision.candidate import evaluator, facts_of
from router.core.decision.chain import Chain, Variant
from router.core.decision.snapshot import Snapshot
from router.core.decision.upgrades import HeldBy, UpgradeRule
from router.core.decision.verdict import READY, USABLE, Decision, Outcome, Rules, Verdict, VerdictKind
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest


def choose(
    request: InferenceRequest,
    chain: Chain,
    snapshot: Snapshot,
    rules: Rules,
    upgrades: UpgradeRule = UpgradeRule(),  # noqa: B008 (frozen)
) -> Decision:
    """Return the decision for `request` over `chain` under `snapshot`; `upgrades` is the chain's rule for case 10.

    Never raise; explain every outcome by verdicts.
    """
    if snapshot.gpus == ():
        return Decision(Outcome.PASSTHROUGH, None, ())
    asked = facts_of(chain.variants[0], snapshot) if chain.variants else None
    limit = limit_of(chain, asked, snapshot.catalog)
    evaluate = evaluator(request, asked, limit, snapshot, rules)
    verdicts: list[Verdict] = []
    held_back: dict[int, HeldBy] = {}  # case 10
    loadable: int | None = None  # the first usable one after those
    for at, variant in enumerate(chain.variants):
        verdict = _with_cost(evaluate(variant), snapshot, rules)
        if _is_upgrade(at, verdict, chain.variants[at + 1 :], snapshot, upgrades):
            verdict = replace(verdict, is_upgrade=True)
        verdicts.append(verdict)
        if verdict.kind in READY:
            return _decide(verdicts, held_back, at if loadable is None else loadable)
        if verdict.kind in USABLE and loadable is None:
            if verdict.is_upgrade and (held_by := _held_by(verdict, snapshot, upgrades)) is not None:
                held_back[at] = held_by
            elif not held_back:
                return _decide(verdicts, {}, at)
            else:
                loadable = at
    # No resident variant can serve, so nothing was an upgrade, and nothing is held back.
    return _decide(verdicts, {}, next(iter(held_back), None))


def _with_cost(verdict: Verdict, snapshot: Snapshot, rules: Rules) -> Verdict:
    """Return the verdict with what its switch costs, if it needs one."""
    if verdict.plan is None or verdict.facts is None or verdict.plan.adopts:
        return verdict
    evicted = (resident for resident in snapshot.residents if resident.weights in verdict.plan.evict)
    return replace(verdict, cost_s=rules.costs.switch_s(verdict.facts, evicted))


def _is_upgrade(
    at: int, verdict: Verdict, later: tuple[Variant, ...], snapshot: Snapshot, upgrades: UpgradeRule
) -> bool:
    """Return whether a load would take this chain back up: one of `later` serves it now, in place of this variant.

    A later variant that is only loaded for somebody else holds nothing back, unless what is loaded is preferred. What
    another client has loaded is loaded: to take it over is no load.
    """
    if verdict.plan is None or verdict.plan.adopts or not _has_resident(later, snapshot):
        return False
    if upgrades.prefer == "speed":
        return True
    is_kept = upgrades.kept is not None and at >= upgrades.kept
    return upgrades.is_moved_down and not is_kept


def _held_by(verdict: Verdict, snapshot: Snapshot, upgrades: UpgradeRule) -> HeldBy | None:
    return upgrades.held_by(verdict.plan, verdict.cost_s, snapshot) if verdict.plan is not None else None


def _has_resident(variants: tuple[Variant, ...], snapshot: Snapshot) -> bool:
    """Return whether one of `variants` is resident, so that loading a bigger one instead would be an upgrade."""
    loaded = {resident.weights for resident in snapshot.residents if resident.is_fully_resident}
    return bool(loaded) and any(
        facts.weights in loaded for variant in variants if (facts := facts_of(variant, snapshot)) is not None
    )


def _decide(verdicts: list[Verdict], held_back: dict[int, HeldBy], chosen: int | None) -> Decision:
    """Return the decision for the verdict at `chosen`, without those after it.

    Later variants were evaluated only to find out whether one is resident.
    """
    if chosen is None:
        return Decision(Outcome.REJECTED, None, tuple(verdicts))
    for index, by in held_back.items():
        verdicts[index] = replace(verdicts[index], kind=VerdictKind.HELD_BACK, detail=by.value, held_by=by)
    outcome = Outcome.EXACT if chosen == 0 else Outcome.FALLBACK
    return Decision(outcome, verdicts[chosen], tuple(verdicts[: chosen + 1]))


def limit_of(chain: Chain, asked: ModelFacts | None, catalog: Mapping[str, ModelFacts]) -> int:
    """Return the largest context that the request can mean: the asked model's, else the largest of the chain."""
    if asked is not None:
        return asked.context_length
    installed = (catalog.get(key_of(variant.model)) for variant in chain.variants)
    return max((facts.context_length for facts in installed if facts is not None), default=0)
