"""The form of a key: `or_<team>_<32 characters>_<6 of checksum>`. Pure; the caller supplies the randomness.

The prefix makes keys recognizable for secret scanners, and the checksum tells a typo from a revoked key without a
look-up. A key is stored as its SHA-256 only: 190 bits of randomness need no slow hash.
"""

from __future__ import annotations

import hashlib
import re

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_CHARS, CHECKSUM_CHARS = 32, 6
PREFIX = "or_"
FORM = re.compile(rf"{PREFIX}(.+)_([0-9A-Za-z]{{{SECRET_CHARS}}})_([0-9A-Za-z]{{{CHECKSUM_CHARS}}})", re.DOTALL)


def make_key(team: str, secret: str) -> str:
    """Return the key of `team` with `secret`, 32 random characters of `ALPHABET`."""
    front = f"{PREFIX}{team}_{secret}"
    return f"{front}_{checksum(front)}"


def checksum(front: str) -> str:
    """Return the checksum of what stands before it in a key."""
    number = int.from_bytes(hashlib.sha256(front.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    digits = []
    for _ in range(CHECKSUM_CHARS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(digits)


def has_typo(key: str) -> bool:
    """Return True for a key in the form of the router's own whose checksum is wrong, or that was cut off."""
    if not key.startswith(PREFIX):
        return False
    found = FORM.fullmatch(key)
    return found is None or checksum(key[: -CHECKSUM_CHARS - 1]) != found[3]


def digest_of(credential: bytes) -> bytes:
    """Return the SHA-256 of a whole credential, by which it is looked up."""
    return hashlib.sha256(credential).digest()
