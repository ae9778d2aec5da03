"""The installed models of a simulated Ollama: weights, manifests of layers, blobs; names found as Ollama finds them.

Facts of real models (sizes, tensors, hyperparameters) come from `models/library.json.gz`, the scripted tiny ones from
`models/tiny.json`; what a model can do follows from its template and metadata, never from its name.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import Any

from router.core.catalog import ModelFacts, Tensor
from router.core.names import ModelName
from router.simulator.engine import SimModel
from router.simulator.gojson import dump

MEDIA = "application/vnd.ollama.image."
CONFIG_MEDIA = "application/vnd.docker.container.image.v1+json"


def digest_of(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, eq=False)
class Weights:
    """One weights blob: its metadata as `/api/show` gives it, its tensors, and what it says (`speech.py`).

    `info` has the arrays that are known; `/api/show` without verbose shows them as null. `listed_quantization` is what
    tags says where it differs from the manifest.
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

    @property
    def arch(self) -> str:
        """`general.architecture`."""
        return str(self.info.get("general.architecture", ""))

    @property
    def has_projector(self) -> bool:
        """Whether the file brings the tensors that see images."""
        return any(tensor.name.startswith("v.") for tensor in self.tensors)

    def value(self, key: str) -> Any:
        """The metadata value ``<arch>.<key>``, None where absent."""
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
        """As the manifest lists it."""
        entry: dict[str, Any] = {"mediaType": self.media, "digest": self.digest, "size": self.size}
        if self.origin:
            entry["from"] = self.origin
        return entry


def layer(kind: str, data: bytes) -> Layer:
    """A layer of Ollama's media type `kind` with these bytes."""
    return Layer(MEDIA + kind, digest_of(data), len(data), data)


@dataclass(frozen=True, eq=False)
class Installed:
    """One tag: its manifest and everything read from it. Made anew whenever the tag is written."""

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

    @property
    def show_name(self) -> str:
        """The name as lists show it."""
        return self.name.short

    def details(self, *, with_lengths: bool = False) -> dict[str, Any]:
        """`details` of tags (with lengths), show and ps."""
        details: dict[str, Any] = {
            "parent_model": self.parent,
            "format": "gguf",
            "family": self.weights.family,
            "families": list(self.weights.families),
            "parameter_size": self.weights.size_label,
            "quantization_level": self.weights.quantization,
        }
        if with_lengths:
            details["quantization_level"] = self.weights.listed_quantization or self.weights.quantization
            for key in ("context_length", "embedding_length"):
                if self.weights.value(key):
                    details[key] = self.weights.value(key)
        return details


def capabilities_of(weights: Weights, template: str, *, with_vision: bool = True) -> tuple[str, ...]:
    """What weights and template can do, in Ollama's order."""
    if weights.value("pooling_type") is not None:
        return ("embedding",)
    found = ["completion"]
    if with_vision and weights.value("vision.block_count") is not None:
        found.append("vision")
    if ".Tools" in template:
        found.append("tools")
    if ".Suffix" in template:
        found.append("insert")
    if ".Thinking" in template:
        found.append("thinking")
    return tuple(found)


def config_layer(weights: Weights) -> Layer:
    """The config blob as Ollama writes it, byte for byte."""
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
    """The tag `name` with these layers (weights first); `config` where it is not Ollama's own."""
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
    """The model as the scheduler knows it."""
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


class Library:
    """The tags and blobs of one server. Lookups compare names case-insensitively, as on Ollama's disk."""

    def __init__(self) -> None:
        self.models: dict[str, Installed] = {}
        self.blobs: dict[str, bytes | None] = {}

    def add(self, model: Installed) -> None:
        """Install or overwrite a tag."""
        self.models[model.name.key] = model
        self.blobs[model.config.digest] = model.config.data
        for item in model.layers:
            self.blobs.setdefault(item.digest, item.data or None)

    def find(self, text: str) -> Installed | None:
        """The tag that a (valid) name means. Raises BadRequest for a name that cannot be."""
        return self.models.get(ModelName.parse(text).key)

    def get(self, name: ModelName) -> Installed | None:
        """The tag of a parsed name."""
        return self.models.get(name.key)

    def remove(self, name: ModelName) -> None:
        """Forget a tag, and the blobs that no other tag uses."""
        gone = self.models.pop(name.key)
        used = {item.digest for model in self.models.values() for item in (*model.layers, model.config)}
        for item in (*gone.layers, gone.config):
            if item.digest not in used:
                self.blobs.pop(item.digest, None)

    def newest_first(self) -> list[Installed]:
        """In the order of `/api/tags`."""
        return sorted(self.models.values(), key=lambda model: int(model.modified_at.timestamp()), reverse=True)


TEMPLATES = {
    "plain": "{{- if .System }}<|system|>{{ .System }}<|end|>{{ end }}"
    "{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>",
    "tools": "{{- if .Tools }}<|system|>tools: {{ range .Tools }}{{ .Function }}{{ end }}<|end|>{{ end }}"
    "{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}{{ range .ToolCalls }}<tool_call>\n"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n'
    "</tool_call>{{ end }}<|end|>{{ end }}<|assistant|>",
    "think": "{{- if .Tools }}<|system|>tools: {{ range .Tools }}{{ .Function }}{{ end }}<|end|>{{ end }}"
    "{{- range .Messages }}<|{{ .Role }}|>{{- if .Thinking }}\n<think>\n{{ .Thinking }}\n</think>\n{{ end }}"
    "{{ .Content }}{{ range .ToolCalls }}<tool_call>\n"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n'
    "</tool_call>{{ end }}<|end|>{{ end }}{{- if and .IsThinkSet (not .Think) }}<|assistant|>"
    "{{ else }}<|think|>{{ end }}",
    "embed": "{{ .Prompt }}",
}
INSTALLED_AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    raw = resources.files("router.simulator").joinpath("models/library.json.gz").read_bytes()
    loaded: dict[str, Any] = json.loads(gzip.decompress(raw))
    return loaded


@lru_cache(maxsize=256)
def weights_of(digest: str) -> Weights:
    """The weights of a real model, shared by all libraries of the process."""
    data = _data()
    entry = data["weights"][digest]
    names = data["structures"][entry["structure"]]
    tensors = (
        Tensor(name, kind, tuple(shape)) for (name, shape), kind in zip(names, entry["types"].split(" "), strict=True)
    )
    return Weights(
        digest=digest,
        size_bytes=entry["bytes"],
        quantization=entry["quantization"],
        size_label=entry["size_label"],
        family=entry["family"],
        families=tuple(entry["families"]),
        info=entry["info"],
        tensors=tuple(tensors),
    )


def known_tags() -> list[str]:
    """Every real tag that the simulator can install."""
    return sorted(_data()["tags"])


def canonical_tags() -> list[str]:
    """The known tags without second names for the same weights: what `--library all` installs."""
    seen: dict[str, str] = {}
    for tag, entry in _data()["tags"].items():
        seen.setdefault(entry["weights"], tag)
    return sorted(seen.values())


def real_model(tag: str, at: datetime = INSTALLED_AT) -> Installed:
    """A real model under a known tag (``llama3.3`` means ``llama3.3:latest``). Raises KeyError."""
    name = ModelName.parse(tag)
    entry = {known.lower(): entry for known, entry in _data()["tags"].items()}[name.short.lower()]
    weights = weights_of(entry["weights"])
    layers = [Layer(MEDIA + "model", weights.digest, weights.size_bytes)]
    layers.append(layer("template", TEMPLATES[entry["template"]].encode()))
    return installed(name, weights, layers, at)


def real_library(tags: Iterable[str]) -> Library:
    """A library with these real tags, one second apart, the first the newest."""
    library = Library()
    for number, tag in enumerate(tags):
        library.add(real_model(tag, INSTALLED_AT - timedelta(seconds=number)))
    return library


def tiny_library() -> Library:
    """The scripted models of the recordings: what they say, count and can do is known to the token."""
    raw = resources.files("router.simulator").joinpath("models/tiny.json.gz").read_bytes()
    data = json.loads(gzip.decompress(raw))
    weights = {key: _tiny_weights(entry) for key, entry in data["weights"].items()}
    library = Library()
    for entry in data["models"]:
        used = weights[entry["weights"]]
        layers = [Layer(MEDIA + "model", used.digest, used.size_bytes)]
        layers += [layer("template", entry["template"].encode())] if entry["template"] else []
        layers += extra_layers(entry)
        at = datetime.fromisoformat(entry["modified_at"][:26])
        parent = entry.get("parent", "")
        library.add(installed(ModelName.parse(entry["name"]), used, layers, at, parent=parent))
    return library


def _tiny_weights(entry: Mapping[str, Any]) -> Weights:
    return Weights(
        digest=entry["digest"],
        size_bytes=entry["bytes"],
        quantization=entry["quantization"],
        size_label=entry["size_label"],
        family=entry["family"],
        families=(entry["family"],),
        info=entry["info"],
        tensors=tuple(Tensor(name, kind, tuple(shape)) for name, kind, shape in entry["tensors"]),
        script=entry["script"],
        listed_quantization=entry["listed_quantization"],
    )


def extra_layers(entry: Mapping[str, Any]) -> list[Layer]:
    """Layers for `system`, `licenses`, `parameters`, `messages`, in the order in which create writes them."""
    layers = [layer("system", entry["system"].encode())] if entry.get("system") else []
    layers += [layer("license", text.encode()) for text in entry.get("licenses") or ()]
    if entry.get("parameters"):
        layers.append(layer("params", dump(dict(sorted(entry["parameters"].items()))) + b"\n"))
    if entry.get("messages"):
        layers.append(layer("messages", dump(list(entry["messages"])) + b"\n"))
    return layers
