"""What could run: the facts of an installed model, a variant (model + num_ctx), a chain of variants.

Facts come from `/api/tags` and `/api/show` (verbose), never from a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a GGUF file as `/api/show` (verbose) lists it: `type` as ggml names it, e.g. ``Q4_K``."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What the upstream says of one installed model. Compared and hashed by identity, so it can be a cache key.

    `name` is the tag as `/api/tags` spells it, `digest` its manifest digest, `size_bytes` the sum of all layers.
    `weights` is the blob of the ``FROM …sha256-…`` line of `/api/show`: siblings with equal weights share a runner;
    `parts` are further blobs (projectors, adapters). `parameters` is the Modelfile's PARAMETER block. `info` is
    `model_info` with its arrays where the server gave them; `tensors` is empty when the server gave none.
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

    @property
    def arch(self) -> str:
        """`general.architecture`, or "" where the metadata is missing."""
        return str(self.info.get("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value ``<arch>.<key>``, or `default` where it is absent or null."""
        found = self.info.get(f"{self.arch}.{key}")
        return default if found is None else found

    @property
    def context_length(self) -> int:
        """The context that the model was trained with; 0 when unknown."""
        return int(self.value("context_length", 0))


@dataclass(frozen=True, slots=True)
class Variant:
    """One candidate of a chain: a model name, perhaps with its own context (a number, or "max" = what fits)."""

    model: str
    num_ctx: int | Literal["max"] | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """Ordered variants, biggest first. `name` is what clients ask for."""

    name: str
    variants: tuple[Variant, ...]
