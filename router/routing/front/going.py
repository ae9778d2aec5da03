"""Where a request goes, and what its node is told about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from router.core.decision.chain import Variant
from router.core.decision.chain_choices import NothingFits
from router.core.decision.fleet.offer import Tier
from router.core.nodes.call import HEADER, MOST_VARIANTS, CallRules, CallVariant, NodeCall
from router.core.nodes.choice import Pick
from router.core.nodes.wanted import Wanted
from router.core.teams.team import Identity
from router.routing.call import Call
from router.routing.front.node import Node
from router.routing.ruled import RuledChain

LEAST_WAIT_S = 1.0
"""A node may keep a request at least so long, however long it has waited here."""

ALL = ""
"""In place of weights: a request for whatever."""


@dataclass(frozen=True, slots=True)
class Going:
    """A node for a request. `lines` are the headers that it is told by, `weights` the model that is expected to serve.

    `is_final`: the node does what it can. `others` are to get the same, whatever they answer. `model` is the name of
    the expected variant, "" if none is.
    """

    node: Node
    lines: bytes = b""
    weights: str = ALL
    model: str = ""
    chain: RuledChain | None = None
    is_final: bool = False
    others: tuple[Node, ...] = ()


def to_pick(call: Call, node: Node, chain: RuledChain, wanted: Wanted, pick: Pick, wait_s: float) -> Going:
    """Return the way to a node that is expected to serve one variant."""
    variants = wanted.variants[: pick.last + 1]
    header = _header(call, chain, len(variants), wait_s, may_wait=pick.tier is Tier.WAITS)
    return Going(node, header, pick.weights, wanted.variants[pick.position].model, chain)


def as_it_can(call: Call, node: Node, chain: RuledChain, wait_s: float) -> Going:
    """Return the way to a node that is to serve by any variant, or to refuse, by the rules of the chain."""
    header = _header(call, chain, len(chain.variants), wait_s, is_final=True)
    return Going(node, header, chain=chain, is_final=True)


def _header(
    call: Call, chain: RuledChain, variants: int, wait_s: float, *, is_final: bool = False, may_wait: bool = True
) -> bytes:
    """Return the header of a call. Equal calls get equal ones, which the node reads once: so it has whole seconds."""
    deadline_s = max(LEAST_WAIT_S, math.ceil(wait_s))
    return _rendered(call.identity, call.nothing_fits, chain, variants, deadline_s, is_final, may_wait)


@lru_cache(maxsize=1024)
def _rendered(
    identity: Identity,
    nothing_fits: NothingFits | None,
    chain: RuledChain,
    variants: int,
    deadline_s: float,
    is_final: bool,
    may_wait: bool,
) -> bytes:
    rule, team = chain.rule, identity.team
    told = NodeCall(
        team=team.name,
        share=team.share,
        key_id=identity.key_id[:128],
        name=chain.name,
        chain=tuple([CallVariant(one.model, one.num_ctx) for one in _told(chain.variants[:variants])]),
        rules=CallRules(
            nothing_fits or rule.nothing_fits,
            rule.upgrade,
            rule.prefer,
            min(rule.max_load_wait_s, 1e9),
            rule.upgrade_after_s,
            rule.max_num_ctx,
            rule.announce,
        ),
        deadline_s=deadline_s,
        is_final=is_final,
        may_wait=may_wait,
    )
    return b"%b: %b\r\n" % (HEADER, told.to_header())


def _told(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return the variants that a node is told of: of very many the first, by which the request is read, and the last.

    Those between were too big everywhere; the last one is what the node is to serve.
    """
    return variants if len(variants) <= MOST_VARIANTS else (variants[0], *variants[1 - MOST_VARIANTS :])
