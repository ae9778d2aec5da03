"""The series that a model's name says it is of: what is left of it without version, size and quantization."""

from __future__ import annotations

import re
from functools import lru_cache

_QUANTIZATION = re.compile(
    r"(?<![a-z0-9])(?:ud[-_])?(?:[it]?q\d\w*|(?:mx|nv)fp4\w*|b?fp?(?:16|32)|fp8|int\d)\b", re.ASCII
)
_VERSION = re.compile(r"[-_.]?v?\d+(?:\.\d+)*(?![a-z0-9])|\d+(?:\.\d+)*")
_SIZE = re.compile(r"(?:\d+x)?[ae]?\d+[bme]?|v\d+|\d+k")
_PLAIN = frozenset({"latest", "instruct", "it", "chat", "qat"})
_NO_FLAVOUR: frozenset[str] = frozenset()


@lru_cache(maxsize=8192)
def series(name: str) -> tuple[str, frozenset[str]]:
    """Return the series of a model name and its flavour: ``llama3.1:8b-instruct-q8_0`` → ("/llama", {}).

    The series is namespace and model without version numbers. The flavour is what the tag names besides size and
    quantization; ``instruct``, ``it`` and ``chat`` are left out, because a plain tag means them in Ollama's library.
    """
    path, _, last = name.rpartition("/")
    model, _, tag = last.partition(":")
    words = re.split(r"[-_.]+", re.sub(_QUANTIZATION, "", tag.lower()))
    flavour = frozenset(word for word in words if word and not _SIZE.fullmatch(word) and word not in _PLAIN)
    return f"{path}/{_VERSION.sub('', model.lower())}", flavour or _NO_FLAVOUR
