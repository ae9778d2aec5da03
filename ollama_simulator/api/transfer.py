"""`/api/pull` and `/api/push`: status lines as Ollama sends them while layers go to or come from a registry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.api.manage import Progress, existing, name_of, progress, tag_of, unqualified
from ollama_simulator.api.schemas import PULL, PUSH
from ollama_simulator.models.installed import Installed, Layer, installed
from ollama_simulator.models.registry import MANIFEST, Registry
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

TICK_S = 0.06
"""Ollama reports a running download this often."""

PLAIN_HTTP = "http: server gave HTTP response to HTTPS client"


async def pull(exchange: Exchange) -> None:
    """POST /api/pull."""
    request = await exchange.bind(PULL)
    text = request.get("model") or request.get("name") or ""
    name = name_of(text, "invalid model name")
    await progress(exchange, request, pulled(exchange, name, insecure=bool(request.get("insecure"))))


async def pulled(exchange: Exchange, name: ModelName, *, insecure: bool = False) -> Progress:
    """Yield the lines of a pull, at the end of which the model is installed."""
    yield {"status": "pulling manifest"}
    registry = _reached(exchange, name, "pull model manifest: Get", f"manifests/{_pulled_tag(name)}", insecure)
    fault = registry.fault(name)
    found = registry.get(name)
    if fault is not None and fault.step == MANIFEST:
        raise ApiError(500, f"pull model manifest: {fault.text}")
    if found is None:
        raise ApiError(500, "pull model manifest: file does not exist")
    layers = [*found.layers, found.config]
    for number, item in enumerate(layers):
        if fault is not None and fault.step == number:
            raise ApiError(500, fault.text)
        async for line in _downloaded(exchange, registry, item):
            yield line
    yield {"status": "verifying sha256 digest"}
    if fault is not None and fault.step >= len(layers):
        raise ApiError(500, fault.text)
    yield {"status": "writing manifest"}
    _install(exchange, name, found)
    yield {"status": "success"}


def _pulled_tag(name: ModelName) -> str:
    """Return the tag that a pull asks for: `:local` only says where the model shall run."""
    return name.tag if name.source is Source.LOCAL else tag_of(name)


async def _downloaded(exchange: Exchange, registry: Registry, item: Layer) -> Progress:
    """Yield the lines of one layer: a single one if its blob is there already."""
    line = {"status": f"pulling {item.digest[7:19]}", "digest": item.digest, "total": item.size}
    blobs = exchange.host.library.blobs
    if item.digest not in blobs:
        done = 0
        while done < item.size:
            await asyncio.sleep(min(TICK_S, (item.size - done) / registry.bytes_per_s))
            yield {**line, **({"completed": done} if done else {})}
            done += int(TICK_S * registry.bytes_per_s)
        blobs[item.digest] = item.data or None
    yield {**line, "completed": item.size}


def _install(exchange: Exchange, name: ModelName, found: Installed) -> None:
    known = existing(exchange, name)
    exchange.host.library.add(installed(known, found.weights, found.layers, exchange.host.now(), config=found.config))


def _reached(exchange: Exchange, name: ModelName, verb: str, path: str, insecure: bool) -> Registry:
    """Return the registry of that host. Raises ApiError with Go's text if it cannot be reached in the wanted way."""
    registry = exchange.host.registry
    scheme = "http" if insecure else "https"
    url = f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}/{path}"
    if registry is not None and registry.has_host(name.host):
        if not insecure and not registry.tls:
            raise ApiError(500, f'{verb} "{url}": {PLAIN_HTTP}')
        return registry
    address = name.host if ":" in name.host else f"{name.host}:{80 if insecure else 443}"
    is_local = name.host.split(":")[0] in ("localhost", "127.0.0.1")  # Go never asks a proxy for these
    reason = f"dial tcp {address}: connect: connection refused" if is_local else exchange.host.registry_error
    raise ApiError(500, f'{verb} "{url}": {reason}')


async def push(exchange: Exchange) -> None:
    """POST /api/push."""
    request = await exchange.bind(PUSH)
    text = request.get("model") or request.get("name") or ""
    if not text:
        raise ApiError(400, "model is required")
    await progress(exchange, request, _push(exchange, text, insecure=bool(request.get("insecure"))))


async def _push(exchange: Exchange, text: str, *, insecure: bool) -> Progress:
    yield {"status": "retrieving manifest"}
    try:
        name = ModelName.parse(text)
    except BadRequest:
        yield {"status": "couldn't retrieve manifest"}
        raise ApiError(500, f"unqualified name: {unqualified(text)}") from None
    model = exchange.host.library.get(name)
    if model is None:
        yield {"status": "couldn't retrieve manifest"}
        path = f"{exchange.host.models_dir}/manifests/{name.host}/{name.namespace}/{name.model}/{tag_of(name)}"
        raise ApiError(500, f"open {path}: no such file or directory")
    first = (*model.layers, model.config)[0]
    _reached(exchange, model.name, "Head", f"blobs/{first.digest}", insecure)
    for line in _pushed([*model.layers, model.config]):
        yield line
    yield {"status": "pushing manifest"}
    yield {"status": "success"}


def _pushed(layers: Sequence[Layer]) -> list[dict[str, object]]:
    return [
        {"status": f"pushing {item.digest[7:19]}", "digest": item.digest, "total": item.size, "completed": item.size}
        for item in layers
    ]
