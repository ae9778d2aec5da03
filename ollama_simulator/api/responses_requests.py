"""Requests of `/v1/responses`, converted to Ollama's own (openai/responses.go)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ollama_simulator.api.dialect import Rejected
from ollama_simulator.api.openai_requests import image_of, think_of
from ollama_simulator.api.tool_schemas import PARAMETERS, web_search_tool
from ollama_simulator.api.values import ANY, BOOL, FLOAT64, INT, RAW, STRING, STRINGS, VERBATIM
from ollama_simulator.gojson import bind, dump, parse, value_of
from router.core.go.json_keys import elements, kind_of, read_text
from router.core.go.quoting import go_quoted
from router.core.go.types import Custom, Map, Mismatch, Slice, Struct, read_alone
from router.errors import BadRequest

_PEEK = Struct(
    'struct { Type string "json:\\"type\\""; Role string "json:\\"role\\"" }',
    fields={"type": STRING, "role": STRING},
)


def _input(view: memoryview, kind: str) -> Any:
    if kind == "string":
        return view
    if kind != "array":
        error = Mismatch(kind, "[]json.RawMessage", "", ())
        raise BadRequest(f"input must be a string or array: {error.message}")
    items = []
    for number, item in enumerate(elements(view)):
        try:
            items.append(_item(item))
        except BadRequest as error:
            raise BadRequest(f"input[{number}]: {error.message}") from None
    return items


def _item(view: memoryview) -> dict[str, Any]:
    found = read_alone(_PEEK, view, kind_of(view))
    name = read_text(found.get("type")) or ("message" if read_text(found.get("role")) else "")
    if not name:
        raise BadRequest("input item missing required 'type' field")
    if name not in ("message", "function_call", "function_call_output", "reasoning", "web_search_call"):
        raise BadRequest(f"unknown input item type: {go_quoted(name)}")
    item = value_of(view)
    content = item.get("content")
    for number, part in enumerate(content if name == "message" and isinstance(content, list) else ()):
        part_type = part.get("type") or "" if isinstance(part, dict) else ""
        if part_type not in ("input_text", "output_text", "input_image", "input_file"):
            raise BadRequest(f"content[{number}]: unknown content type: {part_type}")
    return {**item, "type": name}


_TOOL_FIELDS: dict[str, Any] = {
    "type": STRING,
    "name": STRING,
    "description": STRING,
    "strict": BOOL,
    "parameters": Map("map[string]interface {}", value=ANY),
    "tools": Slice("[]interface {}", element=ANY),
}
_FORMAT = Struct(
    "openai.ResponsesTextFormat",
    resets=True,
    fields={"type": STRING, "name": STRING, "schema": VERBATIM, "strict": BOOL},
)
RESPONSES = Struct(
    "openai.ResponsesRequest",
    fields={
        "model": STRING,
        "background": BOOL,
        "conversation": RAW,
        "include": STRINGS,
        "input": Custom("openai.ResponsesInput", resets=True, parse=_input),
        "instructions": STRING,
        "max_output_tokens": INT,
        "reasoning": Struct(
            "openai.ResponsesReasoning", fields={"effort": STRING, "generate_summary": STRING, "summary": STRING}
        ),
        "temperature": FLOAT64,
        "text": Struct("openai.ResponsesText", fields={"format": _FORMAT}),
        "top_p": FLOAT64,
        "truncation": STRING,
        "tools": Slice("[]openai.ResponsesTool", element=Struct("openai.ResponsesTool", fields=_TOOL_FIELDS)),
        "stream": BOOL,
    },
)


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for Ollama's chat handler. Raises Rejected."""
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
        "tools": _tools(request.get("tools") or ()) or None,
        "format": form.get("schema") if form.get("type") == "json_schema" else None,
        "think": think_of((request.get("reasoning") or {}).get("effort") or ""),
    }


def _tools(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the tools, of which the built-in web search owns the name web_search."""
    is_built_in = any(tool.get("type") == "web_search" for tool in tools)
    search = web_search_tool("Search the web for current information.", "The search query.")
    made = [search if tool.get("type") == "web_search" else _tool(tool) for tool in tools]
    return [tool for tool in made if tool is search or not is_built_in or tool["function"]["name"] != "web_search"]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    parameters = bind(dump(tool.get("parameters") or {}), PARAMETERS)
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
            arguments = parse(item["arguments"].encode())
        except BadRequest as error:
            text = "unexpected end of JSON input" if error.message == "unexpected EOF" else error.message
            raise Rejected(f"failed to parse function call arguments: {text}") from None
    call = {"id": item.get("call_id") or "", "function": {"name": item.get("name") or "", "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)
    if thinking:
        messages[-1]["thinking"] = thinking
