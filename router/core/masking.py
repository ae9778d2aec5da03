"""Masks secrets in text for people: credentials in URLs, and values that are named as keys, tokens or passwords.

So are the router's own keys, wherever a client has put one, and what stands in front of a path as `/t/KEY/`.
"""

from __future__ import annotations

import re

_WORDS = "token|key|secret|password|passwd|pwd|signature|sig|credential|auth"
_IN_URL = rf"(?<=//)[^/\s@\"'<>]+(?=@)|((?:{_WORDS})=|\bbearer\s+|\bbasic\s+(?=[\w+/]{{6}}))[^&\s,;\"'\\]+"
_SECRET = re.compile(rf"{_IN_URL}|((?:{_WORDS})[=:]\s*)[^&\s,\"']+", re.IGNORECASE)
_SECRET_IN_URL = re.compile(_IN_URL.encode(), re.IGNORECASE)
_KEY = r"\bor_[^\s\"'/]*?_[0-9A-Za-z]{32}_[0-9A-Za-z]{1,6}|(?<![^\s\"'])(/t/)[^/\s\"'?]+"
_OWN_KEY, _OWN_KEY_IN_LINES = re.compile(_KEY), re.compile(_KEY.encode())
_SIGNS = ("@", "=", "earer", "asic", "EARER", "ASIC", "or_", "/t/")
_SIGNS_IN_LINES = tuple(sign.encode() for sign in _SIGNS[:-2])


def masked(text: str) -> str:
    """Return `text` with `***` in place of each secret; also of what stands after `password:` and the like."""
    if text.replace("-", "").isalnum():  # as most ids: every form of a secret has another sign in it
        return text
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or ''}***", own_keys_masked(text))


def own_keys_masked(text: str) -> str:
    """Return `text` with `***` in place of the router's own keys only."""
    return _OWN_KEY.sub(r"\1***", text)


def may_hold_secret(text: str) -> bool:
    """Return False if no secret is in `text`: then there is none for `masked_lines` in lines with it."""
    return any(sign in text for sign in _SIGNS)


def masked_lines(lines: bytes) -> bytes:
    """Return lines of the log with `***` in place of each secret of a URL. Common lines cost a few look-ups."""
    if b"or_" in lines or b"/t/" in lines:
        lines = _OWN_KEY_IN_LINES.sub(rb"\1***", lines)
    if not any(sign in lines for sign in _SIGNS_IN_LINES):
        return lines
    return _SECRET_IN_URL.sub(lambda found: (found[1] or b"") + b"***", lines)
