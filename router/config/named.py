"""The models that a configuration names."""

from __future__ import annotations

from collections.abc import Iterator

from router.config.root import Config
from router.config.values import WILDCARDS
from router.core.advice.chains import Named
from router.core.ollama.names import key_of


def models_named(config: Config) -> Iterator[Named]:
    """Yield every model that `config` names: variants, models with a chain of their own settings, `keep`, `preload`."""
    chains = {key_of(name) for name in config.chains if not WILDCARDS.search(name)}
    for name, chain in config.chains.items():
        if not isinstance(chain.variants, str):
            yield from (Named(f"chain {name}", one.model, one.num_ctx) for one in chain.variants)
        elif not WILDCARDS.search(name):
            yield Named(f"chain {name}", name)
    for key in ("keep", "preload"):
        for model in getattr(config.defaults, key):
            if key_of(model) not in chains:
                yield Named(f"defaults.{key}", model)
