"""The request of a load that goes on until it is cancelled: a generation that any model continues."""

from __future__ import annotations

import msgspec

from router.core.ollama.runner import LoadOptions
from router.errors import LoadFailed, ModelNotFound, RouterError

_PROMPT = "1 2 3 4 5 6 7 8 9 10 11 12"
_MOST_TOKENS = 1024


def held_load_body(name: str, options: LoadOptions, keep_alive_s: float) -> bytes:
    """Return the body for /api/generate."""
    values = {key: value for key, value in msgspec.structs.asdict(options).items() if value is not None}
    shift = values.pop("shift", None)  # not an option to Ollama, but a field of /api/generate
    body: dict[str, object] = {"model": name, "keep_alive": keep_alive_s, "prompt": _PROMPT, "raw": True}
    body |= {"options": {**values, "num_predict": _MOST_TOKENS}} | ({} if shift is None else {"shift": shift})
    return msgspec.json.encode(body)


def load_error(status: int, body: bytes) -> RouterError:
    """Return the error that Ollama answered the load with."""
    try:
        text = str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace")
    return ModelNotFound(text) if status == 404 else LoadFailed(text, status=status)
