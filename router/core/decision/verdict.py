"""The terms of a decision: the verdict on one variant, the decision over a chain, and the rules that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from router.core.decision.chain import Variant
from router.core.decision.context import ContextRules
from router.core.decision.need import MachineRules
from router.core.decision.snapshot import Resident
from router.core.decision.switching import Plan
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
    HELD_BACK = "fits, but an upgrade is held back"


READY = frozenset({VerdictKind.PLACED, VerdictKind.RESIDENT, VerdictKind.LOADING})
USABLE = READY | frozenset({VerdictKind.FITS, VerdictKind.WAITS, VerdictKind.TRIES})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one variant. Bytes are 0 if they were not computed; `detail` is a short text for people."""

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
        if self.chosen is None:
            return self.outcome.value
        if self.outcome is Outcome.EXACT and self.chosen.kind is VerdictKind.PLACED:
            return self.chosen.detail
        if self.outcome is Outcome.EXACT:
            return "resident" if self.chosen.kind is VerdictKind.RESIDENT else "fits"
        first = self.verdicts[0]
        why = f": {first.detail}" if first.kind is VerdictKind.FAILED else ""
        return f"fallback: {first.variant.model} {first.kind.value}{why}"


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's rules for decisions."""

    context: ContextRules = field(default_factory=ContextRules)
    machine: MachineRules = field(default_factory=MachineRules)
