"""The registry of a recorded conversation, as far as its pulls tell: models, layers, and what was wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from ollama_simulator.models.installed import MEDIA, Layer, installed, layer
from ollama_simulator.models.library import Library, tiny_library
from ollama_simulator.models.registry import MANIFEST, PullFault, Registry
from router.core.ollama.names import ModelName
from router.errors import BadRequest
from tests.contract.api_client import request_body
from tests.contract.api_normal import recorded

AT = datetime.fromisoformat("2026-11-23T01:00:00+00:00")
CONFIG = "application/vnd.docker.container.image.v1+json"
REFUSED = "pull model manifest: "
PLAIN_TEMPLATE = b"{{ .Prompt }}<|assistant|>"


def registry_library() -> Registry:
    """Return the registry of the recordings: one small model."""
    library = Registry()
    weights = replace(tiny_library().models[ModelName.parse("tiny-plain").key].weights, digest=PULLED)
    layers = [Layer(MEDIA + "model", PULLED, 3145760), layer("template", PLAIN_TEMPLATE)]
    config = Layer("application/vnd.docker.container.image.v1+json", "sha256:" + "a4" * 32, 207, b"{}")
    name = ModelName.parse("127.0.0.1:11502/library/pulled:latest")
    library.add(installed(name, weights, layers, AT, config=config))
    return library


PULLED = "sha256:9d647f302532468ce05c71aed4960c117bee96e03153bff23e0be81d40e85fc3"


def registry_of(transcript: dict[str, Any], library: Library) -> Registry:
    """Return `registry_library` with the models that the conversation pulls or fails to pull."""
    registry = registry_library()
    for step in transcript["steps"]:
        if str(step["request"].get("target") or "").endswith("/api/pull") and step["response"]:
            _offer(registry, library, step)
    _spoil(registry, transcript)
    return registry


def _spoil(registry: Registry, transcript: dict[str, Any]) -> None:
    """Offer a file of another kind where show says so later."""
    for step in transcript["steps"]:
        response = step["response"]
        if not response or response["status"] != 500 or "invalid file magic" not in str(response.get("body")):
            continue
        asked = _json(request_body(step["request"]))
        named = asked.get("model") if isinstance(asked, dict) else None
        found = registry.get(ModelName.parse(named)) if isinstance(named, str) else None
        if found is not None:
            spoilt = replace(found.weights, is_gguf=False)
            registry.add(installed(found.name, spoilt, found.layers, AT, config=found.config))


def _offer(registry: Registry, library: Library, step: dict[str, Any]) -> None:
    asked = _json(request_body(step["request"]))
    try:
        name = ModelName.parse(str(asked.get("model") or asked.get("name") or "")) if isinstance(asked, dict) else None
    except BadRequest:
        return
    lines = list(_lines(step["response"]))
    is_known = name is None or registry.get(name) is not None or name.key in registry.faults
    if name is None or is_known or step["response"]["status"] not in (200, 500):
        return
    error = next((str(line["error"]) for line in lines if "error" in line), "")
    reported = {line["digest"]: line["total"] for line in lines if "digest" in line}
    layers = [Layer(MEDIA + "license", digest, size) for digest, size in reported.items()]
    if error.startswith(REFUSED) and not error.startswith((REFUSED + "Get", REFUSED + "file does not exist")):
        registry.faults[name.key] = PullFault(MANIFEST, error.removeprefix(REFUSED))
    elif error and not error.startswith(REFUSED):
        registry.faults[name.key] = PullFault(len(layers), error)
    if layers or name.key in registry.faults:
        _add(registry, library, name, layers)


def _add(registry: Registry, library: Library, name: ModelName, layers: list[Layer]) -> None:
    """Add a model with these layers, of which the last is its config."""
    known = {model.weights.digest: model.weights for model in library.models.values()}
    first = layers[0] if layers else Layer(MEDIA + "model", f"sha256:{'e' * 64}", 1)
    config = replace(layers[-1], media=CONFIG, data=b"{}") if len(layers) > 1 else None
    plain = tiny_library().models[ModelName.parse("tiny-plain").key].weights
    weights = known.get(first.digest) or replace(plain, digest=first.digest)
    texts = {item.digest: item for model in library.models.values() for item in model.layers if item.data}
    texts |= {item.digest: item for item in (layer("template", PLAIN_TEMPLATE),)}
    kept = [replace(first, media=MEDIA + "model"), *(texts.get(item.digest, item) for item in layers[1:-1])]
    registry.add(installed(name, weights, kept, AT, config=config))


def _lines(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    reply = recorded(response)
    assert reply is not None
    for line in (b"".join(reply.chunks) or reply.body).splitlines():
        value = _json(line)
        if isinstance(value, dict):
            yield value


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None
