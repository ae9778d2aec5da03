"""Checks of a request's head for ambiguity (docs/reliability.md, E1 and E2), before its meaning is considered.

httptools already rejects invalid line ends, folded headers, two lengths, and a length beside a transfer coding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from router.http.headers import Header
from router.http.server.hosts import HOST_VALUE

BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

KEY_FRONT = b"/t/"

MAX_SEEN = 256
_SEEN_HOSTS: set[bytes | None] = set()  # Host values that were found valid


class Head(msgspec.Struct, eq=False):
    """The head of a request. Requests that repeat a head share it, so it must not be modified.

    `by_name` is `headers` as a dict, names in lower case; `target` is `url` without its query. `key` is a credential
    that stood in front of the path, as `/t/KEY/…`; `url` and `target` lack it. `cached`, `who` and `front` are what
    the application derives from it: its meaning, from whom it says to come, and whether it is from a front.
    """

    method: str
    url: bytes
    target: bytes
    headers: list[Header]
    by_name: dict[bytes, bytes]
    http_10: bool = False
    keep_alive: bool = True
    expects_continue: bool = False
    cached: Any = None
    key: bytes = b""
    who: Any = None
    front: Any = None

    def __repr__(self) -> str:
        """Return its method only: the rest may hold a credential, and asyncio logs what it has to wait for."""
        return f"<Head {self.method}>"


_AS_FRAMING = frozenset((b"transfer_encoding", b"content_length"))
"""Names that gateways with variables in place of headers take for those that say where a body ends."""

_FRAMING = _AS_FRAMING | {b"transfer-encoding"}

Refusal = tuple[int, bytes]
"""A status, and the text after its reason phrase (Go's text if Go has one)."""


def judge(headers: Sequence[tuple[bytes, bytes]], by_name: dict[bytes, bytes], version: str) -> Refusal | None:
    """Return None for unambiguous headers, else how to refuse them. `by_name` is `headers` as a dict."""
    host = by_name.get(b"host")
    if host in _SEEN_HOSTS and len(by_name) == len(headers) and version == "1.1" and _FRAMING.isdisjoint(by_name):
        return None  # fast path
    if version not in ("1.1", "1.0"):
        return (505, b"unsupported protocol version") if version[0] not in "01" else (400, b"")
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        return 400, b"too many Host headers"
    if names.count(b"transfer-encoding") > 1 or names.count(b"content-length") > 1 or not _AS_FRAMING.isdisjoint(names):
        return 400, b""
    coding = by_name.get(b"transfer-encoding")
    if coding is not None:
        if version == "1.0":
            return 400, b""
        if coding.lower() != b"chunked":
            return 501, b"unsupported transfer encoding"
    if host is None:
        return (400, b"missing required Host header") if version == "1.1" else None
    if not HOST_VALUE.match(host):
        return 400, b"malformed Host header"
    if len(_SEEN_HOSTS) < MAX_SEEN and len(host) < MAX_SEEN:
        _SEEN_HOSTS.add(host)
    return None


def split_target(url: bytes, method: str) -> tuple[bytes, bytes | None] | None:
    """Return the path (with query) of a request target, and the authority of an absolute one (RFC 9112 §3.2).

    Returns None for a target without a path (an authority alone, another scheme, userinfo, no leading slash), and for a
    path with a broken escape, which Go rejects.
    """
    if b"%" in url and BAD_ESCAPE.search(url.partition(b"?")[0]):
        return None
    if url.startswith(b"/"):
        return url, None
    if url[:7].lower() != b"http://":
        return (url, None) if url == b"*" and method == "OPTIONS" else None
    authority, slash, path = url[7:].partition(b"/")
    if not authority or b"?" in authority or b"#" in authority or not HOST_VALUE.match(authority):
        return None
    return slash + path or b"/", authority


def split_key(url: bytes) -> tuple[bytes, bytes]:
    """Return a target without a key in front of its path, and that key, decoded; `/t/KEY/api/tags` → `/api/tags`, KEY.

    A base URL is all that some clients can be configured with. Without a key the target is returned unchanged.
    """
    if not url.startswith(KEY_FRONT):
        return url, b""
    path, mark, query = url[len(KEY_FRONT) :].partition(b"?")
    key, slash, rest = path.partition(b"/")
    if not key:
        return url, b""
    return (slash or b"/") + rest + mark + query, unquote_to_bytes(key)


def continues(expectation: bytes | None) -> bool | None:
    """Return whether an Expect header asks for 100 Continue; None for any other expectation, which is a 417."""
    if not expectation:
        return False
    return True if b"100-continue" in (token.strip() for token in expectation.lower().split(b",")) else None


def without_upgrade(method: bytes, url: bytes, version: str, headers: Sequence[Header]) -> bytes:
    """Return a head without its Upgrade header: upgrades are not supported, and the parser would skip the body (E5)."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    lines += [b"%b: %b" % (name, value) for name, value in headers if name != b"upgrade"]
    return b"\r\n".join((*lines, b"", b""))
