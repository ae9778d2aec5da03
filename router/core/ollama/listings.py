"""Which errors of Ollama may mean that its listing of manifests failed, and not what they say.

To find a name, Ollama lists the manifests of all models. If one of them vanishes meanwhile the look-up fails: generate
and embed answer 404, chat 400, `/api/show` 400 and `/api/tags` 500, for models that are installed. Asked again, Ollama
gives the right answer, and the request has not begun to do anything.
"""

from __future__ import annotations

import re

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
