"""Requests of `/v1/responses`, turned into Ollama's own (openai/responses.go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_simulator.api.dialect import Rejected
from ollama_simulator.api.openai_requests import image_of, think_of
from ollama_simulator.api.schemas import PARAMETERS
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


def _input(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or isinstance(value, Object):
        error = Mismatch(kind(value), "[]json.RawMessage")
        raise GoError(f"input must be a string or array: {error.text}")
    items = []
    for number, raw in enumerate(value):
        try:
            items.append(_item(raw))
        except GoError as error:
            raise GoError(f"input[{number}]: {error.text}") from None
    return items


_PEEK = 'struct { Type string "json:\\"type\\""; Role string "json:\\"role\\"" }'


def _item(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Object) and raw is not None:
        raise Mismatch(kind(raw), _PEEK)
    found: dict[str, Any] = convert(raw, Struct("", {"type": STRING, "role": STRING})) or {}
    item = dict(plain(raw)) if isinstance(raw, Object) else {}
    name = found.get("type") or ("message" if found.get("role") else "")
    if not name:
        raise GoError("input item missing required 'type' field")
    if name not in ("message", "function_call", "function_call_output", "reasoning", "web_search_call"):
        raise GoError(f"unknown input item type: {quoted(name)}")
    content = item.get("content")
    for number, part in enumerate(content if name == "message" and isinstance(content, list) else ()):
        part_type = part.get("type") or "" if isinstance(part, dict) else ""
        if part_type not in ("input_text", "output_text", "input_image", "input_file"):
            raise GoError(f"content[{number}]: unknown content type: {part_type}")
    return {**item, "type": name}


_TOOL_FIELDS: dict[str, Any] = {
    "type": STRING,
    "name": STRING,
    "description": STRING,
    "strict": BOOL,
    "parameters": Map(ANY),
    "tools": Slice(ANY),
}
_FORMAT = Struct(
    "openai.ResponsesTextFormat", {"type": STRING, "name": STRING, "schema": Custom(plain), "strict": BOOL}
)
RESPONSES = Struct(
    "openai.ResponsesRequest",
    {
        "model": STRING,
        "background": BOOL,
        "conversation": Custom(plain),
        "include": Slice(STRING),
        "input": Custom(_input),
        "instructions": STRING,
        "max_output_tokens": INT,
        "reasoning": Struct(
            "openai.ResponsesReasoning", {"effort": STRING, "generate_summary": STRING, "summary": STRING}
        ),
        "temperature": FLOAT,
        "text": Struct("openai.ResponsesText", {"format": _FORMAT}),
        "top_p": FLOAT,
        "truncation": STRING,
        "tools": Slice(Struct("openai.ResponsesTool", _TOOL_FIELDS)),
        "stream": BOOL,
    },
)


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The body that Ollama's chat handler gets. Raises Rejected."""
    messages: list[dict[str, Any]] = []
    if request.get("instructions"):
        messages.append({"role": "system", "content": request["instructions"]})
    found = request.get("input")
    if isinstance(found, str) and found:
        messages.append({"role": "user", "content": found})
    elif isinstance(found, list):
        _add_items(messages, found)
    options: dict[str, Any] = {"temperature": 1.0}
    names = {"temperature": "temperature", "top_p": "top_p", "max_output_tokens": "num_predict"}
    options.update({name: request[key] for key, name in names.items() if request.get(key) is not None})
    form = (request.get("text") or {}).get("format") or {}
    return {
        "model": request.get("model") or "",
        "messages": messages,
        "options": options,
        "tools": [_tool(tool) for tool in request.get("tools") or ()] or None,
        "format": form.get("schema") if form.get("type") == "json_schema" else None,
        "think": think_of((request.get("reasoning") or {}).get("effort") or ""),
    }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    parameters = convert(parse(dump(tool.get("parameters") or {})), PARAMETERS)
    function = {"name": tool.get("name") or "", "description": tool.get("description") or "", "parameters": parameters}
    return {"type": tool.get("type") or "", "function": function}


def _add_items(messages: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
    thinking = ""
    for item in items:
        name = item["type"]
        if name == "reasoning":
            thinking = item.get("encrypted_content") or ""
        elif name == "message":
            made = _message(item)
            if made["role"] == "assistant" and thinking:
                made["thinking"], thinking = thinking, ""
            messages.append(made)
        elif name == "function_call":
            _add_call(messages, item, thinking)
            thinking = ""
        elif name == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else _texts(output or [])[0]
            messages.append({"role": "tool", "content": text, "tool_call_id": item.get("call_id") or ""})
    if thinking:
        messages.append({"role": "assistant", "content": "", "thinking": thinking})


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    text, images = (content, []) if isinstance(content, str) else _texts(content or [])
    return {"role": (item.get("role") or "").lower(), "content": text, "images": images}


def _texts(parts: list[Any]) -> tuple[str, list[bytes]]:
    text, images = "", []
    for part in parts:
        name = part.get("type") if isinstance(part, dict) else None
        if name in ("input_text", "output_text"):
            text += part.get("text") or ""
        elif name == "input_image":
            images += [image_of(part["image_url"])] if part.get("image_url") else []
        elif name == "input_file":
            raise Rejected("file inputs are not currently supported")
        else:
            raise Rejected(f"unknown content type: {name or ''}")
    return text, images


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], thinking: str) -> None:
    arguments: Any = {}
    if item.get("arguments"):
        try:
            arguments = plain(parse(item["arguments"].encode()))
        except GoError as error:
            text = "unexpected end of JSON input" if error.text == "unexpected EOF" else error.text
            raise Rejected(f"failed to parse function call arguments: {text}") from None
    call = {"id": item.get("call_id") or "", "function": {"name": item.get("name") or "", "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)
    if thinking:
        messages[-1]["thinking"] = thinking
