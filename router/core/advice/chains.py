"""What is wrong with the models that a configuration names: not installed, or a context above the model's maximum."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of

MAX_NOTES = 100
MAX_SUGGESTIONS = 20
"""Each suggestion compares a name with all that are installed, which takes milliseconds."""


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


def notes_on(named: Iterable[Named], catalog: Mapping[str, ModelFacts]) -> tuple[Note, ...]:
    """Return a note for each named model that is not in `catalog`, or cannot have the context that is named."""
    notes: list[Note] = []
    suggested = 0
    for one in named:
        facts = catalog.get(key_of(one.model))
        if facts is None:
            suggested += 1
            hint = _hint(one.model, catalog) if suggested <= MAX_SUGGESTIONS else ""
            notes.append(Note(f"{one.place}: {one.model} is not installed{hint}", is_missing=True))
        elif isinstance(one.num_ctx, int) and 0 < facts.context_length < one.num_ctx:
            text = f"num_ctx {one.num_ctx} of {one.model} is cut to its maximum, {facts.context_length}"
            notes.append(Note(f"{one.place}: {text}", is_missing=False))
        if len(notes) >= MAX_NOTES:
            break
    return tuple(notes)


def _hint(model: str, catalog: Mapping[str, ModelFacts]) -> str:
    names = {facts.name.lower(): facts.name for facts in catalog.values()}
    near = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[near[0]]}?)" if near else f" (ollama pull {model})"
