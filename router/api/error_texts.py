"""Ollama's error texts as clients see them: with the name that the client used, never that of a derived tag. Pure.

Only texts of errors are changed, and only where they mention a name; the content of answers never is.
"""

from __future__ import annotations

import re

import msgspec

from router.api.endings import UNREADABLE
from router.core.ollama.derived_names import is_derived
from router.core.ollama.mentions import MOST_MENTIONS, mentions_derived, without_derived
from router.core.ollama.names import ModelName, is_name
from router.routing.destination import Rename

_ERROR = b'"error"'
_encode = msgspec.json.encode
_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def shown_error(body: bytes, rename: Rename | None) -> bytes:
    """Return the body of an answer whose status is an error's, with the names in it replaced."""
    if rename is None:
        # The request named no tag, so only a listing of manifests that failed can mention one.
        return without_derived(body, has_names=False) if mentions_derived(body) else body
    if not _may_mention(body, rename):
        return body
    old, new = (name.decode() for name in rename)
    body = without_derived(body, new if is_name(new) else "")
    return body if is_derived(old) else _renamed(body, old, new)


def shown_value(value: bytes, rename: Rename | None) -> bytes:
    """Return a JSON value of a stream, or the body of a good answer, with the names in its error replaced.

    An error is the member `error` of the value or of its `response`, or the whole of an event of the type `error`.
    """
    if _ERROR not in value or not _may_mention(value, rename):
        return value
    body = value.rstrip(b"\r\n")
    try:
        return _shown_members(body, rename) + value[len(body) :]
    except UNREADABLE:
        return value


def _may_mention(text: bytes, rename: Rename | None) -> bool:
    return mentions_derived(text) or (rename is not None and _spelled(rename[0]) in text)


def _shown_members(value: bytes, rename: Rename | None) -> bytes:
    members = _read_object(value)
    error = bytes(members.get("error", b"null"))
    if error != b"null":
        shown = shown_error(error, rename)
        return value if shown == error else _encode({**members, "error": msgspec.Raw(shown)})
    if bytes(members.get("type", b"")) == b'"error"':
        return shown_error(value, rename)
    inner = bytes(members.get("response", b""))
    if inner.startswith(b"{") and (shown := _shown_members(inner, rename)) != inner:
        return _encode({**members, "response": msgspec.Raw(shown)})
    return value


def _renamed(text: bytes, old: str, new: str) -> bytes:
    """Return the text with `new` in place of the model name `old`, also where that is printed in full."""
    if is_name(old) and is_name(new):
        full = ModelName.parse(old).full
        text = _replaced(text, full, ModelName.parse(new).full)
    return _replaced(text, old, new)


def _replaced(text: bytes, old: str, new: str) -> bytes:
    spelled = _spelled(new.encode())
    # Not as a part of another name.
    pattern = rb"(?<![\w./:-])" + re.escape(_spelled(old.encode())) + rb"(?![\w/-]|[.:]\w)"
    return re.sub(pattern, lambda _: spelled, text, count=MOST_MENTIONS)


def _spelled(name: bytes) -> bytes:
    """Return a name as a JSON string contains it."""
    return _encode(name.decode())[1:-1]
