"""The signature that the Ollama CLI sends with OLLAMA_AUTH=1: which bytes it covers, and for how long it counts. Pure.

Source: `Client.do` in Ollama's api/client.go and `Sign` in its auth/auth.go. The header is `Authorization:
<public key>:<signature>`, both in base64: the key as the SSH blob of an `ssh-ed25519` line, the signature as its 64
bytes. Signed is `METHOD,PATH?ts=SECONDS`; PATH is without what OLLAMA_HOST puts in front of it.
"""

from __future__ import annotations

from collections.abc import Callable

from router.core.teams.credentials import Signature
from router.errors import Unauthorized

Verify = Callable[[bytes, bytes, bytes], bool]
"""Returns whether the raw public key of 32 bytes has made the signature of 64 bytes over the message."""

MOST_SKEW_S = 120.0
"""How far the client's clock may be off, and so for how long a request that was overheard can be repeated."""

_KIND = b"ssh-ed25519"
_FRONT = len(_KIND).to_bytes(4, "big") + _KIND + (32).to_bytes(4, "big")
SIGNATURE_BYTES, DIGITS = 64, 12

REFUSED = "the signature of the request is not valid"
SKEWED = "the signature of the request is too old, or of the future: check the clocks of both machines"


def raw_public_key(blob: bytes) -> bytes | None:
    """Return the 32 bytes of an Ed25519 key from its SSH blob; None if it is another kind."""
    raw = blob.removeprefix(_FRONT)
    return raw if blob.startswith(_FRONT) and len(raw) == 32 else None


def check_signature(signature: Signature, method: str, path: str, time: str, now_s: float, verify: Verify) -> float:
    """Check a signature at Unix time `now_s`; return until when it counts. Raise Unauthorized.

    `path` is the request's without prefix and query, `time` the value of its parameter `ts`.
    """
    raw = raw_public_key(signature.public_key)
    if raw is None or len(signature.value) != SIGNATURE_BYTES or not _is_number(time):
        raise Unauthorized(REFUSED)
    if abs(now_s - int(time)) > MOST_SKEW_S:
        raise Unauthorized(SKEWED)
    if not verify(raw, signature.value, f"{method},{path}?ts={time}".encode("utf-8", "surrogateescape")):
        raise Unauthorized(REFUSED)
    return int(time) + MOST_SKEW_S


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS
