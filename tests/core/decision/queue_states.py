"""What waits in line and what is loaded, as the rules of the line see it."""

from dataclasses import dataclass

from router.core.decision.chain import Variant
from router.core.decision.groups import Patience, Waiting
from router.core.decision.switching import Plan
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from router.core.ollama.runner import LoadOptions
from tests.core.facts import facts_of, resident_of

AGE_BOUND_S, COUNT = 10.0, 16
PATIENCE = Patience(AGE_BOUND_S, affinity_count=COUNT)
NOW_S = 100.0
BIG, MIDDLE, SMALL, TINY = (facts_of(f"m{size}:{size}b", size) for size in (40, 18, 8, 2))
REFUSED = Decision(Outcome.REJECTED, None, ())


@dataclass(frozen=True)
class Loaded:
    """A resident: loaded as number `order`, it has served `served` requests."""

    order: int = 1
    served: int = 0


def loads(facts, *, evicts=(), waits_for=(), num_ctx=8192, cards=(0,), main_gpu=None, cost_s=0.0):
    """The decision to load `facts` by a plan."""
    plan = Plan(
        LoadOptions(num_ctx=num_ctx, main_gpu=main_gpu), tuple(evicts), tuple(waits_for), cards, 1, 1, (1,) * len(cards)
    )
    kind = VerdictKind.WAITS if waits_for else VerdictKind.FITS
    return _chosen(Verdict(Variant(facts.name), kind, num_ctx, plan=plan, facts=facts, cost_s=cost_s))


def uses(facts, num_ctx=8192):
    """The decision to use `facts`, which are resident."""
    resident = resident_of(facts)
    return _chosen(Verdict(Variant(facts.name), VerdictKind.RESIDENT, num_ctx, resident=resident, facts=facts))


def awaits(facts):
    """The decision to wait for `facts`, which a switch under way loads."""
    return _chosen(Verdict(Variant(facts.name), VerdictKind.LOADING, 8192, facts=facts))


def _chosen(verdict):
    return Decision(Outcome.EXACT, verdict, (verdict,))


def ticket(number, decision, *, age_s=0.0, is_due=False, served_before=None):
    """A ticket that came `age_s` before NOW_S."""
    return Waiting(number, NOW_S - age_s, decision, served_before or {}, is_due=is_due)
