"""`ollama-router check --live`: whether the configured Ollamas have the models that the configuration names."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import typer

from router.adapters.ollama import OllamaClient
from router.backend.backend import client_of
from router.backend.endpoint import endpoint_of
from router.config import Config, Knowledge, Places, config_warnings, models_named
from router.core.advice.chains import notes_on
from router.core.ollama.derived_names import is_derived
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import is_name, key_of
from router.errors import RouterError


def has_all_models(config: Config, places: Places) -> bool:
    """Print a line for each model that is missing, has its context cut, or stands in a chain in vain, and for each
    pattern of a team that matches nothing.

    Return False if one is missing.
    """
    named = tuple(models_named(config, places))
    catalog = asyncio.run(_installed(config, {key_of(one.model) for one in named}))
    notes = notes_on(named, catalog)
    for note in notes:
        typer.echo(f"{'warning' if note.is_missing else 'note'}: {note.text}", err=True)
    for text in config_warnings(config, places, time.time(), _known(catalog)):
        typer.echo(f"warning: {text}", err=True)
    return not any(note.is_missing for note in notes)


def _known(catalog: dict[str, ModelFacts]) -> Knowledge:
    def size_of(model: str) -> float | None:
        facts = catalog.get(key_of(model))
        return float(facts.size_bytes) if facts is not None and facts.size_bytes else None

    def weights_of(model: str) -> str | None:
        facts = catalog.get(key_of(model))
        return f"{facts.weights} {facts.parts}" if facts is not None and facts.weights else None

    return Knowledge(size_of, weights_of, tuple(facts.name for facts in catalog.values()))


async def _installed(config: Config, wanted: set[str]) -> dict[str, ModelFacts]:
    """Return the models of all configured Ollamas, with the details of those that are wanted."""
    found: dict[str, ModelFacts] = {}
    for name, section in config.backends.items():
        found = await _installed_at(client_of(endpoint_of(section, name), config), wanted) | found
    return found


async def _installed_at(client: OllamaClient, wanted: set[str]) -> dict[str, ModelFacts]:
    """Return the models of one Ollama, and close its client."""
    found: dict[str, ModelFacts] = {}
    try:
        for row in await client.tags():
            name = str(row.get("name") or row.get("model"))
            if is_name(name) and not is_derived(name):
                is_wanted = key_of(name) in wanted
                found[key_of(name)] = ModelFacts.of_show(row, await _show(client, name) if is_wanted else {})
        return found
    finally:
        await client.aclose()


async def _show(client: OllamaClient, name: str) -> dict[str, Any]:
    """Return the details of a model; nothing if they cannot be read, because the model is installed nevertheless."""
    try:
        return await client.show(name, verbose=False)
    except RouterError:
        return {}
