"""Lines and events in what has arrived at one time, which may be a hundred thousand tiny ones."""

from __future__ import annotations

import re
from collections.abc import Callable

FEW = 4
"""If one line or event in so many has the word that is looked for, all are looked at."""

split_events = re.compile(rb"(\n\r?\n)").split
"""Events, and what is between them: an empty line, with the line ends of either kind."""


def changed_where(word: bytes, piece: bytes, separator: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return whole lines or events, those with `word` in them changed by `change`.

    The others are not looked at one by one: in what has arrived at one time there may be a hundred thousand.
    """
    if len(separator) > 1 and b"\r\n" in piece:  # not as by Ollama
        return b"".join([change(part) if word in part else part for part in split_events(piece)])
    if FEW * piece.count(word) > piece.count(separator):
        return separator.join([change(part) if word in part else part for part in piece.split(separator)])
    parts, done, at = list[bytes](), 0, piece.find(word)
    while at >= 0:
        before, after = piece.rfind(separator, done, at), piece.find(separator, at)
        start, end = max(done, before + len(separator) if before >= 0 else 0), after if after >= 0 else len(piece)
        parts += (piece[done:start], change(piece[start:end]))
        done, at = end, piece.find(word, end)
    return b"".join((*parts, piece[done:]))
