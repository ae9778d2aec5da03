"""What Ollama rejects in a well-typed body before it looks up the model.

It is rejected here as well, because such a request must not cause a switch. Source: the handlers in `server/routes.go`
and `middleware/` of Ollama 0.33.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router.core.go.json_keys import Members, elements, fold, kind_of, read_word, texts_bytes
from router.core.go.quoting import brief
from router.core.ollama.names import key_of
from router.core.payload.messages import Prompt
from router.errors import BadRequest

_NOTHING = Prompt()

MOST_OPTIONS_BYTES = 1 << 20
"""Of all options of a body: they are read again when it is sent, on the loop."""


def check_options_bytes(members: Members) -> None:
    """Raise BadRequest if the options of a body, all duplicates together, are longer than anybody's."""
    size_bytes = sum(len(view) for key, view in members if len(key) == len("options") and fold(key) == "options")
    if size_bytes > MOST_OPTIONS_BYTES:
        raise BadRequest(f"the request's options have more than {MOST_OPTIONS_BYTES} bytes")


def check(kind: str, model: str, found: Mapping[str, Any]) -> None:
    """Raise BadRequest with Ollama's text. A body without a model is left to Ollama, which reports that first."""
    if kind in _CHECKS and model:
        _CHECKS[kind](model, found)


def _generating(_model: str, found: Mapping[str, Any]) -> None:
    asked = found.get("top_logprobs")
    if asked is not None and not 0 <= int(bytes(asked)) <= 20:
        raise BadRequest("top_logprobs must be between 0 and 20")


def _v1_chat(model: str, found: Mapping[str, Any]) -> None:
    if found.get("messages", _NOTHING).parts == 0:
        raise BadRequest("[] is too short - 'messages'")
    _generating(model, found)


def _v1_messages(_model: str, found: Mapping[str, Any]) -> None:
    limit = found.get("max_tokens")
    if limit is None or int(bytes(limit)) <= 0:
        raise BadRequest("max_tokens is required and must be positive")
    if found.get("messages", _NOTHING).parts == 0:
        raise BadRequest("messages is required")


def _v1_embeddings(model: str, found: Mapping[str, Any]) -> None:
    encoding = read_word(found.get("encoding_format"))
    if encoding and encoding.lower() not in ("float", "base64"):
        raise BadRequest(
            f"Invalid value for 'encoding_format' = {brief(encoding)}. Supported values: ['float', 'base64']."
        )
    asked = found.get("input")
    if asked is None or (kind_of(asked) == "array" and next(elements(asked), None) is None):
        raise BadRequest("invalid input")
    _embed(model, found)


_BEFORE_TEXTS = (b'"', b"]", b"")
"""How a list of strings may begin, as far as its first bytes show."""


def _embed(model: str, found: Mapping[str, Any]) -> None:
    asked = found.get("input")
    if asked is None or kind_of(asked) == "string":
        return
    key_of(model)  # an invalid name is reported first
    if kind_of(asked) != "array":
        raise BadRequest("invalid input type")
    if bytes(asked[1:65]).lstrip()[:1] not in _BEFORE_TEXTS:  # without looking at the others, which may be very many
        raise BadRequest("invalid input type")
    if texts_bytes(asked) is None and any(kind_of(item) != "string" for item in elements(asked)):
        raise BadRequest("invalid input type")


_CHECKS: Mapping[str, Callable[[str, Mapping[str, Any]], None]] = {
    "generate": _generating,
    "chat": _generating,
    "embed": _embed,
    "v1_chat": _v1_chat,
    "v1_messages": _v1_messages,
    "v1_embeddings": _v1_embeddings,
}
