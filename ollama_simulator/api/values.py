"""The types of single fields in request bodies, with the custom decoders of keep_alive, think and images."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from ollama_simulator.gojson import value_of
from router.core.go.durations import parse_duration_ns
from router.core.go.json_keys import read_text
from router.core.go.quoting import go_quoted
from router.core.go.types import Anything, Custom, Map, Mismatch, Scalar, Slice
from router.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A json.RawMessage: its value, and its text as the client sent it."""

    value: Any
    text: str


STRING, BOOL, INT = Scalar("string"), Scalar("bool"), Scalar("int")
FLOAT64, FLOAT32 = Scalar("float64"), Scalar("float32")
ANY, RAW = Anything("any", resets=True), Anything("json.RawMessage", resets=True)
STRINGS = Slice("[]string", element=STRING)
OPTIONS = Map("map[string]interface {}", value=ANY)

_FOREVER_S = float("inf")
_MAX_NS = (1 << 63) - 1


def _keep_alive(view: memoryview, kind: str) -> float:
    """api.Duration in seconds; negative = infinite. A number beyond 64 bits of nanoseconds overflows to −1."""
    if kind == "string":
        seconds = parse_duration_ns(read_text(view)) / 1e9
        return _FOREVER_S if seconds < 0 else seconds
    if kind != "number":
        name = {"object": "map[string]interface {}", "array": "[]interface {}"}.get(kind, kind)
        raise BadRequest(f"Unsupported type: '{name}'")
    seconds = float(bytes(view))
    if abs(seconds) == float("inf"):
        raise Mismatch(f"number {bytes(view).decode()}", "float64", "", ())
    if seconds < 0:
        return _FOREVER_S
    return -1.0 if seconds * 1e9 > _MAX_NS else seconds


def _think(view: memoryview, kind: str) -> bool | str:
    if kind == "bool":
        return view[0] == ord("t")
    if kind != "string":
        raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    text = read_text(view)
    if text not in ("high", "medium", "low", "max"):
        choices = '(must be "high", "medium", "low", "max", true, or false)'
        raise BadRequest(f"invalid think value: {go_quoted(text)} {choices}")
    return text


def _image(view: memoryview, kind: str) -> bytes | None:
    if kind == "null":
        return None
    if kind != "string":
        raise Mismatch(kind, "api.ImageData", "", ())
    return go_base64(read_text(view))


def go_base64(text: str) -> bytes:
    """Decode base64.StdEncoding as encoding/json does. Raises BadRequest with the position of a wrong byte."""
    cleaned = re.sub(r"[\r\n]", "", text)
    wrong = re.search(r"[^A-Za-z0-9+/=]", text)
    body = cleaned.rstrip("=")
    if wrong or "=" in body or len(cleaned) % 4 or len(cleaned) - len(body) > 2:
        at = wrong.start() if wrong else (body.index("=") if "=" in body else len(cleaned) // 4 * 4)
        raise BadRequest(f"illegal base64 data at input byte {at}")
    return base64.b64decode(cleaned)


KEEP_ALIVE = Custom("api.Duration", resets=True, parse=_keep_alive)
THINK = Custom("api.ThinkValue", resets=True, parse=_think)
IMAGES = Slice("[]api.ImageData", element=Custom("api.ImageData", parse=_image))


def _verbatim(view: memoryview, _kind: str) -> Verbatim:
    return Verbatim(value_of(view), bytes(view).decode("utf-8", "replace"))


VERBATIM = Custom("json.RawMessage", resets=True, parse=_verbatim)
