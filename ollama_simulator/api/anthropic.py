"""Anthropic's `/v1/messages` as Ollama implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_simulator.api.anthropic_requests import MESSAGES, chat_request, estimated_tokens
from ollama_simulator.api.chat import answer_chat
from ollama_simulator.api.dialect import Rejected, body, early_headers, fail, reject, send
from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.gojson import dump, json_text

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def _stop_reason(reason: str, *, has_calls: bool) -> str:
    if has_calls:
        return "tool_use"
    return {"stop": "end_turn", "length": "max_tokens", "": ""}.get(reason, "stop_sequence")


class MessagesDialect:
    """The state of one response."""

    starts_early = True

    def __init__(self, exchange: Exchange, request: Mapping[str, Any]) -> None:
        self._exchange = exchange
        self._request = request
        self.id = f"msg_{exchange.host.random_hex(24)}"
        self._is_open = False
        self._block = ""
        self._thought = False
        self._has_called = False
        self._index = 0

    def failed(self, status: int, text: str) -> dict[str, Any]:
        error = {"type": KINDS.get(status, "api_error"), "message": text}
        return {"type": "error", "error": error, "request_id": f"req_{self._exchange.host.random_hex(24)}"}

    def broken(self) -> list[bytes]:
        return []

    def whole(self, chunk: dict[str, Any]) -> dict[str, Any]:
        message = chunk["message"]
        content: list[dict[str, Any]] = []
        if message.get("thinking"):
            content.append({"type": "thinking", "thinking": message["thinking"]})
        if message["content"]:
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or ():
            function = call["function"]
            block = {"type": "tool_use", "id": call["id"], **_named(function)}
            content.append({**block, "input": function["arguments"]})
        reason = _stop_reason(chunk.get("done_reason") or "", has_calls=bool(message.get("tool_calls")))
        head = {"id": self.id, "type": "message", "role": "assistant", "model": chunk["model"]}
        return {**head, "content": content or None, "stop_reason": reason, "usage": _usage(chunk)}

    def events(self, chunk: dict[str, Any]) -> list[bytes]:
        message = chunk["message"]
        found = [] if self._is_open else [self._start(chunk)]
        self._is_open = True
        if message.get("thinking") and not self._thought:
            found += self._delta("thinking", {"type": "thinking_delta", "thinking": message["thinking"]})
        if message["content"]:
            found += self._delta("text", {"type": "text_delta", "text": message["content"]})
        for call in message.get("tool_calls") or ():
            found += self._call(call)
        return found + (self._end(chunk) if chunk["done"] else [])

    def _start(self, chunk: Mapping[str, Any]) -> bytes:
        count = chunk.get("prompt_eval_count") or estimated_tokens(self._request)
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self._request.get("model") or ""}
        usage = {"input_tokens": count, "output_tokens": 0}
        return _event("message_start", message={**head, "content": [], "usage": usage})

    def _delta(self, block: str, delta: dict[str, Any]) -> list[bytes]:
        found = [] if self._block in ("", block) else self._close()
        if self._block != block:
            self._block = block
            empty = {"type": block, block: ""}
            found.append(_event("content_block_start", index=self._index, content_block=empty))
        return [*found, _event("content_block_delta", index=self._index, delta=delta)]

    def _close(self) -> list[bytes]:
        if not self._block:
            return []
        self._thought = self._thought or self._block == "thinking"
        self._block = ""
        self._index += 1
        return [_event("content_block_stop", index=self._index - 1)]

    def _call(self, call: Mapping[str, Any]) -> list[bytes]:
        found = self._close()
        function = call["function"]
        block = {"type": "tool_use", "id": call["id"], **_named(function), "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json_text(function["arguments"])}
        self._has_called = True
        self._index += 1
        return [
            *found,
            _event("content_block_start", index=self._index - 1, content_block=block),
            _event("content_block_delta", index=self._index - 1, delta=delta),
            _event("content_block_stop", index=self._index - 1),
        ]

    def _end(self, chunk: Mapping[str, Any]) -> list[bytes]:
        reason = _stop_reason(chunk.get("done_reason") or "", has_calls=self._has_called)
        delta = _event("message_delta", delta={"stop_reason": reason}, usage=_usage(chunk))
        return [*self._close(), delta, _event("message_stop")]


def _usage(chunk: Mapping[str, Any]) -> dict[str, int]:
    return {"input_tokens": chunk.get("prompt_eval_count", 0), "output_tokens": chunk.get("eval_count", 0)}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + dump({"type": kind, **fields}) + b"\n\n"


async def v1_messages(exchange: Exchange) -> None:
    """POST /v1/messages."""
    dialect = MessagesDialect(exchange, {})
    try:
        request = await body(exchange, MESSAGES)
        asked = chat_request(request)
    except Rejected as error:
        await reject(exchange, dialect, error)
        return
    dialect = MessagesDialect(exchange, request)
    stream = bool(request.get("stream"))
    if stream:
        early_headers(exchange)
    try:
        await send(exchange, dialect, await answer_chat(exchange, asked, relax_thinking=True), stream=stream)
    except ApiError as error:
        await fail(exchange, dialect, error)


def _named(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"]} if function["name"] else {}
