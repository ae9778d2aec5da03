"""What a front says to a node with a request, in the header `X-Router-Call`: whose it is, and by which chain and rules.

The value is JSON in base64url. The front has checked the rights and limits of the team; the node decides, and accounts
for it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from router.core.decision.chain_choices import Announce, NothingFits, Prefer, Upgrade
from router.core.nodes.form import VERSION, Seconds, Short, Tokens, UnreadableForm, read
from router.core.ollama.names import MAX_NAME

HEADER = b"x-router-call"
MOST_VARIANTS = 64
MOST_CALL_BYTES = (MOST_VARIANTS * (MAX_NAME + 40) + (4 << 10)) * 4 // 3
"""A call by the longest chain of the longest names, and 4 KiB for all else of it, in base64url."""

ModelText = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]


class CallVariant(msgspec.Struct, frozen=True):
    """One variant of the chain: a model name, and its context (None = the node's default, "max" = as much as fits)."""

    model: ModelText
    num_ctx: Annotated[int, Meta(ge=1, le=1 << 31)] | Literal["max"] | None = None


class CallRules(msgspec.Struct, frozen=True):
    """The rules of the chain, as the keys of those names in a configuration; `max_num_ctx` is the team's largest."""

    nothing_fits: NothingFits
    upgrade: Upgrade
    prefer: Prefer
    max_load_wait_s: Seconds
    upgrade_after_s: Seconds | None = None
    max_num_ctx: Tokens | None = None
    announce: Announce = "off"


class NodeCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a front. `team` need not be known to the node; `share` is its weight when teams compete.

    `chain` ends with the variant that the front has chosen: the node serves that or a bigger one, or declines. With
    `is_final` the chain is the whole one and the node does not decline: it serves what it can, by the rules.
    Unless it `may_wait` the node also declines where models that are in use would have to be waited for.
    `deadline_s` is how long the request may wait there at most. `hop` is 1: a node passes no request on to another.
    `key_id` and `client` are the team's key and the client's address, for the accounts; "" = none.
    """

    v: int = VERSION
    hop: Literal[1] = 1
    team: Annotated[str, Meta(min_length=1, max_length=128)]
    share: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    key_id: Short = ""
    client: Short = ""
    name: ModelText
    chain: Annotated[tuple[CallVariant, ...], Meta(min_length=1, max_length=MOST_VARIANTS)]
    rules: CallRules
    deadline_s: Seconds
    is_final: bool = False
    may_wait: bool = True

    def to_header(self) -> bytes:
        """Return the value of the header."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self))

    @staticmethod
    def from_header(value: bytes) -> NodeCall:
        """Return the call in the value of a header. Raises UnreadableForm, which names the field."""
        if len(value) > MOST_CALL_BYTES:
            raise UnreadableForm(f"more than {MOST_CALL_BYTES} bytes")
        try:
            data = base64.b64decode(value + b"=" * (-len(value) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise UnreadableForm("not base64url") from None
        return read(_decoder, data, MOST_CALL_BYTES)


_decoder = msgspec.json.Decoder(NodeCall)
