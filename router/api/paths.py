"""From request target to route: decode once, clean the path, look it up (docs/reliability.md, E3, E4). Pure."""

from __future__ import annotations

import html
import posixpath
import string
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, unquote_to_bytes

from router.core.ollama.routes import TARGETS, Match, Route, allowed_methods, match

MOST_SHOWN = 200
HIDDEN = "/t/…"
_ORDER = ("HEAD", "GET", "POST", "DELETE")


@dataclass(frozen=True, slots=True)
class NotFound:
    """The path does not exist."""


@dataclass(frozen=True, slots=True)
class WrongMethod:
    """The path exists with other methods; `allow` lists them as Ollama does."""

    allow: bytes


@dataclass(frozen=True, slots=True)
class Redirect:
    """The client is redirected to the clean form of the path, as by Ollama; `location` is without the query."""

    status: int
    location: bytes

    def page(self, location: bytes) -> bytes:
        """Return the page that Go's net/http sends with a redirect of GET."""
        shown = html.escape(location.decode("latin-1")).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        return f'<a href="{shown}">{HTTPStatus(self.status).phrase}</a>.\n\n'.encode("latin-1")


def with_query(path: bytes, url: bytes) -> bytes:
    """Return `path` with the query of `url`, as Go writes it into a Location: its other bytes escaped."""
    _, mark, query = url.partition(b"?")
    return path + mark + quote(query, safe=string.printable).encode("ascii")


Found = Route | Match | NotFound | WrongMethod | Redirect


def find(method: str, target: bytes) -> Found:
    """Return the route for `method` on the raw `target` (without its query), or how to answer without one."""
    route = TARGETS.get((method, target))
    return route if route is not None else _find_slowly(method, target)


def _find_slowly(method: str, target: bytes) -> Found:
    path = decode(target)
    if path is None:
        return NotFound()
    if (clean := _cleaned(path)) != path:
        return NotFound() if _hides_key(clean) else Redirect(307, _location(clean))
    found = match(method, path)
    if isinstance(found, Match):
        return found
    other = path[:-1] if path.endswith("/") else path + "/"
    if len(path) > 1 and not found and method in allowed_methods(other)[0] and path.endswith("/"):
        return Redirect(301 if method == "GET" else 307, _location(other))
    return WrongMethod(", ".join(name for name in _ORDER if name in found).encode()) if found else NotFound()


def shown_path(target: bytes, *, has_key: bool) -> str:
    """Return the start of a path that is in no table, for the log: printable, and without a key in front of it.

    `has_key` if there was one that `target` is without. Another spelling of such a key is not one, but hidden too.
    """
    text = target[:MOST_SHOWN].decode("latin-1")
    front, found, _ = unquote_to_bytes(target).decode("latin-1").lower().partition("/t/")
    if found:
        text = front[:MOST_SHOWN] + HIDDEN
    return (HIDDEN if has_key else "") + "".join(char if char.isprintable() else "?" for char in text)


def _hides_key(path: str) -> bool:
    """Return True for a path that would show a key in a Location."""
    return path.lower().startswith("/t/")


def decode(target: bytes) -> str | None:
    """Return the path of a target, decoded exactly once; None if it is not UTF-8.

    Control characters can only be in an argument, where the route refuses them, or in a path that does not exist.
    """
    try:
        path = unquote_to_bytes(target).decode("utf-8") if b"%" in target else target.decode("ascii")
    except UnicodeDecodeError:
        return None
    return path if path.startswith("/") else None


def _cleaned(path: str) -> str:
    """Return the path as Go's `cleanPath` does: without `//`, `.` and `..`, with its trailing slash."""
    clean = posixpath.normpath(path)
    clean = "/" + clean.lstrip("/")
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _location(path: str) -> bytes:
    return quote(path, safe="/:@!$&'()*+,;=~").encode("ascii")
