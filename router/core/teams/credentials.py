"""What a request shows to say who asks: a key in front of its path, in `Authorization` or in `x-api-key`. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from router.errors import BadRequest

PLACEHOLDERS = frozenset(
    b"ollama ollama-local ollama_local empty none null nil undefined na n/a no no-key nokey no_key no-api-key "
    b"no_api_key key api-key api_key apikey dummy dummy-key dummy_key fake fake-key placeholder unused unneeded "
    b"not-needed not_needed notneeded not-required not_required not-used optional any anything local localhost "
    b"default lm-studio lmstudio test x xx xxx - sk- sk-none sk-xxx sk-no-key sk-no-key-required sk-not-needed "
    b"sk-dummy sk-fake sk-ollama sk-placeholder sk-1234 sk-12345 your-api-key your_api_key".split()
)
"""Values that clients send because their SDK wants a key: they stand for none, in any case of letters."""

TWO_CREDENTIALS = "the request shows two different keys (path, Authorization and x-api-key must agree)"
_HEADERS = (b"authorization", b"x-api-key")


class Signature(NamedTuple):
    """What the Ollama CLI sends with OLLAMA_AUTH=1: `public_key` (an SSH blob) has signed method, path and time."""

    public_key: bytes
    value: bytes


def credential_of(
    headers: Iterable[tuple[bytes, bytes]], by_name: Mapping[bytes, bytes], path_key: bytes = b""
) -> bytes | Signature | None:
    """Return the credential of a request, None if it shows none. `by_name` is `headers` as a dict.

    `path_key` is the key in front of its path, decoded. Raise BadRequest for two different credentials.
    """
    if not path_key and b"authorization" not in by_name and b"x-api-key" not in by_name:
        return None
    shown: set[bytes | Signature] = {_real(path_key)}
    for name, value in headers:
        if name in _HEADERS:
            shown.add(_real(value) if name == b"x-api-key" else _of_authorization(value.strip()))
    shown.discard(b"")
    if len(shown) > 1:
        raise BadRequest(TWO_CREDENTIALS)
    return shown.pop() if shown else None


def _of_authorization(value: bytes) -> bytes | Signature:
    scheme, _, rest = value.partition(b" ")
    if not rest:
        return _without_scheme(value)
    kind = scheme.lower()
    if kind == b"bearer":
        return _real(rest)
    return _of_basic(rest) if kind == b"basic" else b""  # Negotiate, Digest and so on are between others


def _without_scheme(value: bytes) -> bytes | Signature:
    """Return what a value of one word shows: a signature, or a key of the router's own form."""
    public_key, colon, signature = value.partition(b":")
    if colon:
        blob, signed = _decoded(public_key), _decoded(signature)
        return Signature(blob, signed) if blob and signed else b""
    return value if value.startswith(b"or_") else b""


def _of_basic(encoded: bytes) -> bytes:
    """Return the key within a user and a password: clients put it into either of them."""
    user, _, password = (_decoded(encoded) or b"").partition(b":")
    if user.startswith(b"or_") and not password.startswith(b"or_"):
        return user
    return _real(password) or _real(user)


def _real(value: bytes) -> bytes:
    """Return a credential without white space around it; b"" for a placeholder, which stands for none."""
    value = value.strip()
    return b"" if value.lower() in PLACEHOLDERS else value


def _decoded(text: bytes) -> bytes | None:
    """Return the bytes of base64, with or without padding; None if it is not base64."""
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
