"""The handlers of `/api/generate` and `/api/chat`: checks, prompt, and a stream of response objects.

`native.py`, `openai.py`, `openai_responses.py` and `anthropic.py` call them and write the result in their own format.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ollama_simulator.api.chat_stream import Asked, chat_chunks, generate_chunks
from ollama_simulator.api.exchange import JSON, NDJSON, ApiError, Exchange, engine_error
from ollama_simulator.api.options import OptionError, merged, runner_options
from ollama_simulator.api.prompt import chat_prompt, generate_prompt, tagged
from ollama_simulator.models.installed import Installed
from ollama_simulator.models.template_syntax import TemplateError
from ollama_simulator.models.tokens import UnknownToken
from ollama_simulator.scheduler.engine import EngineError, Lease
from router.core.go.quoting import go_quoted
from router.core.ollama.names import ModelName, Source


@dataclass(frozen=True, slots=True)
class Single:
    """A response of one object: load, unload, rendered prompt."""

    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Response objects, the last with `done`. The stream may raise ApiError at any point."""

    stream: AsyncIterator[dict[str, Any]]


async def answer_chat(exchange: Exchange, request: dict[str, Any], *, relax_thinking: bool = False) -> Single | Chunks:
    """ChatHandler. Raises ApiError."""
    _check_logprobs(request)
    name = request.get("model") or ""
    model = exchange.installed(name, missing=f"model '{name}' not found", unnamed=(400, "model is required"))
    _check_remote(exchange, request, model, name, "chat")
    messages = request.get("messages") or []
    head = {"model": name}
    if not messages and request.get("keep_alive") == 0:
        return _unload(exchange, model, {**head, "created_at": "", "message": {"role": "assistant", "content": ""}})
    wants = ["completion", *(["tools"] if request.get("tools") else [])]
    think = _think(request, model, name, relax=relax_thinking)
    lease = await _load(exchange, request, model, wants, "chat")
    if not messages:
        lease.release()
        return _single(exchange, {**head, "created_at": "", "message": {"role": "assistant", "content": ""}}, "load")
    values = merged(model.parameters, request.get("options"))
    asked = Asked(request, think, values)
    try:
        full = [*model.messages, *messages]
        if messages[0].get("role") != "system" and model.system:
            full.insert(0, {"role": "system", "content": model.system})
        full, images_count = tagged(full)
        prompt = chat_prompt(model, full, request.get("tools") or [], think, lease.num_ctx, asked.truncates)
    except (TemplateError, UnknownToken) as error:
        lease.release()
        raise ApiError(500, str(error)) from None
    if request.get("_debug_render_only"):
        lease.release()
        empty = {**head, "created_at": exchange.host.stamp(), "message": {"role": "", "content": ""}, "done": False}
        return Single({**empty, "_debug_info": _debug_info(prompt, images_count)})
    last = messages[-1].get("role") == "tool"
    images = any(message.get("images") for message in messages)
    completion = asked.completion(exchange, model, prompt, lease, tools=request.get("tools") or [], is_tool_result=last)
    return Chunks(chat_chunks(exchange, asked, completion, lease, has_images=images))


async def answer_generate(exchange: Exchange, request: dict[str, Any]) -> Single | Chunks:
    """GenerateHandler. Raises ApiError."""
    _check_logprobs(request)
    name = request.get("model") or ""
    missing = f"model '{name}' not found"
    model = exchange.installed(name, missing=missing, unnamed=(404, missing))
    _check_remote(exchange, request, model, name, "generate")
    head = {"model": name, "created_at": "", "response": ""}
    prompt = request.get("prompt") or ""
    if not prompt and request.get("keep_alive") == 0:
        return _unload(exchange, model, head)
    if request.get("raw") and (request.get("template") or request.get("system") or request.get("context")):
        raise ApiError(400, "raw mode does not support template, system, or context")
    wants = ["completion", *(["insert"] if request.get("suffix") else [])]
    think = _think(request, model, name, relax=False)
    lease = await _load(exchange, request, model, wants, "generate")
    if not prompt:
        lease.release()
        return _single(exchange, head, "load")
    asked = Asked(request, think, merged(model.parameters, request.get("options")))
    try:
        rendered = generate_prompt(model, request, think, lease.num_ctx, asked.truncates)
    except (TemplateError, UnknownToken) as error:
        lease.release()
        raise ApiError(500, str(error)) from None
    if request.get("_debug_render_only"):
        lease.release()
        empty = {**head, "created_at": exchange.host.stamp(), "done": False}
        return Single({**empty, "_debug_info": _debug_info(rendered, len(request.get("images") or ()))})
    completion = asked.completion(exchange, model, rendered, lease)
    return Chunks(generate_chunks(exchange, asked, completion, lease, has_images=bool(request.get("images"))))


def _check_remote(exchange: Exchange, request: Mapping[str, Any], model: Installed, name: str, verb: str) -> None:
    """Answer for a model that another server runs: it is never reached. Raises ApiError."""
    if model.remote is None:
        return
    if ModelName.parse(name).source is Source.LOCAL:
        raise ApiError(404, f"model '{name}' not found")
    if exchange.host.cloud_disabled:
        raise ApiError(*exchange.cloud_refusal("remote model is unavailable"))
    parts = urlsplit(model.remote.host)
    if parts.hostname not in exchange.host.remotes:
        raise ApiError(400, "this server cannot run this remote model")
    is_own = parts.hostname in ("127.0.0.1", "localhost")
    reason = f"dial tcp {parts.netloc}: connect: connection refused" if is_own else exchange.host.registry_error
    content_type = JSON if request.get("stream") is False else NDJSON
    raise ApiError(500, f'Post "{model.remote.host}/api/{verb}": {reason}', content_type)


def _debug_info(rendered: str, images: int) -> dict[str, Any]:
    return {"rendered_template": rendered, **({"image_count": images} if images else {})}


def _check_logprobs(request: Mapping[str, Any]) -> None:
    if not 0 <= (request.get("top_logprobs") or 0) <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")


def _think(request: Mapping[str, Any], model: Installed, name: str, *, relax: bool) -> bool | str | None:
    think: bool | str | None = request.get("think")
    if "thinking" in model.capabilities:
        return True if think is None else think
    if think and not relax and "completion" in model.capabilities:
        raise ApiError(400, f"{go_quoted(name)} does not support thinking")
    return None if think else think


def _unload(exchange: Exchange, model: Installed, head: dict[str, Any]) -> Single:
    assert model.sim is not None
    exchange.host.engine.expire(model.sim)
    return _single(exchange, head, "unload")


def _single(exchange: Exchange, head: dict[str, Any], reason: str) -> Single:
    head["created_at"] = exchange.host.stamp()
    return Single({**head, "done": True, "done_reason": reason})


async def load(exchange: Exchange, request: Mapping[str, Any], model: Installed, shift: bool | None = None) -> Lease:
    """Load the model with the request's options, unless it is loaded already. Raises ApiError."""
    assert model.sim is not None
    if model.weights.damage:
        raise ApiError(500, model.weights.damage)
    try:
        options = runner_options(merged(model.parameters, request.get("options")), shift)
    except OptionError as error:
        raise ApiError(500, str(error)) from None
    keep = request.get("keep_alive")
    connection = exchange.request.connection
    if connection.has_left and exchange.host.engine.is_loaded(model.sim):
        await asyncio.Event().wait()  # Ollama's scheduler drops the request of a client that has gone, without a word
    try:
        return await exchange.host.engine.acquire(
            model.sim,
            options,
            keep_alive_s=None if keep is None else max(0.0, keep),
        )
    except EngineError as error:
        raise engine_error(error) from None
    except asyncio.CancelledError:
        if connection.has_left and connection.closed_at_s is None:
            raise ApiError(499, "request canceled") from None  # the client still reads
        raise


async def _load(exchange: Exchange, request: Mapping[str, Any], model: Installed, wants: list[str], verb: str) -> Lease:
    lacking = [want for want in wants if want not in model.capabilities]
    if "completion" in lacking:
        raise ApiError(400, f"{go_quoted(request.get('model') or '')} does not support {verb}")
    if lacking:
        raise ApiError(400, f"{model.name.full} does not support {chr(10).join(lacking)}")
    return await load(exchange, request, model, request.get("shift"))
