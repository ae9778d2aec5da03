"""Tools and tool calls in request bodies as Go structs (api/types.go), with their custom decoders."""

from __future__ import annotations

import re
from typing import Any

from ollama_simulator.api.values import ANY, INT, STRING, STRINGS
from router.core.go.json_keys import kind_of, split
from router.core.go.json_scan import scan
from router.core.go.types import Custom, Slice, Struct, read_alone
from router.errors import BadRequest

_PAIR = re.compile(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_NO_OBJECT = "Value looks like object, but can't find closing '}' symbol"


def _property_type(view: memoryview, kind: str) -> Any:
    if kind == "null":  # Go's decoder of a string accepts it
        return ""
    return view if kind == "string" else read_alone(STRINGS, view, kind)


def _ordered_properties(view: memoryview, kind: str) -> dict[str, Any]:
    if kind != "object":
        raise BadRequest(_NO_OBJECT)
    members = split(view)
    _check_keys(bytes(view))
    return {key: read_alone(PROPERTY, item, kind_of(item)) for key, item in members}


def _check_keys(text: bytes) -> None:
    """Refuse half of a surrogate pair in the keys of an object, as the decoder of ordered maps does, unlike Go's own.

    Raises BadRequest.
    """
    for span in scan(text):
        if span.key and _HALF.search(_PAIR.sub("", bytes(span.key).decode("utf-8", "replace"))):
            raise BadRequest("Encountered an invalid escape sequence in a string")


def _arguments(view: memoryview, kind: str) -> memoryview:
    if kind != "object":
        raise BadRequest(_NO_OBJECT)
    _check_keys(bytes(view))
    return view


def _property(view: memoryview, kind: str) -> Any:
    return read_alone(PROPERTY, view, kind)


_PROPERTIES = Custom("api.ToolPropertiesMap", resets=True, parse=_ordered_properties)
PROPERTY = Struct(
    "api.ToolProperty",
    fields={
        "anyOf": Slice("[]api.ToolProperty", element=Custom("api.ToolProperty", parse=_property)),
        "type": Custom("api.PropertyType", parse=_property_type),
        "items": ANY,
        "description": STRING,
        "enum": Slice("[]interface {}", element=ANY),
        "properties": _PROPERTIES,
        "required": STRINGS,
    },
)
PARAMETERS = Struct(
    "api.ToolFunctionParameters",
    fields={"type": STRING, "$defs": ANY, "items": ANY, "required": STRINGS, "properties": _PROPERTIES},
)
_FUNCTION = Struct("api.ToolFunction", fields={"name": STRING, "description": STRING, "parameters": PARAMETERS})
TOOL = Struct("api.Tool", fields={"type": STRING, "items": ANY, "function": _FUNCTION})
_CALL_FUNCTION = Struct(
    "api.ToolCallFunction",
    fields={
        "index": INT,
        "name": STRING,
        "arguments": Custom("api.ToolCallFunctionArguments", resets=True, parse=_arguments),
    },
)
TOOL_CALLS = Slice("[]api.ToolCall", element=Struct("api.ToolCall", fields={"id": STRING, "function": _CALL_FUNCTION}))


def web_search_tool(description: str, query: str) -> dict[str, Any]:
    """Return the tool that Ollama puts in the place of a dialect's own web search."""
    properties = {"query": {"type": "string", "description": query}}
    parameters = {"type": "object", "required": ["query"], "properties": properties}
    return {
        "type": "function",
        "function": {"name": "web_search", "description": description, "parameters": parameters},
    }
