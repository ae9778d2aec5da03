"""A file of weights: its metadata, what is wrong with it, what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.core.memory.weights import tensor_bytes
from router.core.ollama.model import Tensor

ALIGNMENT = 32


@dataclass(frozen=True, eq=False)
class Weights:
    """One weights blob: its metadata as in `/api/show`, its tensors, and its script (`speech.py`).

    `info` has all known arrays; `/api/show` without verbose shows them as null. `listed_quantization`: the value in
    tags if it differs from the manifest. `file_bytes`: the size of a truncated file (None: the file is whole).
    `is_gone`: the manifest names a file that is no longer there. `is_gguf`: False for a file of another kind.
    """

    digest: str
    size_bytes: int
    quantization: str
    size_label: str
    family: str
    families: tuple[str, ...]
    info: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    script: str = ""
    listed_quantization: str = ""
    file_bytes: int | None = None
    is_gone: bool = False
    is_gguf: bool = True

    @property
    def arch(self) -> str:
        """`general.architecture`."""
        return str(self.info.get("general.architecture", ""))

    @property
    def has_projector(self) -> bool:
        """Whether the file contains the vision tensors."""
        return any(tensor.name.startswith("v.") for tensor in self.tensors)

    @property
    def is_unreadable(self) -> bool:
        """Whether there is nothing to read: no file, or an empty one."""
        return self.is_gone or self.file_bytes == 0

    @property
    def has_metadata(self) -> bool:
        """Whether the file's metadata can be read as a whole."""
        return not self.is_gone and self.is_gguf and not self._is_cut_in_header

    @property
    def _is_cut_in_header(self) -> bool:
        return self.file_bytes is not None and self.file_bytes < self._data_start

    @property
    def damage(self) -> str:
        """Ollama's text for a truncated file or another kind of file, "" for a whole one."""
        if not self.is_gguf:
            return "invalid file magic"
        if self._is_cut_in_header:
            return "unexpected EOF" if self.file_bytes else "EOF"
        sizes = [tensor_bytes(tensor) for tensor in self.tensors] if self.file_bytes is not None else []
        start = self._data_start
        for tensor, size in zip(self.tensors, sizes, strict=False):
            end = start + size
            if end > (self.file_bytes or 0):
                return f'tensor "{tensor.name}" offset+size ({end}) exceeds file size ({self.file_bytes})'
            start += -(-size // ALIGNMENT) * ALIGNMENT
        return ""

    @property
    def _data_start(self) -> int:
        sizes = (tensor_bytes(tensor) for tensor in self.tensors)
        return self.size_bytes - sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)

    def value(self, key: str) -> Any:
        """Return the metadata value ``<arch>.<key>``, or None."""
        return self.info.get(f"{self.arch}.{key}")


def capabilities_of(weights: Weights, template: str, *, with_vision: bool = True) -> tuple[str, ...]:
    """Return the capabilities of weights with a template, in Ollama's order."""
    found = [] if weights.is_unreadable else ["completion"]
    if found and weights.value("pooling_type") is not None:
        return ("embedding",)
    if found and with_vision and weights.value("vision.block_count") is not None:
        found.append("vision")
    if ".Tools" in template:
        found.append("tools")
    if ".Suffix" in template:
        found.append("insert")
    if ".Thinking" in template:
        found.append("thinking")
    return tuple(found)
