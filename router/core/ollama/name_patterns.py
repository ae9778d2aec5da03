"""Patterns of model names (``*`` and ``?``), matched against what a name means, not how it is spelled. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from router.core.ollama.names import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName, Source

WILDCARDS = re.compile(r"[*?]")
CLOUD_ENDING = re.compile(r"(?:.*-)?cloud")


class NamePatterns:
    """A set of patterns. One without wildcards is a name: ``llama3`` is ``llama3:latest``, in any spelling.

    Others match a name as `ollama ls` prints it and as it is with all parts, in lower case. The tag ``cloud`` after a
    wildcard stands for every model of Ollama's cloud: ``*:cloud`` matches ``x:8b-cloud`` too.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        texts = [pattern.strip() for pattern in patterns]
        self._keys = frozenset(ModelName.parse(text).key for text in texts if not WILDCARDS.search(text))
        self._wild = tuple(regex_of(text) for text in texts if WILDCARDS.search(text))
        self.names_cloud = any(is_cloud_pattern(text) for text in texts)

    def __bool__(self) -> bool:
        return bool(self._keys or self._wild)

    def match(self, name: ModelName) -> bool:
        """Return True if one of the patterns matches `name`."""
        if name.key in self._keys:
            return True
        return bool(self._wild) and any(
            pattern.fullmatch(spelling) for spelling in spellings(name) for pattern in self._wild
        )


def spellings(name: ModelName) -> tuple[str, ...]:
    """Return the forms of a name that a pattern may be meant for, in lower case."""
    short, key = name.short.lower(), name.key
    if name.host.lower() == DEFAULT_HOST and name.namespace.lower() == DEFAULT_NAMESPACE:
        return short, key, f"{DEFAULT_NAMESPACE}/{short}"
    return short, key


def is_cloud_pattern(pattern: str) -> bool:
    """Return True for a pattern that names models of Ollama's cloud, and not only matches them with all others."""
    if WILDCARDS.search(pattern):
        return pattern.strip().lower().endswith((":cloud", "-cloud"))
    return ModelName.parse(pattern).source is Source.CLOUD


def regex_of(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, for names in lower case."""
    text = pattern.strip().lower()
    front, is_cloud, _ = text.partition(":cloud") if text.endswith(":cloud") else (text, "", "")
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in front)
    return re.compile("".join(parts) + (f":{CLOUD_ENDING.pattern}" if is_cloud else ""), re.DOTALL)
