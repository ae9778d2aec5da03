"""`/api/create`: a new manifest from an installed model or from files, layer by layer as Ollama writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ollama_simulator.api.create_files import blob_path, conversion, from_files, refuse_adapters
from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.api.manage import Progress, existing, name_of, progress
from ollama_simulator.api.schemas import CREATE
from ollama_simulator.api.transfer import pulled
from ollama_simulator.api.values import STRINGS
from ollama_simulator.gojson import dump, value_of
from ollama_simulator.models.installed import MEDIA, Installed, Layer, installed, layer
from ollama_simulator.models.remote import CLOUD, remote_model, remote_of, remote_url
from ollama_simulator.models.template import Template
from ollama_simulator.models.template_syntax import TemplateError
from ollama_simulator.models.weights import Weights
from router.core.go.json_keys import kind_of
from router.core.go.types import read_alone
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

QUANTIZATIONS = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0")


async def create(exchange: Exchange) -> None:
    """POST /api/create."""
    request = await exchange.bind(CREATE)
    for path, digest in (request.get("files") or {}).items():
        if path != "." and any(part in ("", ".", "..") for part in path.split("/")):
            raise ApiError(400, "file path must be relative")
        _check_digest(digest)
    if request.get("draft_quantize") and not request.get("draft_files"):
        raise ApiError(400, "--draft-quantize requires a DRAFT model")
    for digest in (request.get("adapters") or {}).values():
        _check_digest(digest)
    name = name_of(request.get("model") or request.get("name") or "", "invalid model name")
    await progress(exchange, request, _create(exchange, request, name))


def _check_digest(digest: str) -> None:
    if not digest:
        raise ApiError(400, "invalid digest format")


async def _create(exchange: Exchange, request: Mapping[str, Any], name: ModelName) -> Progress:
    origin = _parsed(request["from"]) if request.get("from") else None
    if origin is not None and _is_elsewhere(exchange, request, origin):
        for step in _created_stub(exchange, request, name, origin):
            yield step
        return
    if origin is not None:
        async for step in _fetched(exchange, origin):
            yield step
        base = _readable(exchange, origin)
        weights, parent = base.weights, base.name.short
        layers = [Layer(item.media, item.digest, item.size, item.data, parent) for item in base.layers]
    elif request.get("files") is not None:
        for text in conversion(exchange, request["files"]):
            yield {"status": text}
        weights, layers, parent = *from_files(exchange, request["files"]), ""
        yield {"status": "verifying conversion"}
    else:
        raise ApiError(400, "neither 'from' or 'files' was specified")
    if request.get("adapters"):
        for text in conversion(exchange, request["adapters"]):
            yield {"status": text}
        refuse_adapters(exchange, request["adapters"])
    if wanted := request.get("quantize") or request.get("quantization"):
        _check_quantization(wanted, weights)
        yield {"status": "verifying conversion"}
    made = _changed(layers, request)
    for item in made:
        is_known = item in layers or item.digest in exchange.host.library.blobs
        yield {"status": f"{'using existing' if is_known else 'creating new'} layer {item.digest}"}
    yield {"status": "writing manifest"}
    made_at = exchange.host.now()
    tag = installed(existing(exchange, name), weights, made, made_at, parent=parent)
    exchange.host.library.add(tag)
    exchange.host.library.lost.discard(tag.config.digest)
    yield {"status": "success"}


def _is_elsewhere(exchange: Exchange, request: Mapping[str, Any], origin: ModelName) -> bool:
    """Whether another server runs the model to start from."""
    stub = exchange.host.library.get(origin)
    is_stub = stub is not None and not stub.has_weights
    return bool(request.get("remote_host")) or origin.source is Source.CLOUD or is_stub


def _created_stub(
    exchange: Exchange, request: Mapping[str, Any], name: ModelName, base: ModelName
) -> Iterator[dict[str, Any]]:
    """Write a manifest for a model that another server runs. One made from such a tag leads nowhere."""
    asked = request.get("remote_host") or (CLOUD if base.source is Source.CLOUD else "")
    try:
        host = remote_url(asked) if asked else ""
    except ValueError:
        raise ApiError(400, "bad remote") from None
    made = _changed([], request)
    for item in made:
        is_known = item.digest in exchange.host.library.blobs
        yield {"status": f"{'using existing' if is_known else 'creating new'} layer {item.digest}"}
    yield {"status": "writing manifest"}
    model = re.sub("[:-](cloud|local)$", "", request["from"])
    remote = remote_of(model, host, request.get("info") or {}) if host else None
    exchange.host.library.add(remote_model(existing(exchange, name), remote, made, exchange.host.now()))
    yield {"status": "success"}


def _parsed(text: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except BadRequest:
        raise ApiError(400, "invalid model name") from None


def _base(exchange: Exchange, name: ModelName) -> Installed | None:
    """Return the model to start from. Ollama looks it up as a file name, so case matters here."""
    found = exchange.host.library.get(name)
    return found if found is not None and found.name.full == name.full else None


def _readable(exchange: Exchange, name: ModelName) -> Installed:
    """Return the model to start from, which is installed. Raises ApiError if its file cannot be read."""
    base = _base(exchange, name)
    assert base is not None
    gone = [item.digest for item in base.layers if item.digest in exchange.host.library.lost]
    for digest in [base.weights.digest] if base.weights.is_gone else gone:
        raise ApiError(500, f"stat {blob_path(exchange, digest)}: no such file or directory")
    if base.weights.damage:
        raise ApiError(500, base.weights.damage)
    return base


async def _fetched(exchange: Exchange, name: ModelName) -> Progress:
    """Pull the base model if it is not installed."""
    if _base(exchange, name) is None:
        async for step in pulled(exchange, name):
            yield step


def _check_quantization(wanted: str, weights: Weights) -> None:
    if wanted.upper() not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise ApiError(500, f"unsupported quantization type {wanted.upper()} - supported types are {known}")
    if weights.quantization not in ("F16", "BF16", "F32"):
        raise ApiError(500, "quantization is only supported for F16, BF16 and F32 models")


def _changed(layers: list[Layer], request: Mapping[str, Any]) -> list[Layer]:
    """Return the layers with the request's changes applied, in Ollama's order."""
    made = list(layers)

    def put(media: str, data: bytes) -> None:
        made[:] = [item for item in made if item.media != MEDIA + media]
        made.append(layer(media, data))

    if request.get("template"):
        try:
            Template.parse(request["template"])
        except TemplateError as error:
            raise ApiError(400, f"template error: {error}") from None
        put("template", request["template"].encode())
    if request.get("system"):
        put("system", request["system"].encode())
    made += [layer("license", text.encode()) for text in _licenses(request.get("license"))]
    parameters = {**_parameters(made), **(request.get("parameters") or {})}
    if parameters:
        put("params", dump(dict(sorted(parameters.items()))) + b"\n")
    if request.get("messages"):
        put("messages", dump([_message(item) for item in request["messages"]]) + b"\n")
    return made


def _licenses(value: Any) -> list[str]:
    if isinstance(value, str) or value is None:
        return [value] if value else []
    view = memoryview(dump(value))
    try:
        texts: list[str | None] = value_of(read_alone(STRINGS, view, kind_of(view)))
    except BadRequest as error:
        raise ApiError(500, error.message) from None
    return [text or "" for text in texts]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role") or "", "content": message.get("content") or ""}


def _parameters(layers: list[Layer]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in layers:
        if item.media == MEDIA + "params":
            found.update(json.loads(item.data))
    return found
