"""What is carried over from another configuration: chains, the URL of Ollama, defaults, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError

from router.config.values import WILDCARDS, parse_model, parse_pattern, parse_url
from router.core.ollama.names import key_of

MAX_NOTES = 200
MAX_NOTE = 300


@dataclass(frozen=True, slots=True)
class Rung:
    """One variant of a chain: an Ollama model, and its context in tokens if the other configuration names one."""

    model: str
    num_ctx: int | None = None


@dataclass(slots=True)
class Draft:
    """The result of reading a configuration of `kind`; `left_out` has a line for each part without an equivalent."""

    kind: str
    chains: dict[str, list[Rung]] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)  # key of a chain's name → the name

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to write."""
        return not (self.chains or self.urls or self.defaults)

    def note(self, text: str) -> None:
        """Add a line on what is left out, once, without characters that would end a comment."""
        line = "".join(char if char.isprintable() else " " for char in text)[:MAX_NOTE]
        if line not in self.left_out and len(self.left_out) < MAX_NOTES:
            self.left_out.append(line)

    def add_chain(self, name: str, rungs: list[Rung]) -> None:
        """Add a chain with the rungs whose models have valid names, each once; note what is not added."""
        if WILDCARDS.search(name) or not _is_valid(parse_pattern, name):
            self.note(f"{name}: not a model name for this router")
            return
        if (same := self._names.setdefault(key_of(name), name)) != name or name in self.chains:
            self.note(f"{name}: the same model name as {same}")
            return
        kept: list[Rung] = []
        for rung in rungs:
            if not _is_valid(parse_model, rung.model):
                self.note(f"{name}: {rung.model} is not the name of a local Ollama model")
            elif (key_of(rung.model), rung.num_ctx) not in [(key_of(one.model), one.num_ctx) for one in kept]:
                kept.append(rung)
        if kept:
            self.chains[name] = kept

    def add_url(self, value: object, owner: str) -> None:
        """Add the URL of an Ollama, without the path that OpenAI's clients need; note one that cannot be used."""
        text = str(value).strip()
        text = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(text)
            url = parse_url(f"{parts.scheme}://{parts.netloc}")
        except (ValueError, PydanticCustomError):
            self.note(f"{owner}: its address is not an http URL without user name and password")
            return
        if url not in self.urls:
            self.urls.append(url)


def context_of(value: object) -> int | None:
    """Return a context in tokens as a positive number, whether written as a number or as text; else None."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 12:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def mapping(value: object) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def texts(value: object) -> list[str]:
    """Return the texts in a list, or a single one as a list; anything else is left out."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, str) and one.strip()]


def _is_valid(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except PydanticCustomError:
        return False
    return True
