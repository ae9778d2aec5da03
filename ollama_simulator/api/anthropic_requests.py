"""Requests of `/v1/messages`, converted to Ollama's own (anthropic/anthropic.go)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ollama_simulator.api.dialect import Rejected
from ollama_simulator.api.tool_schemas import PARAMETERS, web_search_tool
from ollama_simulator.api.values import ANY, BOOL, FLOAT64, INT, RAW, STRING, STRINGS, VERBATIM, go_base64
from ollama_simulator.gojson import bind, dump
from router.core.go.json_keys import kind_of, read_text
from router.core.go.quoting import go_quoted
from router.core.go.types import Anything, Custom, Slice, Struct, read_alone
from router.errors import BadRequest

_BLOCK = Struct(
    "anthropic.ContentBlock",
    fields={
        "type": STRING,
        "text": STRING,
        "source": Struct(
            "anthropic.ImageSource",
            resets=True,
            fields={"type": STRING, "media_type": STRING, "data": STRING, "url": STRING},
        ),
        "id": STRING,
        "name": STRING,
        "input": RAW,
        "tool_use_id": STRING,
        "content": ANY,
        "is_error": BOOL,
        "thinking": STRING,
        "signature": STRING,
    },
)
_BLOCKS = Slice("[]anthropic.ContentBlock", element=_BLOCK)
_PARAM = Struct(
    'struct { Role string "json:\\"role\\""; Content json.RawMessage "json:\\"content\\"" }',
    fields={"role": STRING, "content": Anything("json.RawMessage")},
)


def _message(view: memoryview, kind: str) -> dict[str, Any]:
    found = read_alone(_PARAM, view, kind)
    if "content" not in found:
        raise BadRequest("unexpected end of JSON input")
    content, content_kind = found["content"], kind_of(found["content"])
    if content_kind == "string":
        blocks = [{"type": "text", "text": content}]
    else:
        blocks = [] if content_kind == "null" else read_alone(_BLOCKS, content, content_kind)
    return {"role": read_text(found.get("role")), "content": blocks}


MESSAGES = Struct(
    "anthropic.MessagesRequest",
    fields={
        "model": STRING,
        "max_tokens": INT,
        "messages": Slice("[]anthropic.MessageParam", element=Custom("anthropic.MessageParam", parse=_message)),
        "system": ANY,
        "stream": BOOL,
        "temperature": FLOAT64,
        "top_p": FLOAT64,
        "top_k": INT,
        "stop_sequences": STRINGS,
        "tools": Slice(
            "[]anthropic.Tool",
            element=Struct(
                "anthropic.Tool",
                fields={
                    "type": STRING,
                    "name": STRING,
                    "description": STRING,
                    "input_schema": VERBATIM,
                    "max_uses": INT,
                },
            ),
        ),
        "tool_choice": Struct("anthropic.ToolChoice", resets=True, fields={"type": STRING, "name": STRING}),
        "thinking": Struct("anthropic.ThinkingConfig", resets=True, fields={"type": STRING, "budget_tokens": INT}),
        "metadata": Struct("anthropic.Metadata", resets=True, fields={"user_id": STRING}),
        "output_config": Struct("anthropic.OutputConfig", resets=True, fields={"effort": STRING}),
    },
)


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for Ollama's chat handler. Raises Rejected."""
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
        "tools": _tools(request.get("tools") or ()) or None,
        "think": _think(request),
    }


def _think(request: Mapping[str, Any]) -> bool | str | None:
    kinds = {"enabled": True, "disabled": False}
    wanted = kinds.get((request.get("thinking") or {}).get("type") or "")
    effort = ((request.get("output_config") or {}).get("effort") or "").strip().lower()
    effort = "high" if effort == "xhigh" else effort
    return effort if wanted is None and effort in ("high", "medium", "low", "max") else wanted


def _tools(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the tools, of which the built-in web search owns the name web_search."""
    found = [(tool, (tool.get("type") or "").startswith("web_search")) for tool in tools]
    is_built_in = any(built_in for _, built_in in found)
    kept = [(tool, own) for tool, own in found if own or not (is_built_in and tool.get("name") == "web_search")]
    return [web_search_tool(_SEARCH, _QUERY) if own else _tool(tool) for tool, own in kept]


_SEARCH = "Search the web for current information. Use this to find up-to-date information about any topic."
_QUERY = "The search query to look up on the web"


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    try:
        schema = bind((tool["input_schema"].text if tool.get("input_schema") else "{}").encode(), PARAMETERS)
    except BadRequest as error:
        raise Rejected(f"invalid input_schema for tool {go_quoted(tool.get('name') or '')}: {error.message}") from None
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
    except BadRequest as error:
        raise Rejected(f"invalid base64 image data: {error.message}") from None


def _result(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part for part in content or () if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(str(part.get("text") or "") for part in parts)


def estimated_tokens(request: Mapping[str, Any]) -> int:
    """Ollama's estimate for message_start: one token per four bytes."""
    total = _length(request.get("system"))
    for message in request.get("messages") or ():
        total += len(message["role"]) + sum(_length([block]) for block in message["content"])
    for tool in request.get("tools") or ():
        schema = tool["input_schema"].text if tool.get("input_schema") else ""
        total += len(tool.get("name") or "") + len(tool.get("description") or "") + len(schema.encode())
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
