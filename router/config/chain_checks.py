"""The rules on which the chains of one file must agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from router.config.chain_sections import ChainSection
from router.config.problems import Problem
from router.config.values import WILDCARDS
from router.core.ollama.names import key_of

NO_CHAINS: Mapping[str, ChainSection] = {}


def chain_problems(
    chains: Mapping[str, ChainSection], inherited: Mapping[str, ChainSection] = NO_CHAINS
) -> Iterator[Problem]:
    """Yield a problem for every chain that contradicts itself or another; `inherited` apply where `chains` do not."""
    seen: dict[str, str] = {}
    for name, chain in chains.items():
        key = chain_key(name)
        if key in seen:
            yield Problem(("chains", name), name, f'one chain per model; "{seen[key]}" is the same model')
        seen.setdefault(key, name)
        yield from _repeated(name, chain)
        if chain.preload and WILDCARDS.search(name):
            yield Problem(("chains", name, "preload"), True, "false: a pattern does not name one model to preload")
    yield from _cycles(chains, {name: chain for name, chain in inherited.items() if chain_key(name) not in seen})


def chain_key(name: str) -> str:
    """Return what is equal for all spellings of a chain's name or pattern."""
    return name.lower() if WILDCARDS.search(name) else key_of(name)


def _repeated(name: str, chain: ChainSection) -> Iterator[Problem]:
    if isinstance(chain.variants, str):
        return
    entries = [(key_of(entry.model), entry.num_ctx) for entry in chain.variants]
    for index in range(1, len(entries)):
        if entries[index] in entries[:index]:
            yield Problem(("chains", name, "variants", index), chain.variants[index].model, "each variant once")


def _cycles(chains: Mapping[str, ChainSection], inherited: Mapping[str, ChainSection]) -> Iterator[Problem]:
    """Yield those of `chains` that only refer to each other and so lead to no model.

    A chain that lists its own name means the installed model.
    """
    follows: dict[str, tuple[str, set[str]]] = {}
    for name, chain in (*chains.items(), *inherited.items()):
        if not isinstance(chain.variants, str) and not WILDCARDS.search(name):
            targets = {key_of(entry.model) for entry in chain.variants}
            if key_of(name) not in targets:
                follows[key_of(name)] = (name, targets)
    for start, (name, targets) in follows.items():
        reached: set[str] = set()
        frontier = targets & follows.keys()
        while frontier:
            reached |= frontier
            frontier = (
                set(itertools.chain.from_iterable(follows[key][1] for key in frontier)) & follows.keys() - reached
            )
        if start in reached and name in chains:
            yield Problem(("chains", name), name, "models: these chains only refer to each other, in a circle")
