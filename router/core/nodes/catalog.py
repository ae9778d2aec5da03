"""The models of a node with the facts that a front decides by: what each is, and what it needs on the node's cards.

The catalog is read again when one of the two digests in the node's view is another one.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from typing import Annotated

import msgspec
from msgspec import Meta

from router.core.nodes.form import VERSION, Bytes, Number, Seconds, Short, Text, Tokens, UnreadableForm, read
from router.core.ollama.figures import MAX_TEXT
from router.core.ollama.model import ModelFacts

MOST_CATALOG_BYTES = 16 << 20
MOST_MODELS = 10_000
_PARTS, _WORDS, _LETTERS = 64, 64, 128
_WHOLE = re.compile(r"-?[0-9]{1,10}", re.ASCII)


class NodeNeed(msgspec.Struct, frozen=True):
    """What must be free for a model with a context: on one of the node's cards, or over all of them (None = one card).

    Of different cards it is the one with most memory that counts.
    """

    num_ctx: Tokens
    need_bytes: Bytes
    split_bytes: Bytes | None = None


class NodeModel(msgspec.Struct, frozen=True, kw_only=True):
    """One installed model. `needs` are for rising contexts, the least that the node loads first; it may be empty.

    `load_s` is what a load took there or should take. `num_ctx` and `num_gpu` are those of its Modelfile. The rest is
    as in `ModelFacts`, of whose `info` only the figures are here that are told apart by name.
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
    is_remote: bool = False
    architecture: Text = ""
    parameter_count: Annotated[float, Meta(ge=0, le=1e15)] = 0.0
    context_length: Tokens = 0
    embedding_length: Number = 0
    block_count: Number = 0
    num_ctx: Tokens | None = None
    num_gpu: int | None = None
    needs: Annotated[tuple[NodeNeed, ...], Meta(max_length=16)] = ()
    load_s: Seconds | None = None

    @staticmethod
    def of(facts: ModelFacts, needs: tuple[NodeNeed, ...] = (), load_s: float | None = None) -> NodeModel:
        """Return the model with these facts."""
        return NodeModel(
            name=facts.name,
            digest=facts.digest,
            size_bytes=facts.size_bytes,
            weights=facts.weights,
            parts=facts.parts[:_PARTS],
            family=facts.family[:MAX_TEXT],
            parameter_size=facts.parameter_size[:MAX_TEXT],
            quantization=facts.quantization[:MAX_TEXT],
            capabilities=tuple(sorted(word for word in facts.capabilities if len(word) <= _LETTERS)[:_WORDS]),
            is_remote=facts.is_remote,
            architecture=facts.arch,
            parameter_count=facts.parameter_count,
            context_length=facts.context_length,
            embedding_length=int(facts.value("embedding_length", 0)),
            block_count=int(facts.value("block_count", 0)),
            num_ctx=_parameter(facts, "num_ctx", least=1),
            num_gpu=_parameter(facts, "num_gpu", least=-1),
            needs=needs,
            load_s=load_s,
        )

    def facts(self) -> ModelFacts:
        """Return the facts as far as they were told: chains are derived from them, but nothing can be sized."""
        arch = self.architecture
        figures = {
            "general.architecture": arch,
            "general.parameter_count": self.parameter_count,
            f"{arch}.context_length": self.context_length,
            f"{arch}.embedding_length": self.embedding_length,
            f"{arch}.block_count": self.block_count,
        }
        parameters = {"num_ctx": self.num_ctx, "num_gpu": self.num_gpu}
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
            parameters={key: value for key, value in parameters.items() if value is not None},
            info={key: value for key, value in figures.items() if value},
            is_remote=self.is_remote,
        )

    def need(self, num_ctx: int) -> NodeNeed | None:
        """Return what it needs with a context: between and beyond the known ones by a straight line, at least 0.

        None if nothing is known of it.
        """
        known = self.needs
        if not known:
            return None
        at = min(max(1, bisect_left(known, num_ctx, key=lambda one: one.num_ctx)), len(known) - 1)
        low, high = known[at - 1], known[at]
        if low.num_ctx >= high.num_ctx:
            return known[0]
        part = (num_ctx - low.num_ctx) / (high.num_ctx - low.num_ctx)
        split_bytes = None
        if low.split_bytes is not None and high.split_bytes is not None:
            split_bytes = _between(low.split_bytes, high.split_bytes, part)
        return NodeNeed(num_ctx, _between(low.need_bytes, high.need_bytes, part), split_bytes)


def _between(low: int, high: int, part: float) -> int:
    return max(0, round(low + part * (high - low)))


def _parameter(facts: ModelFacts, name: str, least: int) -> int | None:
    text = str(facts.parameters.get(name))
    return int(text) if _WHOLE.fullmatch(text) and least <= int(text) <= 1 << 31 else None


class NodeCatalog(msgspec.Struct, frozen=True, kw_only=True):
    """All models of a node; the digests are those in its view."""

    v: int = VERSION
    catalog_digest: Short
    learned_digest: Short
    models: Annotated[tuple[NodeModel, ...], Meta(max_length=MOST_MODELS)] = ()

    @staticmethod
    def of(models: tuple[NodeModel, ...]) -> NodeCatalog:
        """Return the catalog of these models, with its digests."""
        making = CatalogInMaking()
        for model in sorted(models, key=lambda model: model.name):
            making.add(model)
        return making.whole()

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return _encode(self)

    @staticmethod
    def from_json(data: bytes) -> NodeCatalog:
        """Return the catalog in `data`. Raises UnreadableForm, which names the field.

        Its models are read one by one: thousands in one step would hold the loop from any thread.
        """
        found = read(_decoder, data, MOST_CATALOG_BYTES)
        models = tuple(_model(raw, at) for at, raw in enumerate(found.models))
        return NodeCatalog(
            v=found.v, catalog_digest=found.catalog_digest, learned_digest=found.learned_digest, models=models
        )


class CatalogInMaking:
    """A catalog to which models are added one by one, by name, so that a long one is not made in one step."""

    def __init__(self) -> None:
        self._models: list[NodeModel] = []
        self._facts, self._learned = hashlib.sha256(), hashlib.sha256()

    def add(self, model: NodeModel) -> None:
        """Add the next model."""
        self._models.append(model)
        self._facts.update(_encode(msgspec.structs.replace(model, needs=(), load_s=None)))
        self._learned.update(_encode((model.name, model.needs, model.load_s)))

    def whole(self) -> NodeCatalog:
        """Return the catalog of all that were added."""
        facts, learned = (digest.hexdigest()[:16] for digest in (self._facts, self._learned))
        return NodeCatalog(catalog_digest=facts, learned_digest=learned, models=tuple(self._models))


class _Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A catalog whose models are not read yet."""

    v: int
    catalog_digest: Short
    learned_digest: Short
    models: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=MOST_MODELS)] = ()


def _model(raw: msgspec.Raw, at: int) -> NodeModel:
    try:
        return _model_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableForm(f"models[{at}]: {error}"[:300]) from None


_encode = msgspec.json.encode
_decoder = msgspec.json.Decoder(_Unread)
_model_decoder = msgspec.json.Decoder(NodeModel)
