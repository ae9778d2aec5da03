"""The names in the bodies of routes that manage models."""

from __future__ import annotations

import re
from collections.abc import Mapping

from router.core.go.json_keys import read_word
from router.core.go.json_scan import STEP_BYTES
from router.core.go.quoting import go_quoted
from router.core.ollama.names import may_be_name
from router.core.payload.fields import MANAGEMENT
from router.core.payload.members import decoded, members_of
from router.errors import BadRequest

_DIGEST = re.compile(rb"sha256[:-][0-9a-f]{64}")
_DIGEST_BYTES = len("sha256:") + 64


def read_names(body: bytes, kind: str) -> dict[str, str]:
    """Return the names that are set in the body of a management route.

    `kind` is "show", "pull", "push", "create", "copy" or "delete". `model` is what the route acts on: its `model`, or
    the older `name` if that is empty. Raise BadRequest.
    """
    found = decoded(MANAGEMENT[kind], body, members_of(body, is_native=True))
    names = {key: text for key in ("model", "source", "destination", "from") if (text := read_word(found.get(key)))}
    if "model" not in names and (name := read_word(found.get("name"))):
        names["model"] = name
    return names


def read_remote_host(body: bytes) -> str:
    """Return the server that a model to be created would run on, "" for Ollama itself. Raise BadRequest."""
    return read_word(decoded(MANAGEMENT["create"], body, members_of(body, is_native=True)).get("remote_host"))


def read_blobs(body: bytes) -> frozenset[str]:
    """Return the digests of uploaded files that the body of a creation mentions."""
    found: set[str] = set()
    for start in range(0, len(body), STEP_BYTES):  # in steps, so that other threads get their turn
        digests = _DIGEST.findall(body, start, start + STEP_BYTES + _DIGEST_BYTES - 1)
        found.update(digest.decode().replace("-", ":", 1) for digest in digests)
    return frozenset(found)


def check_names(kind: str, names: Mapping[str, str]) -> None:
    """Raise BadRequest with the text of Ollama's route of `kind` if one of `names` is none for sure."""
    for role, name in names.items():
        if not may_be_name(name):
            raise BadRequest(_refusal(kind, role, name))


def _refusal(kind: str, role: str, name: str) -> str:
    if kind == "copy":
        return f"{role} {go_quoted(name)} is invalid"
    return f"name {go_quoted(name)} is invalid" if kind == "delete" else "invalid model name"
