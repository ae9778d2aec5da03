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
from ollama_simulator.models.weights import Weights, capabilities_of
from ollama_simulator.scheduler.engine import SimModel
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import ModelName

MEDIA = "application/vnd.ollama.image."
CONFIG_MEDIA = "application/vnd.docker.container.image.v1+json"


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes, as ``sha256:…``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


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
