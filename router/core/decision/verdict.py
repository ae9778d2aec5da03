"""The terms of a decision: the verdict on one variant, the decision over a chain, and the rules that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from router.core.decision.chain import Variant
from router.core.decision.context import ContextRules
from router.core.decision.costs import LoadCosts
from router.core.decision.need import MachineRules
from router.core.decision.snapshot import Resident
from router.core.decision.switching import Plan
from router.core.decision.upgrades import HeldBy
from router.core.ollama.model import ModelFacts


class VerdictKind(Enum):
    """The verdict on one variant, by the numbered cases of `policy.py`; the value is the text for people."""

    MISSING = "not installed"
    INCAPABLE = "cannot do what the request needs"
    CONTEXT = "its maximum context is too small"
    PLACED = "placed as it was asked"
    RESIDENT = "resident"
    LOADING = "is being loaded"
    FITS = "fits"
    WAITS = "fits once busy residents are idle"
    TRIES = "free memory unknown, will be verified"
    SPILLED = "would spill"
    FAILED = "could not be loaded"
    NO_GPU = "Ollama uses no GPU"
    TOO_BIG = "too big"
    HELD_BACK = "fits, but is held back"


READY = frozenset({VerdictKind.PLACED, VerdictKind.RESIDENT, VerdictKind.LOADING})
USABLE = READY | frozenset({VerdictKind.FITS, VerdictKind.WAITS, VerdictKind.TRIES})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one variant. Bytes are 0 if they were not computed; `detail` is a short text for people.

    `cost_s` is what the switch of `plan` costs in seconds. `held_by` says why a variant is HELD_BACK.
    """

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
    cost_s: float = 0.0
    held_by: HeldBy | None = None


class Outcome(Enum):
    """The kind of a decision."""

    EXACT = "exact"
    FALLBACK = "fallback"
    PASSTHROUGH = "passthrough"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Decision:
    """The variant to run, and one verdict for each variant that was evaluated."""

    outcome: Outcome
    chosen: Verdict | None
    verdicts: tuple[Verdict, ...]

    @property
    def reason(self) -> str:
        """Why the chosen variant serves, in the words of the `X-Router-Reason` header."""
        return self.reason_with("")

    def reason_with(self, passed_over: str) -> str:
        """Return the same with what several backends say of a first variant that does not serve ("" = nothing)."""
        if self.chosen is None:
            return self.outcome.value
        if self.outcome is Outcome.EXACT and self.chosen.kind is VerdictKind.PLACED:
            return self.chosen.detail
        if self.outcome is Outcome.EXACT:
            return "resident" if self.chosen.kind is VerdictKind.RESIDENT else "fits"
        first, better = self.verdicts[0], self.better
        reason = f"fallback: {passed_over or in_words(first)}"
        return reason if better in (None, first) else f"{reason}; {in_words(better)}"

    @property
    def better(self) -> Verdict | None:
        """The biggest variant that would fit now but is held back; None if the best one serves."""
        return next((verdict for verdict in self.verdicts if verdict.kind is VerdictKind.HELD_BACK), None)

    @property
    def best(self) -> Verdict | None:
        """The biggest variant that would fit now, whether it serves or is held back; None if nothing fits."""
        return self.better or self.chosen

    @property
    def below_best(self) -> str:
        """Why a bigger variant that would fit does not serve, in one word; "" if none would."""
        held_by = self.better.held_by if self.better is not None else None
        return held_by.name.lower() if held_by is not None else ""


def in_words(verdict: Verdict, place: str = "") -> str:
    """Return a verdict, of a place if given, as part of a reason: with the detail where the kind says too little."""
    on = f" on {place}" if place else ""
    why = f": {verdict.detail}" if verdict.kind in (VerdictKind.FAILED, VerdictKind.HELD_BACK) else ""
    return f"{verdict.variant.model} {verdict.kind.value}{on}{why}"


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's rules for decisions, and what loads have cost so far."""

    context: ContextRules = field(default_factory=ContextRules)
    machine: MachineRules = field(default_factory=MachineRules)
    costs: LoadCosts = field(default_factory=LoadCosts)
