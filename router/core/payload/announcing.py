"""Whether one line about the variant may stand in the text of an answer: not where a program would stumble over it."""

from __future__ import annotations

from collections.abc import Mapping

from router.core.go.json_keys import elements, fold, kind_of, read_word, split
from router.core.payload.read import InferenceRequest

KINDS = frozenset(("chat", "generate", "v1_chat"))
"""The routes whose answers people read. Completions on /v1 are those of editors."""

MOST_BYTES = 1 << 20
"""Larger bodies are not looked into for it: that would keep the loop."""

MOST_OBJECTS = 1024
"""Nor bodies with more: each takes a while to read, even an empty one, of which 1 MiB holds 300000."""

_FOR_PROGRAMS = frozenset(("tools", "insert", "embedding"))


def may_announce(kind: str, request: InferenceRequest, body: bytes, *, first_only: bool) -> bool:
    """Return True if an answer to `body` may begin with a line of the router's.

    Never for tools, a format (JSON), embeddings, infill, `raw` and debug requests, and an answer that the client has
    begun itself. With `first_only` only for the first answer of a conversation.
    """
    if kind not in KINDS or request.format or request.is_load_only or request.is_unload or _is_long(body):
        return False
    if not request.has_model or not _FOR_PROGRAMS.isdisjoint(request.needs):
        return False
    found = {fold(key): value for key, value in split(body)}
    if _is_true(found, "raw") or _is_true(found, "_debug_render_only"):
        return False
    if kind == "generate":
        return not (first_only and len(found.get("context", b"")) > len("[]"))
    roles = _roles(found.get("messages", memoryview(b"[]")))  # a list, or the request would have been refused
    return bool(roles) and roles[-1] in ("user", "system") and not (first_only and "assistant" in roles)


def _is_long(body: bytes) -> bool:
    return len(body) > MOST_BYTES or body.count(b"{") > MOST_OBJECTS


def _is_true(found: Mapping[str, memoryview], key: str) -> bool:
    return bytes(found.get(key, b"")) == b"true"


def _roles(messages: memoryview) -> list[str]:
    """Return who says each of the messages."""
    said = (split(message) if kind_of(message) == "object" else [] for message in elements(messages))
    return [_text({fold(key): value for key, value in members}.get("role")) for members in said]


def _text(value: memoryview | None) -> str:
    return read_word(value).lower() if value is not None and kind_of(value) == "string" else ""
