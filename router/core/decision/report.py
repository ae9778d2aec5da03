"""A decision as text and as data, for people: refusals, `explain`, the log. One line per variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.core.decision.chain import Chain
from router.core.decision.verdict import Decision, Verdict
from router.core.units import GIB


def line(verdict: Verdict) -> str:
    """Return one verdict as text: ``llama3.3:70b at 8192: too big (needs 44.1 GiB, has 23.4 GiB)``."""
    text = verdict.variant.model
    if verdict.num_ctx:
        text += f" at {verdict.num_ctx}"
    text += f": {verdict.kind.value}"
    if verdict.need_bytes:
        text += f" (needs {verdict.need_bytes / GIB:.1f} GiB, has {verdict.have_bytes / GIB:.1f} GiB)"
    if verdict.detail and verdict.detail not in text:
        text += f", {verdict.detail}"
    return text


def refusal(chain: Chain, decision: Decision) -> str:
    """Return why no variant of the chain can serve, in one sentence with every variant's bytes."""
    return f"no variant of {chain.name} runs fully on the GPU now: {lines_of(decision)}"


def lines_of(decision: Decision) -> str:
    """Return every verdict of a decision, with its bytes."""
    return "; ".join(line(verdict) for verdict in decision.verdicts)


def _why(verdict: Verdict) -> str:
    """Return a short reason, in bytes or words, that is shown beside the verdict."""
    short_bytes = verdict.need_bytes - verdict.have_bytes
    if short_bytes > 0:
        return f"{short_bytes / GIB:.1f} GiB short"
    if verdict.plan is not None and verdict.plan.evict:
        return f"evicts {len(verdict.plan.evict)}"
    return verdict.kind.value if verdict.kind.value != verdict.kind.name.lower() else ""


def what_if(decision: Decision, names: Mapping[str, str] | None = None) -> str:
    """Return what stands between the request and the best variant that would fit: what holds it back, waits, seconds.

    `names` maps weights to the names of residents. "" if the best is loaded, or nothing fits.
    """
    best = decision.best
    if best is None or best.plan is None:
        return ""
    named = names or {}
    evicted = ", ".join(named.get(weights, weights) for weights in best.plan.evict)
    waits = ", ".join(named.get(weights, weights) for weights in best.plan.waits_for)
    text = f"{best.variant.model}: a switch that costs about {max(1, round(best.cost_s))} s"
    text += f", unloading {evicted}" if evicted else ""
    text += f", once {waits} is idle" if waits else ""
    return f"{text}; {best.detail}" if best is decision.better else text


def as_data(chain: Chain, decision: Decision, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the decision as JSON data: the form of `GET /router/explain` and of `ollama-router explain --json`.

    `names` maps weights to the names of residents.
    """
    best, named = decision.best, names or {}
    return {
        "chain": chain.name,
        "outcome": decision.outcome.value,
        "reason": decision.reason,
        "chosen": decision.chosen.variant.model if decision.chosen else None,
        "best": best.variant.model if best else None,
        "below_best": decision.below_best,
        "between": what_if(decision, names),
        "variants": [
            {
                "model": verdict.variant.model,
                "verdict": verdict.kind.name.lower(),
                "num_ctx": verdict.num_ctx,
                "need_bytes": verdict.need_bytes,
                "have_bytes": verdict.have_bytes,
                "detail": verdict.detail or _why(verdict),
                "cost_s": round(verdict.cost_s, 1),
                "evicts": [named.get(weights, weights) for weights in verdict.plan.evict] if verdict.plan else [],
                "cards": list(verdict.plan.cards) if verdict.plan else [],
            }
            for verdict in decision.verdicts
        ],
    }
