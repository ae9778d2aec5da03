"""Installed models: weights, manifests of layers with Ollama's own digests, tags and their capabilities.

Capabilities follow from a model's template and metadata, never from its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ollama_simulator.gojson import dump
from ollama_simulator.scheduler.engine import SimModel
from router.core.memory.weights import tensor_bytes
from router.core.ollama.model import ModelFacts, Tensor
from router.core.ollama.names import ModelName

MEDIA = "application/vnd.ollama.image."
ALIGNMENT = 32
CONFIG_MEDIA = "application/vnd.docker.container.image.v1+json"


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes, as ``sha256:…``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


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


@dataclass(frozen=True)
class Layer:
    """One layer of a manifest. `data` is empty for weights."""

    media: str
    digest: str
    size: int
    data: bytes = b""
    origin: str = ""

    def manifest(self) -> dict[str, Any]:
        """Return the layer's entry in the manifest."""
        entry: dict[str, Any] = {"mediaType": self.media, "digest": self.digest, "size": self.size}
        if self.origin:
            entry["from"] = self.origin
        return entry


def layer(kind: str, data: bytes) -> Layer:
    """Return a layer of Ollama's media type `kind` with these bytes."""
    return Layer(MEDIA + kind, digest_of(data), len(data), data)


@dataclass(frozen=True)
class Remote:
    """The model of another server that a tag stands for, and what create was told of it; "" and 0 = nothing."""

    model: str
    host: str
    family: str = ""
    base_name: str = ""
    size_label: str = ""
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0

    @property
    def fields(self) -> dict[str, str]:
        """The fields of tags and show."""
        return {"remote_model": self.model, "remote_host": self.host}

    @property
    def model_info(self) -> dict[str, Any]:
        """`model_info` of show."""
        if not self.family:
            return {}
        found = {"general.architecture": self.family, "general.basename": self.base_name}
        found |= {f"{self.family}.{key}": getattr(self, key) for key in ("context_length", "embedding_length")}
        return {key: value for key, value in sorted(found.items()) if value}


@dataclass(frozen=True, eq=False)
class Installed:
    """One tag: its manifest and everything read from it. Replaced as a whole whenever the tag is written."""

    name: ModelName
    weights: Weights
    layers: tuple[Layer, ...]
    config: Layer
    modified_at: datetime
    parent: str = ""
    template: str = "{{ .Prompt }}"
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    licenses: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    digest: str = ""
    size_bytes: int = 0
    sim: SimModel | None = None
    remote: Remote | None = None
    has_weights: bool = True

    @property
    def show_name(self) -> str:
        """The name as shown in lists."""
        return self.name.short

    def details(self, *, with_lengths: bool = False) -> dict[str, Any]:
        """`details` of tags (with lengths), show and ps."""
        details: dict[str, Any] = {
            "parent_model": self.parent,
            "format": "gguf" if self.has_weights else "",
            "family": self.weights.family,
            "families": list(self.weights.families) or None,
            "parameter_size": self.weights.size_label,
            "quantization_level": self.weights.quantization,
        }
        if with_lengths:
            details["quantization_level"] = self.weights.listed_quantization or self.weights.quantization
            for key in ("context_length", "embedding_length"):
                stated = self.weights.value(key) if self.weights.has_metadata else getattr(self.remote, key, 0)
                if stated:
                    details[key] = stated
        return details


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


def config_layer(weights: Weights) -> Layer:
    """Return the config blob, byte for byte as Ollama writes it."""
    config = {
        "model_format": "gguf",
        "model_family": weights.family,
        "model_families": list(weights.families),
        "model_type": weights.size_label,
        "file_type": weights.quantization,
        "architecture": "amd64",
        "os": "linux",
    }
    data = dump(config) + b"\n"
    return Layer(CONFIG_MEDIA, digest_of(data), len(data), data)


def installed(
    name: ModelName,
    weights: Weights,
    layers: Iterable[Layer],
    at: datetime,
    *,
    parent: str = "",
    config: Layer | None = None,
) -> Installed:
    """Return the tag `name` with these layers, weights first. `config` is a config blob that Ollama did not write."""
    kept, config = tuple(layers), config or config_layer(weights)
    read = _read_layers(kept)
    made = Installed(name, weights, kept, config, at, parent=parent, **read)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config.manifest(),
        "layers": [item.manifest() for item in kept],
    }
    size = sum(item.size for item in kept) + config.size
    made = replace(
        made,
        digest=digest_of(dump(manifest) + b"\n")[7:],
        size_bytes=size,
        capabilities=capabilities_of(weights, made.template),
    )
    return replace(made, sim=sim_model(made))


def copied(model: Installed, name: ModelName, at: datetime) -> Installed:
    """Return the same manifest under another name."""
    made = replace(model, name=name, modified_at=at)
    return replace(made, sim=sim_model(made))


def _read_layers(layers: tuple[Layer, ...]) -> dict[str, Any]:
    read: dict[str, Any] = {"licenses": ()}
    for item in layers:
        kind = item.media.removeprefix(MEDIA)
        if kind in ("template", "system"):
            read[kind] = item.data.decode()
        elif kind == "params":
            read["parameters"] = json.loads(item.data)
        elif kind == "messages":
            read["messages"] = tuple(json.loads(item.data))
        elif kind == "license":
            read["licenses"] = (*read["licenses"], item.data.decode())
    return read


def sim_model(model: Installed) -> SimModel:
    """Return the model as the scheduler knows it."""
    weights = model.weights
    facts = ModelFacts(
        name=model.show_name,
        digest=model.digest,
        size_bytes=model.size_bytes,
        family=weights.family,
        parameter_size=weights.size_label,
        quantization=weights.quantization,
        capabilities=frozenset(model.capabilities),
        weights=weights.digest,
        parameters=model.parameters,
        info=weights.info,
        tensors=weights.tensors,
    )
    return SimModel(facts=facts, blob=weights.digest.replace(":", "-"), blob_bytes=weights.size_bytes)


def extra_layers(entry: Mapping[str, Any]) -> list[Layer]:
    """Layers for `system`, `licenses`, `parameters`, `messages`, in the order in which create writes them."""
    layers = [layer("system", entry["system"].encode())] if entry.get("system") else []
    layers += [layer("license", text.encode()) for text in entry.get("licenses") or ()]
    if entry.get("parameters"):
        layers.append(layer("params", dump(dict(sorted(entry["parameters"].items()))) + b"\n"))
    if entry.get("messages"):
        layers.append(layer("messages", dump(list(entry["messages"])) + b"\n"))
    return layers
