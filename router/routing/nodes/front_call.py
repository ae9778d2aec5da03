"""What a front says with a request, as its node takes it: whose it is, by which chain and rules, how to decline it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from router.config import ChainRule, ChainRules
from router.core.decision.chain import Variant
from router.core.decision.verdict import Verdict
from router.core.nodes.call import NodeCall
from router.core.ollama.names import is_name, key_of
from router.core.teams.team import Identity
from router.errors import BadRequest, Misdirected

Decline = Callable[[str, Iterable[Verdict]], bytes]
"""Returns the body that declines a call: why, and the verdicts on the variants."""


@dataclass(frozen=True, slots=True, eq=False)
class FrontCall:
    """What a front says with a request. Requests that say the same share one, with its `rules`.

    `model` is the key of the name that the request must have, `identity` whose request it is.
    """

    told: NodeCall
    model: str
    identity: Identity
    rules: ChainRules
    decline: Decline

    @staticmethod
    def of(told: NodeCall, identity: Identity, decline: Decline) -> FrontCall:
        """Return the call with its rules: its own chain alone. Raises BadRequest for what is no name of a model."""
        rules = told.rules
        for variant in told.chain:
            key_of(variant.model)
        rule = ChainRule(
            told.name,
            tuple(Variant(one.model, one.num_ctx) for one in told.chain),
            "off",
            rules.nothing_fits,
            rules.upgrade,
            rules.prefer,
            rules.max_load_wait_s,
            rules.upgrade_after_s,
            max_num_ctx=rules.max_num_ctx,
            announce=rules.announce,
        )
        return FrontCall(told, key_of(told.name), identity, ChainRules.only(rule), decline)

    def check_model(self, name: str) -> None:
        """Raise BadRequest if a request is for another model than its front says."""
        if not (is_name(name) and key_of(name) == self.model):
            raise BadRequest(f"X-Router-Call is for the model {self.told.name}, and the request for another one")

    def declined(self, why: str, verdicts: Iterable[Verdict] = ()) -> Misdirected:
        """Return the error that sends the request back to its front."""
        return Misdirected(why, self.decline(why, verdicts))
