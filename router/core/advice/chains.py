"""What is wrong with the models that a configuration names: not installed, or a context above the model's maximum."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of

MAX_NOTES = 100
MAX_SUGGESTIONS = 20
MOST_COMPARED, MOST_CHARS = 100, 64
"""The most names that one suggestion is chosen from, and the letters of one: a comparison may take 100 µs."""


@dataclass(frozen=True, slots=True)
class Named:
    """A model that the configuration names at `place` (`chain team`, `defaults.keep`), perhaps with a context."""

    place: str
    model: str
    num_ctx: int | Literal["max"] | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the operator. `is_missing`: the model is not installed, so that its entry has no effect."""

    text: str
    is_missing: bool


def notes_on(named: Iterable[Named], catalog: Mapping[str, ModelFacts]) -> Iterator[Note]:
    """Yield a note for each named model that is not in `catalog`, or cannot have the context that is named.

    At most `MAX_NOTES`. To find one of them may take some milliseconds.
    """
    return islice(_notes_on(named, catalog), MAX_NOTES)


def _notes_on(named: Iterable[Named], catalog: Mapping[str, ModelFacts]) -> Iterator[Note]:
    suggested = 0
    for one in named:
        facts = catalog.get(key_of(one.model))
        if facts is None:
            suggested += 1
            hint = _hint(one.model, catalog) if suggested <= MAX_SUGGESTIONS else ""
            yield Note(f"{one.place}: {one.model} is not installed{hint}", is_missing=True)
        elif isinstance(one.num_ctx, int) and 0 < facts.context_length < one.num_ctx:
            text = f"num_ctx {one.num_ctx} of {one.model} is cut to its maximum, {facts.context_length}"
            yield Note(f"{one.place}: {text}", is_missing=False)


def _hint(model: str, catalog: Mapping[str, ModelFacts]) -> str:
    """Return what to do about a missing model: a typing error leaves the first letter alone, and few are so alike."""
    first = model[:1].lower()
    alike = (facts.name for facts in catalog.values() if facts.name[:1].lower() == first)
    names = {name.lower(): name for name in islice((name for name in alike if len(name) <= MOST_CHARS), MOST_COMPARED)}
    near = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[near[0]]}?)" if near else f" (ollama pull {model})"
