"""The num_ctx of a variant: the one that the request, the chain entry or the Modelfile names, else one that fits.

The router names num_ctx in every load that it can, because Ollama's automatic tiers (32768 at 24 GB, 262144 at 48 GB)
spill models that fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from router.core.decision.chain import Variant
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import can_complete
from router.core.payload.read import BYTES_PER_TOKEN, InferenceRequest

PADDING = 256  # llama.cpp pads a context to this

IMAGE_TOKENS = 1024
"""Counted for the images of a request; a tower makes 256 tokens of one (gemma3), or some thousand (qwen2.5vl)."""


@dataclass(frozen=True, slots=True)
class ContextRules:
    """The operator's rules, in tokens: default and least automatic context, step that contexts are rounded to, cap."""

    default_num_ctx: int = 32768
    min_num_ctx: int = 8192
    step: int = 2048
    max_num_ctx: int | None = None
    answer_tokens: int = 2048

    def at_most(self, num_ctx: int) -> ContextRules:
        """Return the rules for those who may have at most `num_ctx` tokens."""
        most = min(num_ctx, self.max_num_ctx or num_ctx)
        default, least = min(most, self.default_num_ctx), min(most, self.min_num_ctx)
        return replace(self, default_num_ctx=default, min_num_ctx=least, max_num_ctx=most)


@dataclass(frozen=True, slots=True)
class ContextNeed:
    """The contexts in tokens that serve a request: at least `lower`; a load takes the largest that fits up to `upper`.

    A context that somebody names is rounded up to a step in `upper`, but only padded as llama.cpp does in `lower`: the
    rounding must not cost a variant. `lower == upper`: exactly this context is required. `is_enough` False: the model's
    maximum is below what is required. `headroom` is the context to reload with if possible, for a model that outgrew
    the one it is loaded with (0 = it did not). `is_ollamas`: Ollama chooses it, so no load can ask for more.
    """

    lower: int
    upper: int
    is_enough: bool = True
    headroom: int = 0
    is_ollamas: bool = False

    def with_headroom(self, loaded_num_ctx: int | None, facts: ModelFacts, rules: ContextRules) -> ContextNeed:
        """Return the need of a model that is loaded with `loaded_num_ctx` tokens (None = it is not loaded)."""
        if self.is_ollamas or loaded_num_ctx is None or loaded_num_ctx >= self.lower:
            return self
        most = min(rules.max_num_ctx or rules.default_num_ctx, rules.default_num_ctx)
        headroom = min(_clamp(round_up(2 * self.lower, rules.step), facts), most)
        return replace(self, headroom=max(self.upper, headroom))


class Automatic(NamedTuple):
    """Contexts that Ollama chooses by itself: the tier for its cards, and the one in force.

    The one in force is OLLAMA_CONTEXT_LENGTH, else the tier.
    """

    tier_num_ctx: int
    own_num_ctx: int


def round_up(num_ctx: int, step: int) -> int:
    """Return `num_ctx` rounded up to `step`, so that a client which changes it on every turn causes no reload."""
    return -(-max(num_ctx, 4) // step) * step


def _clamp(num_ctx: int, facts: ModelFacts) -> int:
    return min(num_ctx, facts.context_length) if facts.context_length else num_ctx


def needed_tokens(request: InferenceRequest, answer_tokens: int) -> int:
    """Estimate the tokens that the context must hold: the prompt, and an answer of at most `answer_tokens`.

    What a client names (max_tokens, num_predict) is a ceiling of its answer, not a need: coding agents send 32000 or
    128000 with each request, and Ollama reserves nothing for it.
    """
    ceiling = request.num_predict
    answer = answer_tokens if ceiling is None or ceiling < 0 else min(ceiling, answer_tokens)
    images = IMAGE_TOKENS if "vision" in request.needs else 0
    return request.prompt_bytes // BYTES_PER_TOKEN + images + answer


def named_num_ctx(request: InferenceRequest, variant: Variant, facts: ModelFacts) -> int | None:
    """Return the context that the request names, else the chain entry, else the Modelfile; None if none names one.

    A chain entry that asks for the largest context overrules the Modelfile.
    """
    if request.num_ctx is not None:
        return request.num_ctx
    if isinstance(variant.num_ctx, int):
        return variant.num_ctx
    if variant.num_ctx == "max":
        return None
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
    """Return the contexts with which `variant` may serve `request`.

    `limit` is the maximum of the model that the client named (0 = unknown): a fallback must hold what that model would
    have held.
    """
    cap = rules.max_num_ctx or facts.context_length or 1 << 30
    if request.is_automatic or (not can_complete(facts) and request.num_ctx is None):  # at Ollama's own context
        num_ctx = _clamp(automatic.own_num_ctx, facts)
        return ContextNeed(num_ctx, num_ctx, is_ollamas=True)
    tokens = needed_tokens(request, rules.answer_tokens)
    is_enough = not facts.context_length or min(tokens, limit) <= facts.context_length
    named = named_num_ctx(request, variant, facts)
    if named is not None:
        wanted = min(named, limit or named, rules.max_num_ctx or named)
        least, num_ctx = (min(_clamp(round_up(wanted, step), facts), cap) for step in (PADDING, rules.step))
        # Only a client's num_ctx is a demand. The operator's is cut to the model's maximum, as Ollama does.
        return ContextNeed(least, num_ctx, num_ctx >= wanted or (request.num_ctx is None and is_enough))
    floor = max(rules.min_num_ctx, round_up(tokens, PADDING) if tokens > rules.min_num_ctx else 0)
    lower = min(_clamp(floor, facts), cap)
    ceiling = cap if variant.num_ctx == "max" else min(automatic.tier_num_ctx, rules.default_num_ctx)
    upper = max(lower, min(_clamp(ceiling, facts), cap))
    return ContextNeed(lower, upper, is_enough)
