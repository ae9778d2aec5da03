"""The bodies of load requests: of a load alone, of an embedder's, and of one that goes on until it is cancelled."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from router.core.ollama.runner import LoadOptions
from router.errors import LoadFailed, ModelNotFound, RouterError

_PROMPT = "1 2 3 4 5 6 7 8 9 10 11 12"  # any model continues it
_MOST_TOKENS = 1024


def load_body(name: str, options: LoadOptions, keep_alive_s: float) -> dict[str, Any]:
    """Return the body for /api/generate that loads a model with exactly these options."""
    values = {key: value for key, value in msgspec.structs.asdict(options).items() if value is not None}
    shift = values.pop("shift", None)  # not an option to Ollama, but a field of /api/generate
    body: dict[str, Any] = {"model": name, "keep_alive": _keep_alive(keep_alive_s), "options": values}
    return body if shift is None else body | {"shift": shift}


def embed_body(name: str, options: LoadOptions, keep_alive_s: float) -> dict[str, Any]:
    """Return the body for /api/embed that loads a model and embeds nothing."""
    body = load_body(name, options, keep_alive_s)
    body.pop("shift", None)
    return body | {"input": []}


def held_load_body(name: str, options: LoadOptions) -> bytes:
    """Return the body for /api/generate of a load that goes on until it is cancelled; the keep_alive is Ollama's."""
    body = load_body(name, options, 0)
    del body["keep_alive"]
    values = {**body["options"], "num_predict": _MOST_TOKENS}
    return msgspec.json.encode(body | {"prompt": _PROMPT, "raw": True, "options": values})


def load_error(status: int, body: bytes) -> RouterError:
    """Return the error that Ollama answered the load with."""
    try:
        text = str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace")
    return ModelNotFound(text) if status == 404 else LoadFailed(text, status=status)


def _keep_alive(seconds: float) -> int | float:
    """Return Ollama's keep_alive for a time in seconds; a negative number means indefinitely."""
    if math.isinf(seconds):
        return -1
    return int(seconds) if seconds == int(seconds) else seconds
