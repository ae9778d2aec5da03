"""OpenAI's chat and completion responses as Ollama writes them: one object, or chunks ended by `[DONE]`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ollama_simulator.gojson import dump, json_text


def failed(status: int, text: str) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}


def unix(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp[:19] + "+00:00").timestamp()) if stamp else -62135596800


def tool_calls(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form."""
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
        head = self._head("chat.completion", unix(chunk["created_at"]), chunk["model"])
        return {**head, "choices": [choice], "usage": _usage(chunk), **_optional(_debug_info=chunk.get("_debug_info"))}

    def _head(self, kind: str, created: int, model: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": created, "model": model, "system_fingerprint": "fp_ollama"}

    def events(self, chunk: dict[str, Any]) -> list[bytes]:
        self._created = self._created or unix(chunk["created_at"])
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
        head = {"id": self.id, "object": "text_completion", "created": unix(chunk["created_at"])}
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
        head = {"id": self.id, "object": "text_completion", "created": unix(chunk["created_at"]), "choices": choices}
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
