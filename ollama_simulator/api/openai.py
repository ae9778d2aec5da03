"""OpenAI's chat, completions, embeddings, models and transcriptions as Ollama implements them."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Any

from ollama_simulator.api.chat import answer_chat, answer_generate
from ollama_simulator.api.dialect import PLAIN_JSON, Rejected, body, fail, refuse_cloud, reject, send
from ollama_simulator.api.exchange import JSON, ApiError, Exchange
from ollama_simulator.api.lists import answer_show
from ollama_simulator.api.native import answer_embed
from ollama_simulator.api.openai_dialect import ChatDialect, CompletionDialect, failed, unix
from ollama_simulator.api.openai_requests import CHAT, COMPLETION, EMBED, chat_request, generate_request
from router.core.ollama.names import ModelName
from router.errors import BadRequest


async def v1_chat(exchange: Exchange) -> None:
    """POST /v1/chat/completions."""
    dialect = ChatDialect(exchange.host.rng.randrange(999), usage=False)
    try:
        request = await body(exchange, CHAT)
        if not request.get("messages"):
            raise Rejected("[] is too short - 'messages'")
        dialect = ChatDialect(exchange.host.rng.randrange(999), usage=_wants_usage(request))
        asked = chat_request(request)
    except Rejected as error:
        await reject(exchange, dialect, error)
        return
    try:
        await send(exchange, dialect, await answer_chat(exchange, asked), stream=bool(request.get("stream")))
    except ApiError as error:
        await fail(exchange, dialect, error)


async def v1_completions(exchange: Exchange) -> None:
    """POST /v1/completions."""
    dialect = CompletionDialect(exchange.host.rng.randrange(999), usage=False)
    try:
        request = await body(exchange, COMPLETION)
        dialect = CompletionDialect(exchange.host.rng.randrange(999), usage=_wants_usage(request))
        asked = generate_request(request)
    except Rejected as error:
        await reject(exchange, dialect, error)
        return
    try:
        answer = await answer_generate(exchange, asked)
        await send(exchange, dialect, answer, stream=bool(request.get("stream")), field="response")
    except ApiError as error:
        await fail(exchange, dialect, error)


def _wants_usage(request: Mapping[str, Any]) -> bool:
    return bool((request.get("stream_options") or {}).get("include_usage"))


async def v1_embeddings(exchange: Exchange) -> None:
    """POST /v1/embeddings."""
    dialect = ChatDialect(0, usage=False)
    try:
        request = await body(exchange, EMBED)
        encoding = (request.get("encoding_format") or "").lower()
        if encoding not in ("", "float", "base64"):
            given = request["encoding_format"]
            raise Rejected(f"Invalid value for 'encoding_format' = {given}. Supported values: ['float', 'base64'].")
        found = request.get("input")
        if found is None or found == []:
            raise Rejected("invalid input")
    except Rejected as error:
        await reject(exchange, dialect, error)
        return
    asked = {**request, "input": [""] if found == "" else found}
    try:
        answer = await answer_embed(exchange, asked)
    except ApiError as error:
        await fail(exchange, dialect, error)
        return
    rows = [
        {"object": "embedding", "embedding": _encoded(vector) if encoding == "base64" else vector, "index": index}
        for index, vector in enumerate(answer["embeddings"])
    ]
    count = answer.get("prompt_eval_count", 0)
    usage = {"prompt_tokens": count, "total_tokens": count}
    made = {"object": "list", "data": rows, "model": request.get("model") or "", "usage": usage}
    await exchange.json(made, 200, PLAIN_JSON, newline=True)


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def v1_models(exchange: Exchange) -> None:
    """GET /v1/models."""
    rows = [
        _model(model.show_name, int(model.modified_at.timestamp())) for model in exchange.host.library.newest_first()
    ]
    await exchange.json({"object": "list", "data": rows or None}, 200, PLAIN_JSON, newline=True)


async def v1_model(exchange: Exchange) -> None:
    """GET /v1/models/:model."""
    name = exchange.parameter
    refuse_cloud(exchange, name, "remote model details are unavailable")
    try:
        shown = answer_show(exchange, name, {"model": name})
    except ApiError as error:
        await fail(exchange, ChatDialect(0, usage=False), error)
        return
    await exchange.json(_model(name, unix(shown["modified_at"])), 200, PLAIN_JSON, newline=True)


def _model(name: str, created: int) -> dict[str, Any]:
    try:
        owner = ModelName.parse(name).namespace
    except BadRequest:
        owner = ""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


async def v1_transcriptions(exchange: Exchange) -> None:
    """POST /v1/audio/transcriptions. No simulated model accepts audio."""
    dialect = ChatDialect(0, usage=False)
    try:
        name = _transcription(exchange.request.header("Content-Type"), await exchange.request.read())
    except Rejected as error:
        await exchange.json(failed(error.status, error.text), error.status, JSON)
        return
    message = {"role": "user", "content": "What exact words are spoken in this audio?", "images": [b"audio"]}
    try:
        answer = await answer_chat(exchange, {"model": name, "messages": [message], "options": {"temperature": 0}})
        await send(exchange, dialect, answer, stream=True)
    except ApiError as error:
        await fail(exchange, dialect, error)


def _transcription(content_type: str, raw: bytes) -> str:
    """Return the model named in a multipart form, which must also contain a file. Raises Rejected."""
    match = re.match(r'multipart/form-data.*boundary="?([^";]+)"?', content_type)
    if match is None:
        raise Rejected("failed to parse multipart form: request Content-Type isn't multipart/form-data")
    parts = raw.split(b"--" + match[1].encode())
    fields: dict[str, tuple[bool, bytes]] = {}
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        named = re.search(rb'name="([^"]*)"', head)
        if named:
            fields[named[1].decode()] = (b"filename=" in head, content.removesuffix(b"\r\n"))
    model = fields.get("model", (False, b""))[1].decode()
    if not model:
        raise Rejected("model is required")
    if not fields.get("file", (False, b""))[0]:
        raise Rejected("file is required: http: no such file")
    if not fields["file"][1]:
        raise Rejected("audio file is empty")
    return model
