"""The models that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from router.config.chain_sections import ChainSection
from router.config.places import Places
from router.config.problems import Path
from router.config.root import Config
from router.config.team_files import TeamFile
from router.config.values import WILDCARDS
from router.core.advice.chains import Named
from router.core.ollama.names import key_of


def models_named(config: Config, places: Places | None = None) -> Iterator[Named]:
    """Yield every model that `config` names: variants, models with a chain of their own settings, `keep`, `preload`.

    With `places` each comes with its file and line.
    """
    yield from _in_chains(config.chains, lambda path: f"{places.of(path)}: " if places is not None else "")
    chains = {key_of(name) for name in config.chains if not WILDCARDS.search(name)}
    for key in ("keep", "preload"):
        for index, model in enumerate(getattr(config.defaults, key)):
            if key_of(model) not in chains:
                place = f"{places.of(('defaults', key, index))}: " if places is not None else ""
                yield Named(f"{place}defaults.{key}", model)
    for file in config.team_files:
        yield from _in_chains(file.section.chains, partial(_place_in, file, places))


def _place_in(file: TeamFile, places: Places | None, path: Path) -> str:
    return f"{places.of(path, file.path)}: " if places is not None else f"team {file.section.team}: "


def _in_chains(chains: Mapping[str, ChainSection], place: Callable[[Path], str]) -> Iterator[Named]:
    for name, chain in chains.items():
        if not isinstance(chain.variants, str):
            for index, one in enumerate(chain.variants):
                yield Named(f"{place(('chains', name, 'variants', index))}chain {name}", one.model, one.num_ctx)
        elif not WILDCARDS.search(name):
            yield Named(f"{place(('chains', name))}chain {name}", name)
