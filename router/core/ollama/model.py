"""The facts of an installed model.

They come from `/api/tags` and `/api/show` (verbose), never from a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.core.ollama import show as shown


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a GGUF file as `/api/show` (verbose) lists it; `type` is ggml's name, e.g. ``Q4_K``."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What the upstream reports about one installed model. Compared and hashed by identity, so it can be a cache key.

    `name` is the tag as spelled in `/api/tags`, `digest` its manifest digest, `size_bytes` the sum of all layers.
    `weights` is the blob in the ``FROM …sha256-…`` line of `/api/show`: models with equal weights share a runner.
    `parts` are further blobs (projectors, adapters). `parameters` is the Modelfile's PARAMETER block. `info` is
    `model_info`, with its arrays if the server sent them, but without the tokenizer's (`vocab` is their length, or 0).
    `projector` is `projector_info`, the metadata of a vision tower in a blob of its own. `tensors` is empty if the
    server listed none.
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

    @staticmethod
    def of_show(row: Mapping[str, Any], show: Mapping[str, Any]) -> ModelFacts:
        """Build the facts from a row of `/api/tags` and the model's `/api/show` answer (verbose if supported).

        Never raise on what an old or odd server leaves out: the field stays empty, and the footprint reports it.
        """
        details, info = shown.details(row, show), shown.mapping(show.get("model_info"))
        blobs = shown.blobs(str(show.get("modelfile") or ""))
        digest = str(row.get("digest") or "")
        return ModelFacts(
            name=str(row.get("name") or row.get("model") or ""),
            digest=digest,
            size_bytes=int(row.get("size") or 0),
            family=str(details.get("family") or ""),
            parameter_size=str(details.get("parameter_size") or ""),
            quantization=str(details.get("quantization_level") or ""),
            capabilities=shown.capabilities(row, show),
            weights=blobs[0] if blobs else f"manifest-{digest}",
            parts=blobs[1:],
            parameters=shown.parameters(str(show.get("parameters") or "")),
            info=shown.without_vocabulary(info),
            tensors=tuple(Tensor(*tensor) for tensor in shown.tensors(show.get("tensors"))),
            vocab=len(info.get("tokenizer.ggml.tokens") or ()),
            projector=shown.mapping(show.get("projector_info")),
        )

    @property
    def arch(self) -> str:
        """`general.architecture`, or "" where the metadata is missing."""
        return str(self.info.get("general.architecture", ""))

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
