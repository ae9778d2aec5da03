"""The request bodies of Ollama's own API as Go structs (api/types.go)."""

from __future__ import annotations

from typing import Any

from ollama_simulator.api.tool_schemas import TOOL, TOOL_CALLS
from ollama_simulator.api.values import ANY, BOOL, IMAGES, INT, KEEP_ALIVE, OPTIONS, STRING, THINK, VERBATIM
from router.core.go.json_keys import read_text
from router.core.go.types import Custom, Map, Slice, Struct, read_alone

_ALIAS = Struct(
    "api.Alias",
    fields={
        "role": STRING,
        "content": STRING,
        "thinking": STRING,
        "images": IMAGES,
        "tool_calls": TOOL_CALLS,
        "tool_name": STRING,
        "tool_call_id": STRING,
    },
)


def _message(view: memoryview, kind: str) -> dict[str, Any]:
    message: dict[str, Any] = read_alone(_ALIAS, view, kind)
    return {**message, "role": read_text(message.get("role")).lower()}


MESSAGES = Slice("[]api.Message", element=Custom("api.Message", parse=_message))
_INFERENCE = {
    "model": STRING,
    "stream": BOOL,
    "format": VERBATIM,
    "keep_alive": KEEP_ALIVE,
    "options": OPTIONS,
    "think": THINK,
    "truncate": BOOL,
    "shift": BOOL,
    "_debug_render_only": BOOL,
    "logprobs": BOOL,
    "top_logprobs": INT,
}
GENERATE = Struct(
    "api.GenerateRequest",
    fields={
        **_INFERENCE,
        "prompt": STRING,
        "suffix": STRING,
        "system": STRING,
        "template": STRING,
        "context": Slice("[]int", element=INT),
        "raw": BOOL,
        "images": IMAGES,
    },
)
CHAT = Struct("api.ChatRequest", fields={**_INFERENCE, "messages": MESSAGES, "tools": Slice("api.Tools", element=TOOL)})
EMBED = Struct(
    "api.EmbedRequest",
    fields={
        "model": STRING,
        "input": ANY,
        "keep_alive": KEEP_ALIVE,
        "truncate": BOOL,
        "dimensions": INT,
        "options": OPTIONS,
    },
)
EMBEDDING = Struct(
    "api.EmbeddingRequest", fields={"model": STRING, "prompt": STRING, "keep_alive": KEEP_ALIVE, "options": OPTIONS}
)
SHOW = Struct(
    "api.ShowRequest",
    fields={"model": STRING, "system": STRING, "template": STRING, "verbose": BOOL, "options": OPTIONS, "name": STRING},
)
COPY = Struct("api.CopyRequest", fields={"source": STRING, "destination": STRING})
DELETE = Struct("api.DeleteRequest", fields={"model": STRING, "name": STRING})
_TRANSFER = {
    "model": STRING,
    "insecure": BOOL,
    "username": STRING,
    "password": STRING,
    "stream": BOOL,
    "name": STRING,
}
PULL = Struct("api.PullRequest", fields=_TRANSFER)
PUSH = Struct("api.PushRequest", fields=_TRANSFER)
CREATE = Struct(
    "api.CreateRequest",
    fields={
        "model": STRING,
        "stream": BOOL,
        "quantize": STRING,
        "draft_quantize": STRING,
        "from": STRING,
        "remote_host": STRING,
        "files": Map("map[string]string", value=STRING),
        "draft_files": Map("map[string]string", value=STRING),
        "adapters": Map("map[string]string", value=STRING),
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
