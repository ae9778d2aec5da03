"""Ollama's grammar of model names: `[scheme://][host/][namespace/]model[:tag]`, and the `:local` / `:cloud` endings.

The rules are those of Ollama's `types/model/name.go` and `internal/modelref`. Two names have the same `key` exactly if
Ollama takes them for the same model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from router.core.go.quoting import GO_SPACE, go_quoted
from router.errors import BadRequest

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

MAX_NAME = 640
"""Characters of the longest name: a host of 350, three parts of 80, and room for scheme, ending and spaces."""

# A separator needs a part on both sides. This placeholder for a missing one is never a valid part.
_MISSING = "!MISSING!"
_PARTS = (
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),  # host
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),  # namespace
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),  # model
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),  # tag
)


class Source(Enum):
    """Where a name asks the model to run: `x:cloud` and `x:8b-cloud` are CLOUD, `x:local` is LOCAL."""

    UNSPECIFIED = "unspecified"
    LOCAL = "local"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A valid name with every part filled in, in its original spelling (names compare by `key`).

    `tag` is without the `:local` / `:cloud` ending; `has_tag` is False if the tag is the default.
    """

    host: str
    namespace: str
    model: str
    tag: str
    source: Source = Source.UNSPECIFIED
    has_tag: bool = True

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Parse a name. Raise BadRequest with Ollama's text if it is empty, is invalid, or has both endings."""
        if len(text) > MAX_NAME:
            raise BadRequest("invalid model name")
        raw = text.strip(GO_SPACE)
        if not raw:
            raise BadRequest("model is required")
        base, source = _cut_source(raw)
        if source is not Source.UNSPECIFIED and _cut_source(base)[1] is not Source.UNSPECIFIED:
            raise BadRequest(f"use either :local or :cloud, not both: {go_quoted(raw)}")
        host, namespace, model, tag = _split(base)
        parts = (host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model, tag or DEFAULT_TAG)
        if not all(pattern.fullmatch(part) for pattern, part in zip(_PARTS, parts, strict=True)):
            raise BadRequest("invalid model name")
        return cls(*parts, source=source, has_tag=bool(tag))

    @property
    def key(self) -> str:
        """The canonical lower-case form: equal exactly if Ollama means the same model."""
        return self.full.lower()

    @property
    def full(self) -> str:
        """The name with every part, in its original spelling; a cloud model keeps its ending."""
        return f"{self.host}/{self.namespace}/{self.model}:{self._written_tag}"

    @property
    def short(self) -> str:
        """The name as `ollama ls` prints it: without the default host and namespace, always with a tag."""
        name = f"{self.model}:{self._written_tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace.lower() == DEFAULT_NAMESPACE else f"{self.namespace}/{name}"

    @property
    def _written_tag(self) -> str:
        """The tag with the ending of a cloud model: the ending distinguishes stored cloud models from local ones."""
        if self.source is not Source.CLOUD:
            return self.tag
        return f"{self.tag}-cloud" if self.has_tag else "cloud"


def may_be_name(text: str) -> bool:
    """Return False for what is no name for sure: too long, or with control characters. What passes may be shown."""
    return len(text) <= MAX_NAME and (text.isprintable() or text.strip(GO_SPACE).isprintable())


def is_cloud(text: str) -> bool:
    """Return whether `text` is a valid name of a model that runs in Ollama's cloud."""
    found = _parsed(text)
    return found is not None and found.source is Source.CLOUD


def is_name(text: str) -> bool:
    """Return whether `text` is a valid name; what an upstream lists need not be."""
    return _parsed(text) is not None


def key_of(text: str) -> str:
    """Return `ModelName.parse(text).key`, cached. Raise BadRequest."""
    found = _keyed(text) if len(text) <= MAX_NAME else None
    return found if found is not None else ModelName.parse(text).key


def _parsed(text: str) -> ModelName | None:
    return _parsed_short(text) if len(text) <= MAX_NAME else None  # a cache of long texts would be one without bound


@lru_cache(maxsize=4096)
def _parsed_short(text: str) -> ModelName | None:
    try:
        return ModelName.parse(text)
    except BadRequest:
        return None


@lru_cache(maxsize=4096)
def _keyed(text: str) -> str | None:
    found = _parsed(text)
    return None if found is None else found.key


def _cut_source(text: str) -> tuple[str, Source]:
    base, colon, last = text.rpartition(":")
    last = last.strip(GO_SPACE)
    ending = last.lower()
    if colon and ending in ("cloud", "local"):
        return base, Source(ending)
    if colon and "/" not in last and ending.endswith("-cloud"):
        return f"{base}:{last[: -len('-cloud')]}", Source.CLOUD
    return text, Source.UNSPECIFIED


def _split(text: str) -> tuple[str, str, str, str]:
    """Return host, namespace, model and tag, parsed from the right; "" for a part that is absent."""
    tag = ""
    if text.rfind(":") > text.rfind("/"):
        text, tag = _cut(text, ":")
    if "/" not in text:
        return "", "", text, tag
    text, model = _cut(text, "/")
    if "/" not in text:
        return "", text, model, tag
    text, namespace = _cut(text, "/")
    scheme, separator, host = text.partition("://")
    return host if separator else scheme, namespace, model, tag


def _cut(text: str, separator: str) -> tuple[str, str]:
    before, _, after = text.rpartition(separator)
    return before or _MISSING, after or _MISSING
