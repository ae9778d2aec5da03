"""The request bodies of Ollama's routes as Go struct types: their fields, and the types that these accept.

Source: `api/types.go`, `openai/openai.go`, `openai/responses.go`, `anthropic/anthropic.go` of Ollama 0.33. Below
messages and tool names, types are left to the upstream.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.go.types import INTS, Anything, Map, Scalar, Slice, Struct, one
from router.core.payload.messages import ANTHROPIC, IMAGES, NATIVE, OPENAI, RESPONSES_INPUT
from router.core.payload.values import KEEP_ALIVE, OPTIONS, THINK

_STR, _BOOL, _INT, _FLOAT32 = Scalar("string"), Scalar("bool"), Scalar("int"), Scalar("float32")
_P_STR, _P_BOOL, _P_INT = Scalar("string", resets=True), Scalar("bool", resets=True), Scalar("int", resets=True)
_P_FLOAT, _P_FLOAT32 = Scalar("float64", resets=True), Scalar("float32", resets=True)
_ANY, _RAW = Anything("any", resets=True), Anything("json.RawMessage", resets=True)
_STRINGS = Slice("[]string", element=_STR, size_of=one)
_TOOL_FUNCTION = Struct("api.ToolFunction", fields={"name": _STR, "description": _STR})
_TOOL = Struct("api.Tool", fields={"type": _STR, "items": _ANY, "function": _TOOL_FUNCTION})


class _QuickFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    description: str = ""
    parameters: msgspec.Raw = msgspec.Raw()


class _QuickTool(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    function: _QuickFunction


_QUICK_TOOLS: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[_QuickTool])
_STREAM_OPTIONS = Struct("openai.StreamOptions", resets=True, fields={"include_usage": _BOOL})
_FORMAT = Struct("openai.ResponseFormat", resets=True, fields={"type": _STR})

_NATIVE = {"model": _STR, "keep_alive": KEEP_ALIVE, "options": OPTIONS}
_GENERATING = _NATIVE | {
    "stream": _P_BOOL,
    "format": _RAW,
    "think": THINK,
    "truncate": _P_BOOL,
    "shift": _P_BOOL,
    "_debug_render_only": _BOOL,
    "logprobs": _BOOL,
    "top_logprobs": _INT,
}
_SAMPLING = {"temperature": _P_FLOAT, "top_p": _P_FLOAT}

REQUESTS = {
    "generate": Struct(
        "api.GenerateRequest",
        fields=_GENERATING
        | dict.fromkeys(("prompt", "suffix", "system", "template"), _STR)
        | {"context": Slice("[]int", element=_INT, quick=INTS, size_of=one), "raw": _BOOL, "images": IMAGES},
    ),
    "chat": Struct(
        "api.ChatRequest",
        fields=_GENERATING
        | {"messages": NATIVE, "tools": Slice("api.Tools", element=_TOOL, quick=_QUICK_TOOLS, size_of=one)},
    ),
    "embed": Struct("api.EmbedRequest", fields=_NATIVE | {"input": _ANY, "truncate": _P_BOOL, "dimensions": _INT}),
    "embeddings": Struct("api.EmbeddingRequest", fields=_NATIVE | {"prompt": _STR}),
    "v1_chat": Struct(
        "openai.ChatCompletionRequest",
        fields=_SAMPLING
        | dict.fromkeys(("frequency_penalty", "presence_penalty"), _P_FLOAT)
        | dict.fromkeys(("max_tokens", "seed"), _P_INT)
        | {
            "model": _STR,
            "messages": OPENAI,
            "stream": _BOOL,
            "stream_options": _STREAM_OPTIONS,
            "stop": _ANY,
            "response_format": _FORMAT,
            "tools": Slice("[]api.Tool", element=_TOOL, quick=_QUICK_TOOLS, size_of=one),
            "reasoning": Struct("openai.Reasoning", resets=True, fields={"effort": _STR}),
            "reasoning_effort": _P_STR,
            "logprobs": _P_BOOL,
            "top_logprobs": _INT,
            "_debug_render_only": _BOOL,
        },
    ),
    "v1_completions": Struct(
        "openai.CompletionRequest",
        fields=dict.fromkeys(("model", "prompt", "suffix"), _STR)
        | dict.fromkeys(("frequency_penalty", "presence_penalty", "top_p"), _FLOAT32)
        | dict.fromkeys(("max_tokens", "seed", "logprobs"), _P_INT)
        | {"stop": _ANY, "stream": _BOOL, "stream_options": _STREAM_OPTIONS, "temperature": _P_FLOAT32}
        | {"_debug_render_only": _BOOL},
    ),
    "v1_embeddings": Struct(
        "openai.EmbedRequest",
        fields={"input": _ANY, "model": _STR, "dimensions": _INT, "encoding_format": _STR},
    ),
    "v1_responses": Struct(
        "openai.ResponsesRequest",
        fields=_SAMPLING
        | {
            "model": _STR,
            "background": _BOOL,
            "conversation": _RAW,
            "include": _STRINGS,
            "input": RESPONSES_INPUT,
            "instructions": _STR,
            "max_output_tokens": _P_INT,
            "reasoning": Struct(
                "openai.ResponsesReasoning",
                fields=dict.fromkeys(("effort", "generate_summary", "summary"), _STR),
            ),
            "text": Struct(
                "openai.ResponsesText",
                resets=True,
                fields={"format": Struct("openai.ResponsesTextFormat", resets=True, fields={"type": _STR})},
            ),
            "truncation": _P_STR,
            "tools": Slice(
                "[]openai.ResponsesTool", element=Struct("openai.ResponsesTool", fields={"name": _STR}), size_of=one
            ),
            "stream": _P_BOOL,
        },
    ),
    "v1_messages": Struct(
        "anthropic.MessagesRequest",
        fields=_SAMPLING
        | {
            "model": _STR,
            "max_tokens": _INT,
            "messages": ANTHROPIC,
            "system": _ANY,
            "stream": _BOOL,
            "top_k": _P_INT,
            "stop_sequences": _STRINGS,
            "tools": Slice(
                "[]anthropic.Tool", element=Struct("anthropic.Tool", fields={"type": _STR, "name": _STR}), size_of=one
            ),
            "tool_choice": Struct("anthropic.ToolChoice", resets=True, fields={"type": _STR, "name": _STR}),
            "thinking": Struct("anthropic.ThinkingConfig", resets=True, fields={"type": _STR, "budget_tokens": _INT}),
            "metadata": Struct("anthropic.Metadata", resets=True, fields={"user_id": _STR}),
            "output_config": Struct("anthropic.OutputConfig", resets=True, fields={"effort": _STR}),
        },
    ),
}

_NAMED = {"model": _STR, "name": _STR}
_REGISTRY = _NAMED | {"insecure": _BOOL, "username": _STR, "password": _STR, "stream": _P_BOOL}
_FILES = Map("map[string]string", value=_STR)
_CREATE_TEXTS = (
    *("quantize", "draft_quantize", "quantization", "from", "remote_host"),
    *("template", "system", "renderer", "parser", "requires"),
)

MANAGEMENT = {
    "show": Struct(
        "api.ShowRequest",
        fields=_NAMED | {"system": _STR, "template": _STR, "verbose": _BOOL, "options": OPTIONS},
    ),
    "pull": Struct("api.PullRequest", fields=_REGISTRY),
    "push": Struct("api.PushRequest", fields=_REGISTRY),
    "create": Struct(
        "api.CreateRequest",
        fields=_NAMED
        | dict.fromkeys(_CREATE_TEXTS, _STR)
        | dict.fromkeys(("files", "draft_files", "adapters"), _FILES)
        | dict.fromkeys(("parameters", "info"), OPTIONS)
        | {"stream": _P_BOOL, "license": _ANY, "messages": NATIVE},
    ),
    "copy": Struct("api.CopyRequest", fields={"source": _STR, "destination": _STR}),
    "delete": Struct("api.DeleteRequest", fields=_NAMED),
}
