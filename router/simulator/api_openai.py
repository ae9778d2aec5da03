"""OpenAI's chat, completions, embeddings, models and transcriptions as Ollama speaks them."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from router.core.names import ModelName
from router.errors import BadRequest
from router.simulator.api_lists import answer_show
from router.simulator.api_native import answer_embed
from router.simulator.chat import answer_chat, answer_generate, json_text
from router.simulator.dialect import PLAIN_JSON, Rejected, body, fail, refuse_cloud, reject, send
from router.simulator.exchange import JSON, ApiError, Exchange
from router.simulator.gojson import dump
from router.simulator.openai_requests import CHAT, COMPLETION, EMBED, chat_request, generate_request


def failed(status: int, text: str) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}


def _unix(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp[:19] + "+00:00").timestamp()) if stamp else -62135596800


def tool_calls(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls as OpenAI writes them."""
    return [
        {
            "id": call["id"],
            "index": call["function"]["index"],
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": json_text(call["function"]["arguments"])},
        }
        for call in calls
    ]


def _usage(chunk: Mapping[str, Any]) -> dict[str, int]:
    asked, said = chunk.get("prompt_eval_count", 0), chunk.get("eval_count", 0)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


class ChatDialect:
    """`/v1/chat/completions`."""

    starts_early = False

    def __init__(self, number: int, *, usage: bool) -> None:
        self.id = f"chatcmpl-{number}"
        self._usage = usage
        self._created = 0
        self._is_open = False
        self._has_called = False

    def failed(self, status: int, text: str) -> dict[str, Any]:
        return failed(status, text)

    def whole(self, chunk: dict[str, Any]) -> dict[str, Any]:
        message = chunk["message"]
        calls = tool_calls(message.get("tool_calls") or [])
        shown: dict[str, Any] = {"role": message["role"], "content": message["content"]}
        shown.update(_optional(reasoning=message.get("thinking"), tool_calls=calls))
        reason = chunk.get("done_reason")
        choice = {"index": 0, "message": shown, "finish_reason": "tool_calls" if reason == "stop" and calls else reason}
        if chunk.get("logprobs"):
            choice["logprobs"] = {"content": chunk["logprobs"]}
        head = self._head("chat.completion", _unix(chunk["created_at"]), chunk["model"])
        return {**head, "choices": [choice], "usage": _usage(chunk), **_optional(debug_info=chunk.get("_debug_info"))}

    def _head(self, kind: str, created: int, model: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": created, "model": model, "system_fingerprint": "fp_ollama"}

    def events(self, chunk: dict[str, Any]) -> list[bytes]:
        self._created = self._created or _unix(chunk["created_at"])
        message = chunk["message"]
        text, thinking = message["content"], message.get("thinking") or ""
        calls = tool_calls(message.get("tool_calls") or [])
        data = b""
        if not (chunk["done"] and self._is_open and not (text or thinking or calls or chunk.get("logprobs"))):
            data += self._content(chunk, text, thinking, calls)
        if chunk["done"]:
            data += self._finish(chunk)
        return [data]

    def _content(self, chunk: dict[str, Any], text: str, thinking: str, calls: list[dict[str, Any]]) -> bytes:
        role = {} if self._is_open else {"role": "assistant"}
        self._is_open, self._has_called = True, self._has_called or bool(calls)
        if thinking and (text or calls):
            first = self._delta(chunk, {**role, "reasoning": thinking}, chunk.get("logprobs"))
            return first + self._delta(chunk, {"content": text, **_optional(tool_calls=calls)}, None)
        delta = {**role, "content": text, **_optional(reasoning=thinking, tool_calls=calls)}
        return self._delta(chunk, delta, chunk.get("logprobs"))

    def _delta(
        self, chunk: Mapping[str, Any], delta: dict[str, Any], logprobs: Any, reason: str | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        head = self._head("chat.completion.chunk", self._created, chunk["model"])
        return _event({**head, "choices": [choice]})

    def _finish(self, chunk: dict[str, Any]) -> bytes:
        reason = chunk.get("done_reason") or "stop"
        data = self._delta(chunk, {}, None, "tool_calls" if reason == "stop" and self._has_called else reason)
        if self._usage:
            head = self._head("chat.completion.chunk", self._created, chunk["model"])
            data += _event({**head, "choices": [], "usage": _usage(chunk)})
        return data + b"data: [DONE]\n\n"

    def broken(self) -> list[bytes]:
        return [self._delta({"model": ""}, {"content": ""}, None)]


class CompletionDialect:
    """`/v1/completions`."""

    starts_early = False

    def __init__(self, number: int, *, usage: bool) -> None:
        self.id = f"cmpl-{number}"
        self._usage = usage

    def failed(self, status: int, text: str) -> dict[str, Any]:
        return failed(status, text)

    def whole(self, chunk: dict[str, Any]) -> dict[str, Any]:
        choice = {"text": chunk["response"], "index": 0, "finish_reason": chunk.get("done_reason")}
        head = {"id": self.id, "object": "text_completion", "created": _unix(chunk["created_at"])}
        tail = {"model": chunk["model"], "system_fingerprint": "fp_ollama", "choices": [choice], "usage": _usage(chunk)}
        return {**head, **tail}

    def events(self, chunk: dict[str, Any]) -> list[bytes]:
        choice = {"text": chunk["response"], "index": 0, "finish_reason": chunk.get("done_reason")}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0} if self._usage else None
        data = self._chunk(chunk, [choice], usage)
        if chunk["done"]:
            if self._usage:
                data += self._chunk(chunk, [], _usage(chunk))
            data += b"data: [DONE]\n\n"
        return [data]

    def _chunk(self, chunk: Mapping[str, Any], choices: list[Any], usage: dict[str, int] | None) -> bytes:
        head = {"id": self.id, "object": "text_completion", "created": _unix(chunk["created_at"]), "choices": choices}
        tail = {"model": chunk["model"], "system_fingerprint": "fp_ollama", **_optional(usage=usage)}
        return _event({**head, **tail})

    def broken(self) -> list[bytes]:
        choice = {"text": "", "index": 0, "finish_reason": None}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0} if self._usage else None
        return [self._chunk({"created_at": "", "model": ""}, [choice], usage)]


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _optional(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value}


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
    await exchange.json(_model(name, _unix(shown["modified_at"])), 200, PLAIN_JSON, newline=True)


def _model(name: str, created: int) -> dict[str, Any]:
    try:
        owner = ModelName.parse(name).namespace
    except BadRequest:
        owner = ""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


async def v1_transcriptions(exchange: Exchange) -> None:
    """POST /v1/audio/transcriptions; no model here can hear."""
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
    """The model of a multipart form that also brings a file. Raises Rejected."""
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
