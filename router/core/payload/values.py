"""Values in request bodies that Ollama decodes by rules of their own: keep_alive, think, options."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from router.core.go.durations import parse_duration_ns
from router.core.go.json_keys import MOST_KEYS, NOT_QUICK, kind_of, read_word, too_many_keys
from router.core.go.quoting import go_quoted
from router.core.go.types import Anything, Custom, GoType, Map, Mismatch, Place, as_float
from router.errors import BadRequest

MAX_NS = (1 << 63) - 1
_LONGEST_CACHED = 64  # bytes of a keep_alive that is cached
SHORT_BYTES = 64 << 10
"""Of options that are decoded in one step."""

_EFFORTS = ("high", "medium", "low", "max")
_THINK_ALLOWED = '"high", "medium", "low", "max", true, or false'
_DICT = msgspec.json.Decoder(dict[str, Any])


def keep_alive_ns_of(raw: bytes) -> int:
    """Return a keep_alive in nanoseconds, like `_keep_alive`. Raise BadRequest with Ollama's text."""
    return _short_keep_alive_ns_of(raw) if len(raw) <= _LONGEST_CACHED else _keep_alive_ns_of(raw)


def _keep_alive_ns_of(raw: bytes | memoryview) -> int:
    kind = kind_of(memoryview(raw))
    if kind == "string":
        nanoseconds = parse_duration_ns(read_word(raw))
        return MAX_NS if nanoseconds < 0 else nanoseconds
    if kind != "number":
        go_type = {"array": "[]interface {}", "object": "map[string]interface {}"}.get(kind, kind)
        raise BadRequest(f"Unsupported type: '{go_type}'")
    seconds = as_float(raw)
    if abs(seconds) == float("inf"):
        raise Mismatch(f"number {bytes(raw).decode()}", "float64", "", ())
    if seconds < 0:
        return MAX_NS
    return int(seconds * 1e9) if seconds * 1e9 < 2.0**63 else -MAX_NS - 1


_short_keep_alive_ns_of = lru_cache(maxsize=512)(_keep_alive_ns_of)


def _keep_alive(view: memoryview, _kind: str) -> int:
    """Return nanoseconds as Ollama keeps them: MAX_NS = indefinitely; a number beyond 64 bits becomes the smallest."""
    return keep_alive_ns_of(bytes(view)) if len(view) <= _LONGEST_CACHED else _keep_alive_ns_of(view)


def _think(view: memoryview, kind: str) -> bool:
    """Return whether thinking is asked for."""
    if kind == "bool":
        return view[0] == ord("t")
    if kind != "string":
        raise BadRequest(f"think must be a boolean or string ({_THINK_ALLOWED})")
    text = read_word(view)
    if text not in _EFFORTS:
        raise BadRequest(f"invalid think value: {go_quoted(text)} (must be {_THINK_ALLOWED})")
    return True


class Options(GoType):
    """map[string]any as a plain dict; what only Go accepts (such as lone surrogates) is kept as an opaque value."""

    __slots__ = ()

    def read(self, view: memoryview, kind: str, place: Place, old: Any) -> Any:
        if kind == "object" and len(view) <= SHORT_BYTES:  # a longer one may have very many keys
            try:
                return _merged(old, _DICT.decode(view))
            except NOT_QUICK:
                pass
        views = Map(self.name, value=Anything("any")).read(view, kind, place, None)
        return _merged(old, {key: _plain(item) for key, item in (views or {}).items()})


def _merged(old: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Return `found` added to `old`, in place, as copies would be quadratic. Raise BadRequest over the cap."""
    if old:
        old.update(found)
        found = old
    if len(found) > MOST_KEYS:
        raise too_many_keys()
    return found


def _plain(view: memoryview) -> Any:
    """Return a scalar as a Python value; a placeholder for strings and containers, which no option of interest is."""
    kind = kind_of(view)
    if kind == "number":
        return as_float(view)
    if kind == "bool":
        return view[0] == ord("t")
    return {"null": None, "string": ""}.get(kind, [])


KEEP_ALIVE = Custom("api.Duration", resets=True, parse=_keep_alive)
THINK = Custom("api.ThinkValue", resets=True, parse=_think)
OPTIONS = Options("map[string]interface {}", resets=True)
