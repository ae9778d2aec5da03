"""Routes that change the installed models: copy, delete, blobs; pull and push, with or without a registry."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.api.schemas import COPY, DELETE, PULL, PUSH
from ollama_simulator.models.installed import Installed, digest_of, installed
from router.core.go.quoting import go_quoted
from router.core.ollama.names import DEFAULT_HOST, ModelName, Source
from router.errors import BadRequest

Progress = AsyncIterator[dict[str, Any]]
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


async def progress(exchange: Exchange, request: Mapping[str, Any], steps: Progress) -> None:
    """Send status lines as a stream, or only the last one."""
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
    await exchange.lines(steps)


def unqualified(text: str) -> str:
    """Return an invalid name as Ollama prints it: with its missing parts filled in."""
    path, colon, tag = text.rpartition(":")
    path, tag = (path, tag) if colon and "/" not in tag else (text, "latest")
    parts = path.split("/")
    defaults = [DEFAULT_HOST, "library"]
    return "/".join([*defaults[: max(0, 3 - len(parts))], *parts]) + f":{tag}"


def name_of(text: str, invalid: str) -> ModelName:
    """Return a name in a management route, where `:cloud` belongs to the tag. Raises ApiError 400."""
    try:
        return ModelName.parse(text)
    except BadRequest as error:
        both = error.message.startswith("use either")
        raise ApiError(400, error.message if both else invalid) from None


def existing(exchange: Exchange, name: ModelName) -> ModelName:
    """Return the name in the spelling under which it is installed, if it is."""
    known = exchange.host.library.get(name)
    return known.name if known is not None else name


async def copy(exchange: Exchange) -> None:
    """POST /api/copy."""
    request = await exchange.bind(COPY)
    source_text, target_text = request.get("source") or "", request.get("destination") or ""
    source = name_of(source_text, f"source {go_quoted(source_text)} is invalid")
    target = name_of(target_text, f"destination {go_quoted(target_text)} is invalid")
    found = exchange.host.library.get(source)
    if found is None:
        raise ApiError(404, f"model {go_quoted(source_text)} not found")
    if found.name.key != target.key:
        name = existing(exchange, target)
        made = installed(name, found.weights, found.layers, exchange.host.now(), parent=found.parent)
        exchange.host.library.add(made)
    await exchange.response.finish()


async def delete(exchange: Exchange) -> None:
    """DELETE /api/delete."""
    request = await exchange.bind(DELETE)
    text = request.get("model") or request.get("name") or ""
    if not text.strip():
        raise ApiError(400, "model is required")
    name = name_of(text, f"name {go_quoted(text)} is invalid")
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
        raise ApiError(404, f"blob {go_quoted(exchange.parameter)} not found")


async def create_blob(exchange: Exchange) -> None:
    """POST /api/blobs/:digest."""
    blobs = exchange.host.library.blobs
    if _digest(exchange) in blobs:
        return
    data = await exchange.request.read()
    found = digest_of(data)
    blobs[found] = data
    if found != exchange.parameter:
        raise ApiError(400, f"digest mismatch, expected {go_quoted(exchange.parameter)}, got {go_quoted(found)}")
    exchange.response.status = 201


async def pull(exchange: Exchange) -> None:
    """POST /api/pull."""
    request = await exchange.bind(PULL)
    text = request.get("model") or request.get("name") or ""
    name = name_of(text, "invalid model name")
    await progress(exchange, request, pulled(exchange, name))


async def pulled(exchange: Exchange, name: ModelName) -> Progress:
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
    made = installed(existing(exchange, name), found.weights, found.layers, exchange.host.now(), config=found.config)
    exchange.host.library.add(made)
    yield {"status": "success"}


def _tag(name: ModelName) -> str:
    if name.source is not Source.CLOUD:
        return name.tag
    return f"{name.tag}-cloud" if name.has_tag else "cloud"


async def _registry(exchange: Exchange, name: ModelName, verb: str, path: str) -> Installed | None:
    """Return the registry's model of that name, if any. Raises ApiError if the registry cannot be reached."""
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
    await progress(exchange, request, _push(exchange, text))


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
