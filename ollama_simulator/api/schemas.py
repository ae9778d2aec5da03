"""The request bodies of Ollama's API as Go structs (api/types.go, openai/, anthropic/), with their own decoders."""

from __future__ import annotations

import base64
import re
from typing import Any

from ollama_simulator.gojson.structs import (
    ANY,
    BOOL,
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
from ollama_simulator.gojson.values import GoError, Object, plain, quoted

FOREVER_S = float("inf")
NO_OBJECT = "Value looks like object, but can't find closing '}' symbol"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_NS = (1 << 63) - 1


def go_duration_s(text: str) -> float:
    """time.ParseDuration in seconds. Raises GoError with Go's text."""
    rest = text
    negative = rest[:1] == "-"
    rest = rest[1:] if rest[:1] in ("-", "+") else rest
    if rest == "0":
        return 0.0
    if not rest:
        raise GoError(f"time: invalid duration {quoted(text)}")
    total = 0.0
    while rest:
        match = re.match(r"(\d*)(?:\.(\d*))?", rest)
        assert match is not None
        if not match[1] and not match[2]:
            raise GoError(f"time: invalid duration {quoted(text)}")
        rest = rest[match.end() :]
        unit = re.match(r"[^.0-9]*", rest)
        assert unit is not None
        if not unit[0]:
            raise GoError(f"time: missing unit in duration {quoted(text)}")
        if unit[0] not in _UNITS:
            raise GoError(f"time: unknown unit {quoted(unit[0])} in duration {quoted(text)}")
        rest = rest[unit.end() :]
        total += float(f"{match[1] or 0}.{match[2] or 0}") * _UNITS[unit[0]]
        if total * 1e9 > _MAX_NS + 1024:
            raise GoError(f"time: invalid duration {quoted(text)}")
    return -total if negative else total


def _keep_alive(value: Any) -> float:
    """api.Duration in seconds: negative = for ever; a number beyond int64 nanoseconds overflows into the past."""
    if isinstance(value, bool):
        raise GoError("Unsupported type: 'bool'")
    if isinstance(value, int | float):
        if value < 0:
            return FOREVER_S
        return -1.0 if float(value) * 1e9 > _MAX_NS else float(value)
    if isinstance(value, str):
        seconds = go_duration_s(value)
        return FOREVER_S if seconds < 0 else seconds
    name = "map[string]interface {}" if isinstance(value, Object) else "[]interface {}"
    raise GoError(f"Unsupported type: '{name}'")


def _think(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value in ("high", "medium", "low", "max"):
            return value
        choices = '(must be "high", "medium", "low", "max", true, or false)'
        raise GoError(f"invalid think value: {quoted(value)} {choices}")
    raise GoError('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')


def _image(value: Any) -> bytes:
    if not isinstance(value, str):
        raise Mismatch(kind(value), "api.ImageData")
    return go_base64(value)


def go_base64(text: str) -> bytes:
    """base64.StdEncoding as encoding/json uses it. Raises GoError with the byte that is wrong."""
    cleaned = re.sub(r"[\r\n]", "", text)
    wrong = re.search(r"[^A-Za-z0-9+/=]", text)
    body = cleaned.rstrip("=")
    if wrong or "=" in body or len(cleaned) % 4 or len(cleaned) - len(body) > 2:
        at = wrong.start() if wrong else (body.index("=") if "=" in body else len(cleaned) // 4 * 4)
        raise GoError(f"illegal base64 data at input byte {at}")
    return base64.b64decode(cleaned)


def _property_type(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return convert(value, Slice(STRING))


def _ordered_properties(value: Any) -> Any:
    if not isinstance(value, Object):
        raise GoError(NO_OBJECT)
    return {key: None if item is None else convert(item, PROPERTY) for key, item in value}


def _arguments(value: Any) -> Any:
    if not isinstance(value, Object):
        raise GoError(NO_OBJECT)
    return plain(value)


PROPERTY = Struct(
    "api.ToolProperty",
    {
        "type": Custom(_property_type),
        "items": ANY,
        "description": STRING,
        "enum": Slice(ANY),
        "properties": Custom(_ordered_properties),
        "required": Slice(STRING),
    },
)
PARAMETERS = Struct(
    "api.ToolFunctionParameters",
    {
        "type": STRING,
        "$defs": ANY,
        "items": ANY,
        "required": Slice(STRING),
        "properties": Custom(_ordered_properties),
    },
)
TOOL_FUNCTION = Struct("api.ToolFunction", {"name": STRING, "description": STRING, "parameters": PARAMETERS})
TOOLS = Slice(Struct("api.Tool", {"type": STRING, "items": ANY, "function": TOOL_FUNCTION}), "api.Tools")
CALL_FUNCTION = Struct("api.ToolCallFunction", {"index": INT, "name": STRING, "arguments": Custom(_arguments)})
TOOL_CALLS = Slice(Struct("api.ToolCall", {"id": STRING, "function": CALL_FUNCTION}))
IMAGES = Slice(Custom(_image, "api.ImageData"))
_ALIAS = Struct(
    "api.Alias",
    {
        "role": STRING,
        "content": STRING,
        "thinking": STRING,
        "images": IMAGES,
        "tool_calls": TOOL_CALLS,
        "tool_name": STRING,
        "tool_call_id": STRING,
    },
)


def _message(value: Any) -> dict[str, Any]:
    message: dict[str, Any] = convert(value, _ALIAS) or {}
    message["role"] = (message.get("role") or "").lower()
    return message


MESSAGES = Slice(Custom(_message, "api.Message", takes_null=True))
KEEP_ALIVE = Custom(_keep_alive)
OPTIONS = Map(ANY)
_INFERENCE = {
    "model": STRING,
    "stream": BOOL,
    "format": Custom(plain),
    "keep_alive": KEEP_ALIVE,
    "options": OPTIONS,
    "think": Custom(_think),
    "truncate": BOOL,
    "shift": BOOL,
    "_debug_render_only": BOOL,
    "logprobs": BOOL,
    "top_logprobs": INT,
}
GENERATE = Struct(
    "api.GenerateRequest",
    {
        **_INFERENCE,
        "prompt": STRING,
        "suffix": STRING,
        "system": STRING,
        "template": STRING,
        "context": Slice(INT),
        "raw": BOOL,
        "images": IMAGES,
    },
)
CHAT = Struct("api.ChatRequest", {**_INFERENCE, "messages": MESSAGES, "tools": TOOLS})
EMBED = Struct(
    "api.EmbedRequest",
    {
        "model": STRING,
        "input": ANY,
        "keep_alive": KEEP_ALIVE,
        "truncate": BOOL,
        "dimensions": INT,
        "options": OPTIONS,
    },
)
EMBEDDING = Struct(
    "api.EmbeddingRequest", {"model": STRING, "prompt": STRING, "keep_alive": KEEP_ALIVE, "options": OPTIONS}
)
SHOW = Struct(
    "api.ShowRequest",
    {"model": STRING, "system": STRING, "template": STRING, "verbose": BOOL, "options": OPTIONS, "name": STRING},
)
COPY = Struct("api.CopyRequest", {"source": STRING, "destination": STRING})
DELETE = Struct("api.DeleteRequest", {"model": STRING, "name": STRING})
_TRANSFER = {
    "model": STRING,
    "insecure": BOOL,
    "username": STRING,
    "password": STRING,
    "stream": BOOL,
    "name": STRING,
}
PULL = Struct("api.PullRequest", _TRANSFER)
PUSH = Struct("api.PushRequest", _TRANSFER)
CREATE = Struct(
    "api.CreateRequest",
    {
        "model": STRING,
        "stream": BOOL,
        "quantize": STRING,
        "draft_quantize": STRING,
        "from": STRING,
        "remote_host": STRING,
        "files": Map(STRING),
        "draft_files": Map(STRING),
        "adapters": Map(STRING),
        "template": STRING,
        "license": ANY,
        "system": STRING,
        "parameters": OPTIONS,
        "messages": MESSAGES,
        "renderer": STRING,
        "parser": STRING,
        "requires": STRING,
        "info": OPTIONS,
        "name": STRING,
        "quantization": STRING,
    },
)
