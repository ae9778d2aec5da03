"""Requests of `/v1/messages`, turned into Ollama's own (anthropic/anthropic.go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_simulator.api.dialect import Rejected
from ollama_simulator.api.schemas import PARAMETERS, go_base64
from ollama_simulator.gojson.structs import (
    ANY,
    BOOL,
    FLOAT,
    INT,
    STRING,
    Custom,
    Map,
    Mismatch,
    Slice,
    Struct,
    convert,
    kind,
)
from ollama_simulator.gojson.values import GoError, Object, dump, parse, plain, quoted

_BLOCK = Struct(
    "anthropic.ContentBlock",
    {
        "type": STRING,
        "text": STRING,
        "source": Struct(
            "anthropic.ImageSource", {"type": STRING, "media_type": STRING, "data": STRING, "url": STRING}
        ),
        "id": STRING,
        "name": STRING,
        "input": Custom(plain),
        "tool_use_id": STRING,
        "content": ANY,
        "is_error": BOOL,
        "thinking": STRING,
        "signature": STRING,
    },
)


_RAW = 'struct { Role string "json:\\"role\\""; Content json.RawMessage "json:\\"content\\"" }'


def _message(value: Any) -> dict[str, Any]:
    if value is None:
        raise GoError("unexpected end of JSON input")
    if not isinstance(value, Object):
        raise Mismatch(kind(value), _RAW)
    raw = dict(value)
    role = (convert(value, Struct("", {"role": STRING})) or {}).get("role") or ""
    content = raw.get("content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    if "content" not in raw:
        raise GoError("unexpected end of JSON input")
    return {"role": role, "content": convert(content, Slice(_BLOCK)) or []}


MESSAGES = Struct(
    "anthropic.MessagesRequest",
    {
        "model": STRING,
        "max_tokens": INT,
        "messages": Slice(Custom(_message, "anthropic.MessageParam", takes_null=True)),
        "system": ANY,
        "stream": BOOL,
        "temperature": FLOAT,
        "top_p": FLOAT,
        "top_k": INT,
        "stop_sequences": Slice(STRING),
        "tools": Slice(
            Struct(
                "anthropic.Tool",
                {"type": STRING, "name": STRING, "description": STRING, "input_schema": Custom(plain), "max_uses": INT},
            )
        ),
        "tool_choice": Map(ANY),
        "thinking": Struct("anthropic.ThinkingConfig", {"type": STRING, "budget_tokens": INT}),
        "metadata": Map(ANY),
        "output_config": Struct("anthropic.OutputConfig", {"effort": STRING}),
    },
)


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The body that Ollama's chat handler gets. Raises Rejected."""
    if not request.get("model"):
        raise Rejected("model is required")
    if (request.get("max_tokens") or 0) <= 0:
        raise Rejected("max_tokens is required and must be positive")
    if not request.get("messages"):
        raise Rejected("messages is required")
    messages: list[dict[str, Any]] = []
    system = request.get("system")
    if isinstance(system, list):
        blocks = [block for block in system if isinstance(block, dict) and block.get("type") == "text"]
        system = "".join(str(block.get("text") or "") for block in blocks)
    if isinstance(system, str) and system:
        messages.append({"role": "system", "content": system})
    for message in request["messages"]:
        messages += _messages(message or {"role": "", "content": []})
    options: dict[str, Any] = {"num_predict": request["max_tokens"]}
    options.update({key: request[key] for key in ("temperature", "top_p", "top_k") if request.get(key) is not None})
    if request.get("stop_sequences"):
        options["stop"] = request["stop_sequences"]
    return {
        "model": request["model"],
        "messages": messages,
        "options": options,
        "tools": [_tool(tool) for tool in request.get("tools") or ()] or None,
        "think": _think(request),
    }


def _think(request: Mapping[str, Any]) -> bool | str | None:
    kinds = {"enabled": True, "disabled": False}
    wanted = kinds.get((request.get("thinking") or {}).get("type") or "")
    effort = ((request.get("output_config") or {}).get("effort") or "").strip().lower()
    effort = "high" if effort == "xhigh" else effort
    return effort if wanted is None and effort in ("high", "medium", "low", "max") else wanted


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    try:
        schema = convert(parse(dump(tool.get("input_schema") or {})), PARAMETERS)
    except GoError as error:
        raise Rejected(f"invalid input_schema for tool {quoted(tool.get('name') or '')}: {error.text}") from None
    function = {"name": tool.get("name") or "", "description": tool.get("description") or "", "parameters": schema}
    return {"type": "function", "function": function}


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    role = message["role"].lower()
    text, thinking = "", ""
    images: list[bytes] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in message["content"]:
        name = (block or {}).get("type")
        if name == "text":
            text += block.get("text") or ""
        elif name == "thinking":
            thinking = block.get("thinking") or ""
        elif name == "image":
            images.append(_image(block.get("source")))
        elif name == "tool_use":
            calls.append(_call(block))
        elif name == "tool_result":
            content = _result(block.get("content"))
            results.append({"role": "tool", "content": content, "tool_call_id": block.get("tool_use_id") or ""})
    own = {"role": role, "content": text, "images": images, "tool_calls": calls, "thinking": thinking}
    spoken = [own] if text or images or calls or thinking else []
    return results + spoken if role == "user" and results else spoken + results


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("id", "name"):
        if not block.get(key):
            raise Rejected(f"tool_use block missing required '{key}' field")
    return {"id": block["id"], "function": {"name": block["name"], "arguments": block.get("input") or {}}}


def _image(source: Mapping[str, Any] | None) -> bytes:
    if source is None:
        raise Rejected("invalid image source")
    if source.get("type") != "base64":
        raise Rejected(f"invalid image source type: {source.get('type') or ''}. Only base64 images are supported.")
    try:
        return go_base64(source.get("data") or "")
    except GoError as error:
        raise Rejected(f"invalid base64 image data: {error.text}") from None


def _result(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part for part in content or () if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(str(part.get("text") or "") for part in parts)


def estimated_tokens(request: Mapping[str, Any]) -> int:
    """Ollama's guess for message_start: a quarter of all bytes."""
    total = _length(request.get("system"))
    for message in request.get("messages") or ():
        total += len(message["role"]) + sum(_length([block]) for block in message["content"])
    for tool in request.get("tools") or ():
        schema = dump(tool["input_schema"]) if tool.get("input_schema") else b""
        total += len(tool.get("name") or "") + len(tool.get("description") or "") + len(schema)
    return total // 4 or 1


def _length(content: Any) -> int:
    if isinstance(content, str):
        return len(content.encode())
    total = 0
    for block in content or ():
        total += len((block.get("text") or "").encode()) + len((block.get("thinking") or "").encode())
        if block.get("type") in ("tool_use", "tool_result"):
            total += len(dump(block))
    return total
