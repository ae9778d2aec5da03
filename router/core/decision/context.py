"""Which num_ctx a variant would run with: what the request, the chain entry or the Modelfile demand, or what fits.

The router always names num_ctx: the automatic tiers of Ollama (32768 at 24 GB, 262144 at 48 GB) spill models that fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from router.core.decision.chain import Variant
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import can_complete
from router.core.payload.read import InferenceRequest

BYTES_PER_TOKEN = 4  # a rough average of English text; only to see that a prompt cannot fit


@dataclass(frozen=True, slots=True)
class ContextRules:
    """Operator's rules: default and least automatic context, the step that demands are rounded up to, and a cap."""

    default_num_ctx: int = 32768
    min_num_ctx: int = 8192
    step: int = 2048
    max_num_ctx: int | None = None


@dataclass(frozen=True, slots=True)
class ContextNeed:
    """The contexts that serve a request: at least `lower`; a load takes the largest that fits up to `upper`.

    `lower == upper` is a demand. `is_enough` False: the model's own maximum is below what the request needs.
    """

    lower: int
    upper: int
    is_enough: bool = True


class Automatic(NamedTuple):
    """Ollama's automatic contexts: its tier for the cards, and its own one (OLLAMA_CONTEXT_LENGTH, else the tier)."""

    tier_num_ctx: int
    own_num_ctx: int


def round_up(num_ctx: int, step: int) -> int:
    """`num_ctx` rounded up to `step`, so that clients which change it on every turn do not reload."""
    return -(-max(num_ctx, 4) // step) * step


def _clamp(num_ctx: int, facts: ModelFacts) -> int:
    return min(num_ctx, facts.context_length) if facts.context_length else num_ctx


def prompt_tokens(request: InferenceRequest) -> int:
    """A rough count of what the context must hold: prompt and answer."""
    return request.prompt_bytes // BYTES_PER_TOKEN + max(0, request.num_predict or 0)


def demanded(request: InferenceRequest, variant: Variant, facts: ModelFacts) -> int | None:
    """The context named by the request, else by the chain entry, else by the Modelfile; None where none names one."""
    if request.num_ctx is not None:
        return request.num_ctx
    if isinstance(variant.num_ctx, int):
        return variant.num_ctx
    named = facts.parameters.get("num_ctx")
    return int(named) if isinstance(named, int | float | str) and str(named).isdigit() else None


def context_need(
    request: InferenceRequest,
    variant: Variant,
    facts: ModelFacts,
    limit: int,
    automatic: Automatic,
    rules: ContextRules,
) -> ContextNeed:
    """The contexts with which `variant` may serve `request`.

    `limit` is the maximum of the model that the client named (0 =
    unknown): a fallback must hold what that one would have held, never less.
    """
    cap = rules.max_num_ctx or facts.context_length or 1 << 30
    if request.is_automatic or (not can_complete(facts) and request.num_ctx is None):  # at Ollama's own context
        num_ctx = _clamp(automatic.own_num_ctx, facts)
        return ContextNeed(num_ctx, num_ctx)
    named = demanded(request, variant, facts)
    if named is not None:
        wanted = min(named, limit or named, rules.max_num_ctx or named)
        num_ctx = min(_clamp(round_up(wanted, rules.step), facts), cap)
        return ContextNeed(num_ctx, num_ctx, is_enough=num_ctx >= wanted)
    tokens = prompt_tokens(request)
    floor = max(rules.min_num_ctx, round_up(tokens, rules.step) if tokens > rules.min_num_ctx else 0)
    lower = min(_clamp(floor, facts), cap)
    ceiling = cap if variant.num_ctx == "max" else min(automatic.tier_num_ctx, rules.default_num_ctx)
    upper = max(lower, min(_clamp(ceiling, facts), cap))
    return ContextNeed(lower, upper, is_enough=not facts.context_length or min(tokens, limit) <= facts.context_length)
