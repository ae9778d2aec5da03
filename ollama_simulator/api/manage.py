"""Routes that change the installed models: copy, delete, blobs; pull and push, with or without a registry."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ollama_simulator.api.exchange import CUT_SHORT, ApiError, Exchange
from ollama_simulator.api.schemas import COPY, DELETE
from ollama_simulator.models.installed import copied, digest_of
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
    path = path.partition("://")[2] or path
    parts = path.split("/", 2) if path.count("/") > 1 else path.split("/")
    defaults = [DEFAULT_HOST, "library"]
    shown = [part or "!MISSING!" for part in parts]
    return "/".join([*defaults[: max(0, 3 - len(parts))], *shown]) + f":{tag or '!MISSING!'}"


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
    if found is None or source.source is Source.LOCAL:
        raise ApiError(404, f"model {go_quoted(source_text)} not found")
    if found.name.key != target.key:
        exchange.host.library.add(copied(found, existing(exchange, target), exchange.host.now()))
    await exchange.response.finish()


async def delete(exchange: Exchange) -> None:
    """DELETE /api/delete."""
    request = await exchange.bind(DELETE)
    text = request.get("model") or request.get("name") or ""
    if not text.strip():
        raise ApiError(400, "model is required")
    name = name_of(text, f"name {go_quoted(text)} is invalid")
    if exchange.host.library.get(name) is None or name.source is Source.LOCAL:
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
    if not exchange.request.is_body_complete:
        exchange.response.close_silently()
        raise ApiError(500, CUT_SHORT)
    found = digest_of(data)
    blobs[found] = data
    if found != exchange.parameter:
        raise ApiError(400, f"digest mismatch, expected {go_quoted(exchange.parameter)}, got {go_quoted(found)}")
    exchange.response.status = 201


def tag_of(name: ModelName) -> str:
    """Return a name's tag as it is written, with the suffix that says where the model runs."""
    suffix = {Source.CLOUD: "cloud", Source.LOCAL: "local"}.get(name.source)
    if suffix is None:
        return name.tag
    return f"{name.tag}-{suffix}" if name.has_tag else suffix
