"""Routes that change what is installed: create, copy, delete, blobs; pull and push, with a registry or without."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from router.core.names import DEFAULT_HOST, ModelName, Source
from router.errors import BadRequest
from router.simulator.exchange import ApiError, Exchange
from router.simulator.gojson import dump, quoted
from router.simulator.installed import MEDIA, Installed, Layer, Weights, digest_of, installed, layer
from router.simulator.schemas import COPY, CREATE, DELETE, PULL, PUSH
from router.simulator.template import Template, TemplateError

Progress = AsyncIterator[dict[str, Any]]
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


async def _progress(exchange: Exchange, request: Mapping[str, Any], steps: Progress) -> None:
    """Status lines as a stream, or only the last one."""
    response = exchange.response
    if request.get("stream") is False:
        last: dict[str, Any] = {}
        try:
            async for step in steps:
                last = step
        except ApiError as error:
            await exchange.json({"error": error.text}, error.status, "application/json")
            return
        await exchange.json(last, 200, "application/json")
        return
    response.set("Content-Type", "application/x-ndjson")
    try:
        async for step in steps:
            await response.line(dump(step) + b"\n")
    except ApiError as error:
        if response.is_started:
            await response.line(dump({"error": error.text}) + b"\n")
            return
        response.status = error.status
        response.set("Content-Type", "application/json")
        await response.line(dump({"error": error.text}))


def unqualified(text: str) -> str:
    """A name that cannot be, with its missing parts filled in as Ollama prints it."""
    path, colon, tag = text.rpartition(":")
    path, tag = (path, tag) if colon and "/" not in tag else (text, "latest")
    parts = path.split("/")
    defaults = [DEFAULT_HOST, "library"]
    return "/".join([*defaults[: max(0, 3 - len(parts))], *parts]) + f":{tag}"


def _name(text: str, invalid: str) -> ModelName:
    """A name of a management route, where `:cloud` is part of the tag. Raises ApiError 400."""
    try:
        return ModelName.parse(text)
    except BadRequest as error:
        both = error.message.startswith("use either")
        raise ApiError(400, error.message if both else invalid) from None


async def create(exchange: Exchange) -> None:
    """POST /api/create."""
    request = await exchange.bind(CREATE)
    for digests in (request.get("files"), request.get("adapters")):
        if any(not digest for digest in (digests or {}).values()):
            raise ApiError(400, "invalid digest format")
    name = _name(request.get("model") or request.get("name") or "", "invalid model name")
    await _progress(exchange, request, _create(exchange, request, name))


async def _create(exchange: Exchange, request: Mapping[str, Any], name: ModelName) -> Progress:
    library = exchange.host.library
    if request.get("from"):
        base = await _base(exchange, request["from"])
        if base is None:
            async for step in _pull(exchange, ModelName.parse(request["from"])):
                yield step
            base = library.find(request["from"])
            assert base is not None
        weights, parent = base.weights, base.name.short
        layers = [Layer(item.media, item.digest, item.size, item.data, parent) for item in base.layers]
    elif request.get("files") is not None:
        weights, layers, parent = *_from_files(exchange, request["files"]), ""
        yield {"status": "parsing GGUF"}
        yield {"status": "verifying conversion"}
    else:
        raise ApiError(400, "neither 'from' or 'files' was specified")
    if request.get("quantize") or request.get("quantization"):
        yield {"status": "verifying conversion"}
    made = _changed(layers, request)
    for item in made:
        is_known = item in layers or item.digest in library.blobs
        yield {"status": f"{'using existing' if is_known else 'creating new'} layer {item.digest}"}
    yield {"status": "writing manifest"}
    library.add(installed(_existing(exchange, name), weights, made, exchange.host.now(), parent=parent))
    yield {"status": "success"}


async def _base(exchange: Exchange, text: str) -> Installed | None:
    try:
        name = ModelName.parse(text)
    except BadRequest:
        raise ApiError(400, "invalid model name") from None
    if name.source is Source.CLOUD:
        raise ApiError(*exchange.cloud_refusal("remote model is unavailable"))
    return exchange.host.library.get(name)


def _from_files(exchange: Exchange, files: Mapping[str, str]) -> tuple[Weights, list[Layer]]:
    for digest in files.values():
        known = next((m.weights for m in exchange.host.library.models.values() if m.weights.digest == digest), None)
        known = known or exchange.host.spare_weights.get(digest)
        if known is not None:
            return known, [Layer(MEDIA + "model", digest, known.size_bytes)]
    raise ApiError(400, "unknown type")


def _changed(layers: list[Layer], request: Mapping[str, Any]) -> list[Layer]:
    """The layers after the request's own, in the order in which Ollama sets them."""
    made = list(layers)

    def put(kind: str, data: bytes) -> None:
        made[:] = [item for item in made if item.media != MEDIA + kind]
        made.append(layer(kind, data))

    if request.get("template"):
        try:
            Template.parse(request["template"])
        except TemplateError as error:
            raise ApiError(400, f"template error: {error}") from None
        put("template", request["template"].encode())
    if request.get("system"):
        put("system", request["system"].encode())
    licenses = request.get("license") or []
    texts = [licenses] if isinstance(licenses, str) else licenses
    made += [layer("license", str(text).encode()) for text in texts]
    parameters = {**_parameters(made), **(request.get("parameters") or {})}
    if parameters:
        put("params", dump(dict(sorted(parameters.items()))) + b"\n")
    if request.get("messages"):
        put("messages", dump([_message(item) for item in request["messages"]]) + b"\n")
    return made


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role") or "", "content": message.get("content") or ""}


def _parameters(layers: list[Layer]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in layers:
        if item.media == MEDIA + "params":
            found.update(json.loads(item.data))
    return found


def _existing(exchange: Exchange, name: ModelName) -> ModelName:
    """The spelling of a name that is installed already."""
    known = exchange.host.library.get(name)
    return known.name if known is not None else name


async def copy(exchange: Exchange) -> None:
    """POST /api/copy."""
    request = await exchange.bind(COPY)
    source_text, target_text = request.get("source") or "", request.get("destination") or ""
    source = _name(source_text, f"source {quoted(source_text)} is invalid")
    target = _name(target_text, f"destination {quoted(target_text)} is invalid")
    found = exchange.host.library.get(source)
    if found is None:
        raise ApiError(404, f"model {quoted(source_text)} not found")
    if found.name.key != target.key:
        name = _existing(exchange, target)
        made = installed(name, found.weights, found.layers, exchange.host.now(), parent=found.parent)
        exchange.host.library.add(made)
    await exchange.response.finish()


async def delete(exchange: Exchange) -> None:
    """DELETE /api/delete."""
    request = await exchange.bind(DELETE)
    text = request.get("model") or request.get("name") or ""
    if not text.strip():
        raise ApiError(400, "model is required")
    name = _name(text, f"name {quoted(text)} is invalid")
    if exchange.host.library.get(name) is None:
        raise ApiError(404, f"model '{text}' not found")
    exchange.host.library.remove(name)


def _digest(exchange: Exchange) -> str:
    if not DIGEST.fullmatch(exchange.parameter):
        raise ApiError(400, "invalid digest format")
    return exchange.parameter.replace("sha256-", "sha256:")


async def head_blob(exchange: Exchange) -> None:
    """HEAD /api/blobs/:digest."""
    if _digest(exchange) not in exchange.host.library.blobs:
        raise ApiError(404, f"blob {quoted(exchange.parameter)} not found")


async def create_blob(exchange: Exchange) -> None:
    """POST /api/blobs/:digest."""
    blobs = exchange.host.library.blobs
    if _digest(exchange) in blobs:
        return
    data = await exchange.request.read()
    found = digest_of(data)
    blobs[found] = data
    if found != exchange.parameter:
        raise ApiError(400, f"digest mismatch, expected {quoted(exchange.parameter)}, got {quoted(found)}")
    exchange.response.status = 201


async def pull(exchange: Exchange) -> None:
    """POST /api/pull."""
    request = await exchange.bind(PULL)
    text = request.get("model") or request.get("name") or ""
    name = _name(text, "invalid model name")
    await _progress(exchange, request, _pull(exchange, name))


async def _pull(exchange: Exchange, name: ModelName) -> Progress:
    yield {"status": "pulling manifest"}
    found = await _registry(exchange, name, "pull model manifest: Get", f"manifests/{_tag(name)}")
    if found is None:
        raise ApiError(500, "pull model manifest: file does not exist")
    for item in (*found.layers, found.config):
        yield {
            "status": f"pulling {item.digest[7:19]}",
            "digest": item.digest,
            "total": item.size,
            "completed": item.size,
        }
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    made = installed(_existing(exchange, name), found.weights, found.layers, exchange.host.now(), config=found.config)
    exchange.host.library.add(made)
    yield {"status": "success"}


def _tag(name: ModelName) -> str:
    if name.source is not Source.CLOUD:
        return name.tag
    return f"{name.tag}-cloud" if name.has_tag else "cloud"


async def _registry(exchange: Exchange, name: ModelName, verb: str, path: str) -> Installed | None:
    """What a reachable registry has under a name. Raises ApiError where there is none to be reached."""
    registry = exchange.host.registry
    if registry is None or not any(model.name.host == name.host for model in registry.models.values()):
        url = f"https://{name.host}/v2/{name.namespace}/{name.model}/{path}"
        raise ApiError(500, f'{verb} "{url}": {exchange.host.registry_error}')
    return registry.get(name)


async def push(exchange: Exchange) -> None:
    """POST /api/push."""
    request = await exchange.bind(PUSH)
    text = request.get("model") or request.get("name") or ""
    if not text:
        raise ApiError(400, "model is required")
    await _progress(exchange, request, _push(exchange, text))


async def _push(exchange: Exchange, text: str) -> Progress:
    try:
        name = ModelName.parse(text)
    except BadRequest:
        yield {"status": "retrieving manifest"}
        yield {"status": "couldn't retrieve manifest"}
        raise ApiError(500, f"unqualified name: {unqualified(text)}") from None
    yield {"status": "retrieving manifest"}
    model = exchange.host.library.get(name)
    if model is None:
        yield {"status": "couldn't retrieve manifest"}
        path = f"{exchange.host.models_dir}/manifests/{name.host}/{name.namespace}/{name.model}/{_tag(name)}"
        raise ApiError(500, f"open {path}: no such file or directory")
    await _registry(exchange, name, "Head", f"blobs/{model.weights.digest}")
    for item in (*model.layers, model.config):
        size = item.size
        status = f"pushing {item.digest[7:19]}"
        yield {"status": status, "digest": item.digest, "total": size, "completed": size}
    yield {"status": "pushing manifest"}
    yield {"status": "success"}
