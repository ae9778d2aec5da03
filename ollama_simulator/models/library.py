"""The installed models of one simulated server, and the models available for installation.

Facts of real models (sizes, tensors, hyperparameters) come from `library.json.gz`, the scripted tiny ones from
`tiny.json.gz`; `README.md` describes the origin of both.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import Any

from ollama_simulator.models.installed import MEDIA, Installed, Layer, extra_layers, installed, layer
from ollama_simulator.models.weights import Weights
from router.core.ollama.model import Tensor
from router.core.ollama.names import ModelName


class Library:
    """The tags and blobs of one server. Lookups ignore the case of names, as Ollama does."""

    def __init__(self) -> None:
        self.models: dict[str, Installed] = {}
        self.blobs: dict[str, bytes | None] = {}
        self.lost: set[str] = set()  # digests of configs and layers whose files are gone
        self.removed: tuple[int, ModelName | None] = (0, None)  # the number of removals, and the last tag removed

    def add(self, model: Installed) -> None:
        """Install or overwrite a tag."""
        self.models[model.name.key] = model
        self.blobs[model.config.digest] = model.config.data
        for item in model.layers:
            self.blobs.setdefault(item.digest, item.data or None)

    def find(self, text: str) -> Installed | None:
        """Return the tag of that name, or None. Raises BadRequest for an invalid name."""
        return self.models.get(ModelName.parse(text).key)

    def get(self, name: ModelName) -> Installed | None:
        """Return the tag of a parsed name, or None."""
        return self.models.get(name.key)

    def readable(self, name: ModelName) -> Installed | None:
        """Return the tag of a parsed name, or None; also if Ollama finds only its manifest."""
        found = self.models.get(name.key)
        return found if found is not None and self._is_readable(found) else None

    def _is_readable(self, model: Installed) -> bool:
        """Whether the config and all layers but the weights are on the disk."""
        return not self.lost.intersection(item.digest for item in (*model.layers, model.config))

    def remove(self, name: ModelName) -> None:
        """Remove a tag, and the blobs that no other tag uses."""
        gone = self.models.pop(name.key)
        self.removed = (self.removed[0] + 1, gone.name)
        used = {item.digest for model in self.models.values() for item in (*model.layers, model.config)}
        for item in (*gone.layers, gone.config):
            if item.digest not in used:
                self.blobs.pop(item.digest, None)

    def newest_first(self) -> list[Installed]:
        """All tags in the order of `/api/tags`."""
        found = filter(self._is_readable, self.models.values())
        return sorted(found, key=lambda model: int(model.modified_at.timestamp()), reverse=True)


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
    raw = resources.files("ollama_simulator.models").joinpath("library.json.gz").read_bytes()
    loaded: dict[str, Any] = json.loads(gzip.decompress(raw))
    return loaded


@lru_cache(maxsize=256)
def weights_of(digest: str) -> Weights:
    """Return the weights of a real model, shared by all libraries of the process."""
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
    """One tag for each of the known weights: what `--library all` installs."""
    seen: dict[str, str] = {}
    for tag, entry in _data()["tags"].items():
        seen.setdefault(entry["weights"], tag)
    return sorted(seen.values())


def real_model(tag: str, at: datetime = INSTALLED_AT) -> Installed:
    """Return a real model under a known tag (``llama3.3`` means ``llama3.3:latest``). Raises KeyError."""
    name = ModelName.parse(tag)
    entry = {known.lower(): entry for known, entry in _data()["tags"].items()}[name.short.lower()]
    weights = weights_of(entry["weights"])
    layers = [Layer(MEDIA + "model", weights.digest, weights.size_bytes)]
    layers.append(layer("template", TEMPLATES[entry["template"]].encode()))
    return installed(name, weights, layers, at)


def real_library(tags: Iterable[str]) -> Library:
    """Return a library with these real tags, one second apart, the first the newest."""
    library = Library()
    for number, tag in enumerate(tags):
        library.add(real_model(tag, INSTALLED_AT - timedelta(seconds=number)))
    return library


def tiny_library() -> Library:
    """Return the scripted models of the recordings, whose answers and token counts are known exactly."""
    data, weights = _tiny()
    library = Library()
    for entry in data["models"]:
        used = weights[entry["weights"]]
        layers = [Layer(MEDIA + "model", used.digest, used.size_bytes)]
        layers += [layer("template", entry["template"].encode())] if entry["template"] else []
        layers += extra_layers(entry)
        at = datetime.fromisoformat(entry["modified_at"][:26]).replace(tzinfo=UTC)
        parent = entry.get("parent", "")
        library.add(installed(ModelName.parse(entry["name"]), used, layers, at, parent=parent))
    return library


@lru_cache(maxsize=1)
def _tiny() -> tuple[dict[str, Any], dict[str, Weights]]:
    raw = resources.files("ollama_simulator.models").joinpath("tiny.json.gz").read_bytes()
    data = json.loads(gzip.decompress(raw))
    return data, {key: _tiny_weights(entry) for key, entry in data["weights"].items()}


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
