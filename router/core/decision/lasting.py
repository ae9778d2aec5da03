"""Refusals that waiting cannot change: which they are, and what the operator or the client can do about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from router.core.decision.chain import Chain
from router.core.decision.report import line
from router.core.decision.verdict import Decision, Verdict, VerdictKind
from router.core.ollama.runner import Gpu

LEAST_USEFUL_CTX = 2048
_BY_NATURE = frozenset({VerdictKind.MISSING, VerdictKind.INCAPABLE, VerdictKind.CONTEXT})
_BY_MEMORY = frozenset({VerdictKind.TOO_BIG, VerdictKind.SPILLED})


def is_lasting(decision: Decision, gpus: Sequence[Gpu] | None) -> bool:
    """Return whether each variant is out of the question for this request, whatever leaves the cards.

    It is not installed, cannot do what is asked, or needs more than all cards together have. Unknown cards (None) can
    have any size.
    """
    total_bytes = _total_bytes(gpus)
    return bool(decision.verdicts) and all(_is_lasting(verdict, total_bytes) for verdict in decision.verdicts)


def is_short_of_memory(decision: Decision, gpus: Sequence[Gpu] | None) -> bool:
    """Return whether a variant was passed over for which the cards are big enough: others hold the memory."""
    total_bytes = _total_bytes(gpus)
    return total_bytes is not None and any(
        verdict.kind in _BY_MEMORY and verdict.need_bytes <= total_bytes for verdict in decision.verdicts
    )


def lasting_refusal(chain: Chain, decision: Decision, gpus: Sequence[Gpu] | None) -> str:
    """Return why no variant of the chain can ever serve the request as it is, and at the end what would help."""
    lines = "; ".join(line(verdict) for verdict in decision.verdicts)
    cures = " or ".join(_cures(decision.verdicts, _total_bytes(gpus)))
    return f"no variant of {chain.name} can run fully on the GPU: {lines}. What helps: {cures}"


def _is_lasting(verdict: Verdict, total_bytes: int | None) -> bool:
    if verdict.kind in _BY_NATURE:
        return True
    return verdict.kind is VerdictKind.TOO_BIG and total_bytes is not None and verdict.need_bytes > total_bytes


def _total_bytes(gpus: Sequence[Gpu] | None) -> int | None:
    """Return what all cards have together; None if one of them does not say."""
    return sum(gpu.total_bytes for gpu in gpus) if gpus and all(gpu.total_bytes > 0 for gpu in gpus) else None


def _cures(verdicts: Sequence[Verdict], total_bytes: int | None) -> Iterator[str]:
    """Yield what would help, by how little it changes. The last variant of a kind is the smallest."""
    by_kind = {verdict.kind: verdict for verdict in verdicts}
    smallest = by_kind.get(VerdictKind.TOO_BIG)
    if smallest is not None and smallest.num_ctx > LEAST_USEFUL_CTX and _has_room(smallest, total_bytes):
        yield f"a num_ctx below {smallest.num_ctx}"
    if (short := by_kind.get(VerdictKind.CONTEXT)) is not None and short.facts is not None:
        longest = max(v.facts.context_length for v in verdicts if v.kind is VerdictKind.CONTEXT and v.facts is not None)
        yield f"a num_ctx of at most {longest}"
    if (missing := by_kind.get(VerdictKind.MISSING)) is not None:
        yield f"`ollama pull {missing.variant.model}`"
    if smallest is not None:
        yield f"a variant that fits, as `ollama-router advise {smallest.variant.model}` names them"
    if VerdictKind.MISSING not in by_kind and VerdictKind.INCAPABLE in by_kind:
        yield "a variant in this chain that can do it"


def _has_room(verdict: Verdict, total_bytes: int | None) -> bool:
    """Return whether the weights alone would leave room for a context."""
    return verdict.facts is not None and total_bytes is not None and verdict.facts.size_bytes < total_bytes
