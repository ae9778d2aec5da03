"""More than 560 request bodies with what Go 1.26 makes of them, decoded into Ollama's own request types."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "go_json.json").read_text())


def body_of(case: dict[str, Any]) -> bytes:
    """Return the body, stored as text, in base64, or as pieces with repetition counts."""
    body = case["body"]
    if isinstance(body, str):
        return body.encode()
    if "b64" in body:
        return base64.b64decode(body["b64"])
    return "".join(unit * times for unit, times in body["pieces"]).encode()


def name_of(case: dict[str, Any]) -> str:
    """Return a test id."""
    return f"{case['kind']} {str(case['body'])[:60]}"


def error_text(kind: str, go: dict[str, Any]) -> str:
    """Return the text that a client gets: native routes report an empty body in words of their own."""
    is_empty = go["error"] == "EOF" and not kind.startswith("v1_")
    return "missing request body" if is_empty else str(go["error"])
