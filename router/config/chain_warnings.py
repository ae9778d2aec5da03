"""What is allowed in chains but helps nobody: entries in the wrong order, and what can never be reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from router.config.chain_sections import ChainSection, VariantSection
from router.config.problems import Path
from router.config.values import WILDCARDS
from router.core.advice.order import bigger_entries, size_by_name
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest


class Knowledge(NamedTuple):
    """What is known of models: their size, and what is equal for models of the same weights; None = unknown.

    `installed` are the names of those that the servers have, None if none was asked. `are_beside` tells of two models
    whether each server that has the second one has the first one, too.
    """

    size_of: Callable[[str], float | None] = size_by_name
    weights_of: Callable[[str], str | None] = lambda _model: None
    installed: Collection[str] | None = None
    are_beside: Callable[[str, str], bool] = lambda _first, _second: True


NAMES_ONLY = Knowledge()


def chain_warnings(chains: Mapping[str, ChainSection], known: Knowledge) -> Iterator[tuple[Path, str]]:
    """Yield key path and text of each warning about the chains of one file."""
    yield from _shadowed(chains)
    for name, chain in chains.items():
        if _is_cloud(name):
            yield ("chains", name), f"the chain {name} is never used: cloud models are passed on unchanged"
        if isinstance(chain.variants, str):
            continue
        models = [entry.model for entry in chain.variants]
        for index, earlier in bigger_entries(models, known.size_of):
            if not known.are_beside(models[earlier], models[index]):
                continue  # it may fit where it is
            text = f"{models[index]} is bigger than {models[earlier]} before it: it fits only if that fits too"
            yield ("chains", name, "variants", index), f"chain {name}: {text}"
        for index, earlier in _again(chain.variants, known):
            text = f"{models[index]} is never used: it has the same weights as {models[earlier]}"
            yield ("chains", name, "variants", index), f"chain {name}: {text}"


def _again(entries: Sequence[VariantSection], known: Knowledge) -> Iterator[tuple[int, int]]:
    """Yield (index, index of the same before it) of each entry that runs the same weights in the same context."""
    seen: dict[tuple[str, object], int] = {}
    for index, entry in enumerate(entries):
        weights = known.weights_of(entry.model)
        if not weights or (first := seen.setdefault((weights, entry.num_ctx), index)) == index:
            continue
        if known.are_beside(entries[first].model, entry.model):
            yield index, first


def _is_cloud(name: str) -> bool:
    try:
        return not WILDCARDS.search(name) and ModelName.parse(name).source is Source.CLOUD
    except BadRequest:
        return False


def _shadowed(chains: Mapping[str, ChainSection]) -> Iterator[tuple[Path, str]]:
    """Yield each pattern whose models all have the chain of another pattern, which is looked up first."""
    patterns = [name for name in chains if WILDCARDS.search(name)]
    patterns.sort(key=lambda name: -len(WILDCARDS.sub("", name)))  # as they are looked up
    for index, later in enumerate(patterns):
        for first in patterns[:index]:
            if covers(first, later):
                yield ("chains", later), f"the chain {later} is never used: {first} is looked up first"
                break


def covers(wide: str, narrow: str) -> bool:
    """Return whether every name that `narrow` matches is matched by `wide`."""
    parts = (".*" if char == "*" else "[^*]" if char == "?" else re.escape(char) for char in wide.lower())
    return re.fullmatch("".join(parts), narrow.lower()) is not None
