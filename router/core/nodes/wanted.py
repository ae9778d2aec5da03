"""What a request wants of a chain on whatever node: which variants can serve it, and with which contexts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.core.decision.candidate import need_or_verdict
from router.core.decision.chain import Chain, Variant
from router.core.decision.context import Automatic, ContextRules
from router.core.decision.policy import limit_of
from router.core.decision.verdict import USABLE, Verdict
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest


@dataclass(frozen=True, slots=True, eq=False)
class WantedVariant:
    """One variant. `verdict` is what is to be said of it on every node, None if that depends on the node.

    `num_ctx` are the tokens that it must be loaded with at least, `held_ctx` those that are enough where it is loaded
    (0 = whatever it has: Ollama itself has chosen it). `weights` are those by which nodes tell what they hold.
    """

    variant: Variant
    key: str
    facts: ModelFacts | None
    weights: str = ""
    num_ctx: int = 0
    held_ctx: int = 0
    verdict: Verdict | None = None

    @property
    def is_able(self) -> bool:
        """True if a node may be able to serve the request by it."""
        return self.facts is not None and (self.verdict is None or self.verdict.kind in USABLE)

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.variant.model


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """All variants of a chain for requests of one kind, in order."""

    chain: Chain
    variants: tuple[WantedVariant, ...]


def wanted_of(
    request: InferenceRequest, chain: Chain, catalog: Mapping[str, ModelFacts], rules: ContextRules
) -> Wanted:
    """Return what a request wants; `catalog` are the models of all nodes.

    A context that Ollama chooses by the size of its cards is another one on each node: the default stands for it.
    """
    asked = catalog.get(key_of(chain.variants[0].model)) if chain.variants else None
    limit = limit_of(chain, asked, catalog)
    automatic = Automatic(rules.default_num_ctx, rules.default_num_ctx)
    found = []
    for variant in chain.variants:
        key = key_of(variant.model)
        facts = catalog.get(key)
        need = need_or_verdict(request, variant, facts, asked, limit, automatic, rules)
        if facts is None or isinstance(need, Verdict):
            weights = facts.weights if facts is not None else ""
            found.append(
                WantedVariant(variant, key, facts, weights, verdict=need if isinstance(need, Verdict) else None)
            )
        else:
            held_ctx = 0 if need.is_ollamas else need.lower
            found.append(WantedVariant(variant, key, facts, facts.weights, need.lower, held_ctx))
    return Wanted(chain, tuple(found))
