"""OpenAI requests, converted to Ollama's own (openai/openai.go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_simulator.api.dialect import Rejected
from ollama_simulator.api.tool_schemas import TOOL
from ollama_simulator.api.values import ANY, BOOL, FLOAT32, FLOAT64, INT, STRING, VERBATIM, go_base64
from ollama_simulator.gojson import parse
from router.core.go.quoting import go_quoted
from router.core.go.types import Slice, Struct
from router.errors import BadRequest

STREAM_OPTIONS = Struct("openai.StreamOptions", resets=True, fields={"include_usage": BOOL})
_CALL_FUNCTION = Struct(
    'struct { Name string "json:\\"name\\""; Arguments string "json:\\"arguments\\"" }',
    fields={"name": STRING, "arguments": STRING},
)
_CALL = Struct(
    "openai.ToolCall",
    fields={"id": STRING, "index": INT, "type": STRING, "function": _CALL_FUNCTION},
)
MESSAGE = Struct(
    "openai.Message",
    fields={
        "role": STRING,
        "content": ANY,
        "reasoning": STRING,
        "tool_calls": Slice("[]openai.ToolCall", element=_CALL),
        "name": STRING,
        "tool_call_id": STRING,
    },
)
_FORMAT = Struct(
    "openai.ResponseFormat",
    fields={"type": STRING, "json_schema": Struct("openai.JsonSchema", fields={"schema": VERBATIM})},
)
CHAT = Struct(
    "openai.ChatCompletionRequest",
    fields={
        "model": STRING,
        "messages": Slice("[]openai.Message", element=MESSAGE),
        "stream": BOOL,
        "stream_options": STREAM_OPTIONS,
        "max_tokens": INT,
        "seed": INT,
        "stop": ANY,
        "temperature": FLOAT64,
        "frequency_penalty": FLOAT64,
        "presence_penalty": FLOAT64,
        "top_p": FLOAT64,
        "response_format": _FORMAT,
        "tools": Slice("[]api.Tool", element=TOOL),
        "reasoning": Struct("openai.Reasoning", resets=True, fields={"effort": STRING}),
        "reasoning_effort": STRING,
        "logprobs": BOOL,
        "top_logprobs": INT,
        "_debug_render_only": BOOL,
    },
)
COMPLETION = Struct(
    "openai.CompletionRequest",
    fields={
        "model": STRING,
        "prompt": STRING,
        "frequency_penalty": FLOAT32,
        "max_tokens": INT,
        "presence_penalty": FLOAT32,
        "seed": INT,
        "stop": ANY,
        "stream": BOOL,
        "stream_options": STREAM_OPTIONS,
        "temperature": FLOAT32,
        "top_p": FLOAT32,
        "suffix": STRING,
        "logprobs": INT,
        "_debug_render_only": BOOL,
    },
)
EMBED = Struct(
    "openai.EmbedRequest", fields={"input": ANY, "model": STRING, "dimensions": INT, "encoding_format": STRING}
)


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for Ollama's chat handler. Raises Rejected."""
    messages: list[dict[str, Any]] = []
    for message in request["messages"]:
        messages += _messages(message or {}, request["messages"])
    effort = (request.get("reasoning") or {}).get("effort", request.get("reasoning_effort") or "")
    return {
        "model": request.get("model") or "",
        "messages": messages,
        "options": _options(request, ("frequency_penalty", "presence_penalty")),
        "format": _format(request.get("response_format") or {}),
        "tools": request.get("tools"),
        "think": think_of(effort),
        "logprobs": request.get("logprobs"),
        "top_logprobs": request.get("top_logprobs") or 0,
        "_debug_render_only": request.get("_debug_render_only"),
    }


def _format(wanted: Mapping[str, Any]) -> Any:
    kind = (wanted.get("type") or "").strip().lower()
    if kind == "json_object":
        return "json"
    return (wanted.get("json_schema") or {}).get("schema") if kind == "json_schema" else None


def _messages(message: Mapping[str, Any], all_messages: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    content = message.get("content")
    calls = message.get("tool_calls")
    made: dict[str, Any] = {"role": (message.get("role") or "").lower(), "content": ""}
    if isinstance(content, list):
        parts = [_part(made["role"], part) for part in content]
        if parts and calls:
            parts[-1].update(tool_calls=tool_calls_of(calls), thinking=message.get("reasoning") or "")
        return parts
    if not isinstance(content, str) and calls is None:
        raise Rejected(f"invalid message content type: {_go_type(content)}")
    if isinstance(content, str):
        made["content"] = content
        made["tool_name"] = _tool_name(message, all_messages)
    made.update(thinking=message.get("reasoning") or "", tool_calls=tool_calls_of(calls or []))
    made["tool_call_id"] = message.get("tool_call_id") or ""
    return [made]


def _go_type(value: Any) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "bool"
    return "float64" if isinstance(value, int | float) else "map[string]interface {}"


def _tool_name(message: Mapping[str, Any], all_messages: list[Mapping[str, Any]]) -> str:
    if (message.get("role") or "").lower() != "tool" or message.get("name"):
        return str(message.get("name") or "")
    wanted = message.get("tool_call_id")
    for other in reversed(all_messages):
        for call in (other or {}).get("tool_calls") or ():
            if wanted and call.get("id") == wanted:
                return str((call.get("function") or {}).get("name") or "")
    return ""


def _part(role: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise Rejected("invalid message format")
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"role": role, "content": part["text"]}
    if part.get("type") == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return {"role": role, "content": "", "images": [image_of(url)]}
    if part.get("type") == "input_audio":
        return {"role": role, "content": "", "images": [_audio(part.get("input_audio"))]}
    raise Rejected("invalid message format")


def _audio(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise Rejected("invalid input_audio format")
    if not isinstance(value.get("data"), str):
        raise Rejected("invalid input_audio format: missing data")
    try:
        return go_base64(value["data"])
    except BadRequest as error:
        raise Rejected(f"invalid input_audio base64 data: {error.message}") from None


def image_of(url: str) -> bytes:
    """Return the bytes in a data URL. Raises Rejected."""
    if url.startswith(("http://", "https://")):
        raise Rejected("image URLs are not currently supported, please use base64 encoded data instead")
    prefixes = ["data:;base64,", *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp"))]
    for prefix in prefixes:
        if url.startswith(prefix):
            try:
                return go_base64(url.removeprefix(prefix))
            except BadRequest:
                break
    raise Rejected("invalid image input")


def tool_calls_of(calls: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls with their arguments parsed. Raises Rejected."""
    made = []
    for call in calls:
        function = call.get("function") or {}
        try:
            arguments = parse((function.get("arguments") or "").encode())
        except BadRequest:
            arguments = None
        if not isinstance(arguments, dict):
            raise Rejected("invalid tool call arguments")
        function = {"name": function.get("name") or "", "arguments": arguments}
        made.append({"id": call.get("id") or "", "function": function})
    return made


def _options(request: Mapping[str, Any], penalties: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    stop = request.get("stop")
    if isinstance(stop, str):
        options["stop"] = [stop]
    elif isinstance(stop, list):
        options["stop"] = [item for item in stop if isinstance(item, str)]
    if request.get("max_tokens") is not None:
        options["num_predict"] = request["max_tokens"]
    for key in ("seed", *penalties):
        if request.get(key) is not None:
            options[key] = request[key]
    for key in ("temperature", "top_p"):
        options[key] = request[key] if request.get(key) is not None else 1.0
    return options


def think_of(effort: str) -> bool | str | None:
    """Return the value of `think` for a reasoning effort. Raises Rejected."""
    known: dict[str, bool | str | None] = {"": None, "none": False, "minimal": "low", "xhigh": "max", "ultra": "max"}
    if effort in ("low", "medium", "high", "max"):
        return effort
    if effort not in known:
        choices = '(must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none")'
        raise Rejected(f"invalid reasoning value: {go_quoted(effort)} {choices}")
    return known[effort]


def generate_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for Ollama's generate handler. Raises Rejected."""
    stop = request.get("stop")
    for item in stop if isinstance(stop, list) else ():
        if not isinstance(item, str):
            raise Rejected(f"invalid type for 'stop' field: {_go_type(item)}")
    logprobs = request.get("logprobs") or 0
    return {
        "model": request.get("model") or "",
        "prompt": request.get("prompt") or "",
        "suffix": request.get("suffix") or "",
        "options": _options(request, ("frequency_penalty", "presence_penalty")),
        "logprobs": logprobs > 0,
        "top_logprobs": max(0, logprobs),
        "_debug_render_only": request.get("_debug_render_only"),
    }
