"""Lists of models: what is used of their rows, and which errors may mean that a listing of manifests failed.

To find a name, Ollama lists the manifests of all models. If one of them vanishes meanwhile the look-up fails: generate
and embed answer 404, chat 400, `/api/show` 400 and `/api/tags` 500, for models that are installed. Asked again, Ollama
gives the right answer, and the request has not begun to do anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOT_FOUND, BAD_REQUEST, SERVER_ERROR = 404, 400, 500
_VANISHED = re.compile(rb"no such file or directory|cannot find the (?:file|path)|file does not exist")
_UNNAMED = b"model is required"  # the text of /api/chat, although the request names a model


def may_be_failed_listing(status: int, text: bytes) -> bool:
    """Return whether an error with this status and text may go away when the same is asked again."""
    if status == NOT_FOUND:
        return True
    if status not in (BAD_REQUEST, SERVER_ERROR):
        return False
    return _VANISHED.search(text) is not None or (status == BAD_REQUEST and _UNNAMED in text)


_USED = (
    "name", "model", "digest", "size", "capabilities", "remote_model", "remote_host",
    "size_vram", "context_length", "expires_at",
)  # fmt: skip
_MOST_TEXT = 1024


def used_of_row(row: Any) -> Any:
    """Return what is used of a row of `/api/tags` or `/api/ps`, without texts that are longer than anybody's.

    What else somebody writes there would be kept with thousands of rows. What is no object is returned unchanged.
    """
    if not isinstance(row, Mapping):
        return row
    used = {key: row[key] for key in _USED if key in row and _is_short(row[key])}
    if isinstance(details := row.get("details"), Mapping):
        used["details"] = {key: one for key, one in details.items() if isinstance(one, str) and _is_short(one)}
    return used


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_short, value))
    return not isinstance(value, (Mapping, str)) or (isinstance(value, str) and len(value) <= _MOST_TEXT)
