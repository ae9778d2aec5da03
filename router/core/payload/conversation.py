"""Which conversation a request continues: its model's caches know the beginning where it was answered before."""

from __future__ import annotations

import hashlib

import msgspec

MOST_BYTES = 1 << 20
"""Larger bodies are not read for this: it would hold up others for longer than it gains."""


class _Messages(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None


class _Message(msgspec.Struct):
    role: str = ""


_read = msgspec.json.Decoder(_Messages).decode
_role = msgspec.json.Decoder(_Message).decode


def conversation_of(body: bytes) -> int:
    """Return a number for what a conversation begins with, up to its first message of the user; 0 if it has none."""
    if len(body) > MOST_BYTES:
        return 0
    try:
        found = _read(body)
        if not found.messages:
            return 0
        begin = hashlib.blake2b(digest_size=7)
        for message in found.messages:
            begin.update(message)
            if _role(message).role == "user":
                break
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    return int.from_bytes(begin.digest(), "big") or 1
