"""The facts of an installed model.

They come from `/api/tags` and `/api/show` (verbose), never from a model's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from router.core.ollama import show as shown
from router.core.ollama.figures import MAX_TEXT, ImplausibleFigure, architecture_of, check_metadata, check_vision
from router.core.ollama.series import series

_MOST_BARE = 64
"""The most parts and capabilities, and letters of a capability, of a model whose metadata takes too much memory."""


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor of a GGUF file as `/api/show` (verbose) lists it; `type` is ggml's name, e.g. ``Q4_K``.

    Python's garbage collector does not look at it: thousands of models have hundreds each, and it would in one step.
    """

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What the upstream reports about one installed model. Compared and hashed by identity, so it can be a cache key.

    `name` is the tag as spelled in `/api/tags`, `digest` its manifest digest, `size_bytes` the sum of all layers.
    `weights` is the blob in the ``FROM …sha256-…`` line of `/api/show`: models with equal weights share a runner.
    `parts` are further blobs (projectors, adapters, a draft model), `has_adapters` and `has_draft` say which are among
    them. `parameters` is the Modelfile's PARAMETER block. `info` is
    `model_info`, with its arrays if the server sent them, but without the tokenizer's (`vocab` is their length, or 0).
    `projector` is `projector_info`, the metadata of a vision tower in a blob of its own. `tensors` is empty if the
    server listed none. `is_remote`: another server runs the model, whatever its name. `doubt` names a figure
    that cannot be: then metadata and tensors are empty, and the model is sized by its download. `kin` stands for its
    family and series: models of one kin may replace each other.
    """

    name: str
    digest: str
    size_bytes: int
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    capabilities: frozenset[str] = frozenset()
    weights: str = ""
    parts: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()
    vocab: int = 0
    projector: Mapping[str, Any] = field(default_factory=dict)
    is_remote: bool = False
    doubt: str = ""
    has_adapters: bool = False
    has_draft: bool = False
    kin: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Work out the kin here, where models are read one by one: chains look at those of all models."""
        path, flavour = series(self.name)
        object.__setattr__(self, "kin", "\n".join((self.family, path, *sorted(flavour))))

    @staticmethod
    def of_show(row: Mapping[str, Any], show: Mapping[str, Any]) -> ModelFacts:
        """Build the facts from a row of `/api/tags` and the model's `/api/show` answer (verbose if supported).

        Never raise on what an old or odd server leaves out: the field stays empty, and the footprint reports it.
        """
        details, info = shown.details(row, show), shown.mapping(show.get("model_info"))
        modelfile = shown.text(show.get("modelfile"))
        blobs = shown.blobs(modelfile)
        digest, name = shown.text(row.get("digest")), shown.text(row.get("name")) or shown.text(row.get("model"))
        read = ModelFacts(
            name=name,
            digest=digest,
            size_bytes=shown.size(row.get("size")),
            family=shown.text(details.get("family")),
            parameter_size=shown.text(details.get("parameter_size")),
            quantization=shown.text(details.get("quantization_level")),
            capabilities=shown.capabilities(row, show),
            weights=blobs[0] if blobs else f"manifest-{digest or name}",
            parts=blobs[1:],
            parameters=shown.parameters(shown.text(show.get("parameters"))),
            is_remote=shown.is_remote(row, show),
            has_adapters=bool(shown.blobs(modelfile, "ADAPTER")),
            has_draft=bool(shown.blobs(modelfile, "DRAFT")),
        )
        return read._sized(info, show)

    def _sized(self, info: Mapping[str, Any], show: Mapping[str, Any]) -> ModelFacts:
        """Return the facts with what the model is sized by, or with the doubt about it."""
        projector = shown.mapping(show.get("projector_info"))
        try:
            check_metadata(info)
            check_vision(projector)
            tensors = _listed(shown.tensors(show.get("tensors")))
        except ImplausibleFigure as error:
            return self.doubted(str(error))
        kept, vocab = shown.without_vocabulary(info), shown.vocabulary(info)
        return replace(self, info=kept, tensors=tensors, vocab=vocab, projector=projector)

    def doubted(self, doubt: str) -> ModelFacts:
        """Return the facts without anything that the model is sized by, because of a figure that cannot be."""
        return replace(self, info={}, tensors=(), vocab=0, projector={}, doubt=doubt)

    def bare(self, doubt: str) -> ModelFacts:
        """Return the facts without anything that an author may write at length, which takes too much memory."""
        return replace(
            self.doubted(doubt),
            family=self.family[:MAX_TEXT],
            parameter_size=self.parameter_size[:MAX_TEXT],
            quantization=self.quantization[:MAX_TEXT],
            capabilities=frozenset(sorted(word for word in self.capabilities if len(word) <= _MOST_BARE)[:_MOST_BARE]),
            parts=self.parts[:_MOST_BARE],
            parameters={key: value for key, value in self.parameters.items() if key in shown.RUNNER_PARAMETERS},
        )

    @property
    def arch(self) -> str:
        """`general.architecture`, or "" where the metadata is missing."""
        return architecture_of(self.info)

    def value(self, key: str, default: Any = None) -> Any:
        """Return the metadata value ``<arch>.<key>``, or `default` if it is absent or null."""
        found = self.info.get(f"{self.arch}.{key}")
        return default if found is None else found

    @property
    def context_length(self) -> int:
        """The context in tokens that the model was trained with; 0 if unknown."""
        return int(self.value("context_length", 0))

    @property
    def parameter_count(self) -> float:
        """The number of parameters: from the metadata, else from details (``8.0B``, ``268.10M``); 0 if unknown."""
        exact = self.info.get("general.parameter_count")
        return float(exact) if exact else shown.count(self.parameter_size)


def _listed(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    """Return a model's tensors; those of one type or shape share it, because the layers of a model are alike."""
    kinds: dict[str, str] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    return tuple(
        Tensor(name, kinds.setdefault(kind, kind), shapes.setdefault(shape, shape)) for name, kind, shape in tensors
    )
