"""What tells a conversation from others: the beginning of its messages.

No client names its conversations, but each turn repeats all messages so far. So the messages up to the first one of the
user stay the same, turn after turn. Of these only a hash is made, with a key that nobody knows: what a conversation is
about cannot be found out from it.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from json import JSONDecoder

MOST_BYTES = 64 << 10
"""At most this much of a body is read. A beginning that is longer is cut there."""

USUAL_BYTES = 4 << 10
"""This much is read first: it holds most beginnings."""

MOST_MESSAGES = 64
"""Of a beginning with more messages the first ones count: more are no conversation's, and take long to read."""

_KEY = b'"messages"'
_OPENING, _COMMA = re.compile(r"\s*:\s*\[\s*"), re.compile(r"\s*,\s*")
_read_value = JSONDecoder().raw_decode


def beginning_of(body: bytes, secret: bytes) -> bytes:
    """Return a hash of the messages up to the first one of the user; b"" for a body without one. Never raise."""
    at = body.find(_KEY, 0, MOST_BYTES)
    found = _beginning(body, at + len(_KEY)) if at >= 0 else ""
    return blake2b(found.encode(), key=secret, digest_size=16).digest() if found else b""


def conversation_of(body: bytes) -> int:
    """Return a number for the conversation of a request, the same in all routers; 0 for a body without one."""
    return int.from_bytes(beginning_of(body, b"")[:7], "big")


def _beginning(body: bytes, at: int) -> str:
    text = ""
    for most in (USUAL_BYTES, MOST_BYTES):
        text = body[at : at + most].decode("utf-8", "replace")
        opening = _OPENING.match(text)
        if opening is None:
            return ""
        end = _end_of_first_question(text, opening.end())
        if end is not None or at + most >= len(body):
            return text[opening.end() : end or opening.end()]
    return text


def _end_of_first_question(text: str, start: int) -> int | None:
    """Return where the first message of the user ends, or the last one that counts; None if it is cut, or no JSON."""
    end = start
    for _ in range(MOST_MESSAGES):
        try:
            message, end = _read_value(text, end)
        except (ValueError, RecursionError):
            return None
        if isinstance(message, dict) and message.get("role") == "user":
            return end
        comma = _COMMA.match(text, end)
        if comma is None:
            return None
        end = comma.end()
    return end
