"""A call that a node declines with status 421, before it has changed anything: what it found, as JSON.

The front tries the next node. `boot_id` and `seq` are those of the view by which the node has decided: one that a front
has seen already tells it nothing new.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from router.core.decision.verdict import Verdict
from router.core.nodes.call import MOST_VARIANTS, ModelText
from router.core.nodes.form import VERSION, Bytes, Name, Number, Text, Tokens, read

STATUS = 421
MOST_DECLINED_BYTES = 128 << 10


class NodeVerdict(msgspec.Struct, frozen=True):
    """The verdict on one variant: `kind` is the name of a `VerdictKind` in small letters."""

    model: ModelText
    kind: Annotated[str, Meta(max_length=64)]
    num_ctx: Tokens = 0
    need_bytes: Bytes = 0
    have_bytes: Bytes = 0
    detail: Text = ""

    @staticmethod
    def of(verdict: Verdict) -> NodeVerdict:
        """Return the form of a verdict."""
        return NodeVerdict(
            verdict.variant.model,
            verdict.kind.name.lower(),
            verdict.num_ctx,
            max(0, verdict.need_bytes),
            max(0, verdict.have_bytes),
            verdict.detail[:1024],
        )


class NodeDeclined(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a 421. `error` says why in words, and is what Ollama's clients would show."""

    v: int = VERSION
    error: Annotated[str, Meta(max_length=64 << 10)]
    node: Name
    boot_id: Name
    seq: Number
    verdicts: Annotated[tuple[NodeVerdict, ...], Meta(max_length=MOST_VARIANTS)] = ()

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes) -> NodeDeclined:
        """Return what is in `data`. Raises UnreadableForm, which names the field."""
        return read(_decoder, data, MOST_DECLINED_BYTES)


_decoder = msgspec.json.Decoder(NodeDeclined)
