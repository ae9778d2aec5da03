"""The models of a node with the facts that a front decides by: what each is, and what it needs on the node's cards.

The catalog is read again when one of the two digests in the node's view is another one.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from router.core.nodes.form import VERSION, Bytes, Seconds, Short, Text, Tokens, read
from router.core.ollama.model import ModelFacts

MOST_CATALOG_BYTES = 16 << 20
MOST_MODELS = 10_000
_PARTS, _WORDS = 64, 64


class NodeNeed(msgspec.Struct, frozen=True):
    """What a model needs with a context: `need_bytes` in all, on one card if it fits there. `load_s` = to load it."""

    num_ctx: Tokens
    need_bytes: Bytes
    load_s: Seconds


class NodeModel(msgspec.Struct, frozen=True):
    """One installed model. `needs` begins with the context that a request gets which names none; it may be empty.

    The rest is as in `ModelFacts`; `parameters_number` is its `parameter_count`.
    """

    name: Annotated[str, Meta(min_length=1, max_length=640)]
    digest: Text
    size_bytes: Bytes
    weights: Text
    parts: Annotated[tuple[Text, ...], Meta(max_length=_PARTS)] = ()
    family: Text = ""
    parameter_size: Text = ""
    quantization: Text = ""
    capabilities: Annotated[tuple[Short, ...], Meta(max_length=_WORDS)] = ()
    parameters_number: Annotated[float, Meta(ge=0, le=1e15)] = 0.0
    context_length: Tokens = 0
    is_remote: bool = False
    needs: Annotated[tuple[NodeNeed, ...], Meta(max_length=16)] = ()

    @staticmethod
    def of(facts: ModelFacts, needs: tuple[NodeNeed, ...] = ()) -> NodeModel:
        """Return the model with these facts."""
        return NodeModel(
            facts.name,
            facts.digest,
            facts.size_bytes,
            facts.weights,
            facts.parts[:_PARTS],
            facts.family[:512],
            facts.parameter_size[:512],
            facts.quantization[:512],
            tuple(sorted(word for word in facts.capabilities if len(word) <= 128)[:_WORDS]),
            facts.parameter_count,
            facts.context_length,
            facts.is_remote,
            needs,
        )

    def facts(self) -> ModelFacts:
        """Return the facts as far as they were told: chains are derived from them, but nothing can be sized."""
        info = {
            "general.architecture": self.family,
            "general.parameter_count": self.parameters_number,
            f"{self.family}.context_length": self.context_length,
        }
        return ModelFacts(
            name=self.name,
            digest=self.digest,
            size_bytes=self.size_bytes,
            family=self.family,
            parameter_size=self.parameter_size,
            quantization=self.quantization,
            capabilities=frozenset(self.capabilities),
            weights=self.weights,
            parts=self.parts,
            info=info,
            is_remote=self.is_remote,
        )

    def need(self, num_ctx: int | None) -> NodeNeed | None:
        """Return what it needs with a context (None = the node's default), between the known ones by a straight line.

        None if nothing is known of it.
        """
        if num_ctx is None or not self.needs:
            return self.needs[0] if self.needs else None
        known = sorted(self.needs, key=lambda one: one.num_ctx)
        below = [one for one in known if one.num_ctx <= num_ctx] or known[:1]
        above = [one for one in known if one.num_ctx >= num_ctx] or known[-1:]
        low, high = below[-1], above[0]
        if low.num_ctx == high.num_ctx:
            if len(known) < 2 or low.num_ctx == num_ctx:
                return low
            low, high = (known[0], known[1]) if num_ctx < low.num_ctx else (known[-2], known[-1])
        part = (num_ctx - low.num_ctx) / (high.num_ctx - low.num_ctx)
        need_bytes = max(0, round(low.need_bytes + part * (high.need_bytes - low.need_bytes)))
        return NodeNeed(num_ctx, need_bytes, low.load_s)


class NodeCatalog(msgspec.Struct, frozen=True, kw_only=True):
    """All models of a node; the digests are those in its view."""

    v: int = VERSION
    catalog_digest: Short
    learned_digest: Short
    models: Annotated[tuple[NodeModel, ...], Meta(max_length=MOST_MODELS)] = ()

    @staticmethod
    def of(models: tuple[NodeModel, ...]) -> NodeCatalog:
        """Return the catalog of these models, with its digests."""
        ordered = tuple(sorted(models, key=lambda model: model.name))
        bare = [msgspec.structs.replace(model, needs=()) for model in ordered]
        needs = [(model.name, model.needs) for model in ordered]
        return NodeCatalog(catalog_digest=_digest(bare), learned_digest=_digest(needs), models=ordered)

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return _encode(self)

    @staticmethod
    def from_json(data: bytes) -> NodeCatalog:
        """Return the catalog in `data`. Raises UnreadableForm, which names the field."""
        return read(_decoder, data, MOST_CATALOG_BYTES)


def _digest(values: object) -> str:
    return hashlib.sha256(_encode(values)).hexdigest()[:16]


_encode = msgspec.json.encode
_decoder = msgspec.json.Decoder(NodeCatalog)
