"""`ollama-router check --live`: whether the configured Ollamas have the models that the configuration names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from router.adapters.discovery.found import Nodes
from router.adapters.ollama import OllamaClient
from router.backend.backend import client_of
from router.backend.endpoint import Endpoint, endpoint_of
from router.config import BackendSection, Config, Knowledge, Places, config_warnings, models_named
from router.core.advice.chains import Named, Note, notes_on
from router.core.ollama.derived_names import is_derived
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import is_name, key_of
from router.errors import NoNodeAnswers, RouterError
from router.routing.front.assembled import discovery_of

FIND_S = 10.0
"""How long nodes are looked for."""

Catalog = Mapping[str, ModelFacts]


def has_all_models(config: Config, places: Places) -> bool:
    """Print a line for each model that is missing, has its context cut, or stands in a chain in vain, and for each
    pattern of a team that matches nothing. Of several backends each line names those that it is about.

    Return False if a model is on none of them, or one does not answer; raise RouterError if it is the only one.
    """
    named = tuple(models_named(config, places))
    answers = asyncio.run(_asked(config, {key_of(one.model) for one in named}))
    catalogs = {name: found for name, found in answers.items() if not isinstance(found, RouterError)}
    away = {name: error for name, error in answers.items() if isinstance(error, RouterError)}
    if len(answers) == 1 and away:
        raise next(iter(away.values()))
    for name, error in away.items():
        typer.echo(f"warning: {name}: {error}", err=True)
    if not catalogs:
        return False
    notes = tuple(_notes(named, catalogs, is_one=len(answers) == 1))
    for note in notes:
        typer.echo(f"{'warning' if note.is_missing else 'note'}: {note.text}", err=True)
    for text in config_warnings(config, places, time.time(), _known(tuple(catalogs.values()))):
        typer.echo(f"warning: {text}", err=True)
    return not away and not any(note.is_missing for note in notes)


def _notes(named: Sequence[Named], catalogs: Mapping[str, Catalog], *, is_one: bool) -> Iterator[Note]:
    """Yield a note for each model that no backend has, then for each context that is cut on some."""
    whole, where = _whole(tuple(catalogs.values())), "" if is_one else f"{', '.join(catalogs)}: "
    yield from (Note(f"{where}{note.text}", is_missing=True) for note in notes_on(named, whole) if note.is_missing)
    cut: dict[str, list[str]] = {}
    for name, catalog in catalogs.items():
        there = [one for one in named if key_of(one.model) in catalog]
        for note in notes_on(there, catalog):
            cut.setdefault(note.text, []).append(name)
    for text, names in cut.items():
        yield Note(text if is_one else f"{', '.join(names)}: {text}", is_missing=False)


def _whole(catalogs: Sequence[Catalog]) -> Catalog:
    """Return the models of all backends; the first one's facts count."""
    return {key: facts for catalog in reversed(catalogs) for key, facts in catalog.items()}


def _known(catalogs: Sequence[Catalog]) -> Knowledge:
    whole = _whole(catalogs)

    def size_of(model: str) -> float | None:
        facts = whole.get(key_of(model))
        return float(facts.size_bytes) if facts is not None and facts.size_bytes else None

    def weights_of(model: str) -> str | None:
        facts = whole.get(key_of(model))
        return f"{facts.weights} {facts.parts}" if facts is not None and facts.weights else None

    def are_beside(first: str, second: str) -> bool:
        return all(key_of(first) in catalog for catalog in catalogs if key_of(second) in catalog)

    return Knowledge(size_of, weights_of, tuple(facts.name for facts in whole.values()), are_beside)


async def _asked(config: Config, wanted: set[str]) -> dict[str, Catalog | RouterError]:
    """Return the models of each backend, or of each node of a front, or why it does not answer."""
    endpoints = {name: endpoint_of(section, name) for name, section in config.backends.items()}
    if config.nodes is not None:
        name, of_nodes = next(iter(endpoints.items()))
        endpoints = {url: of_nodes._replace(url=url) for url in await _nodes(config.nodes, name)}
        if not endpoints:
            raise NoNodeAnswers("no node was found")
    found = await asyncio.gather(*(_installed(config, endpoint, wanted) for endpoint in endpoints.values()))
    return dict(zip(endpoints, found, strict=True))


async def _nodes(section: BackendSection, name: str) -> list[str]:
    """Return the URLs of the nodes that are found at first; none if that takes too long."""
    found: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    def tell(nodes: Nodes) -> None:
        if not found.done():
            found.set_result(sorted(nodes.values()))

    discovery = discovery_of(section, name, lambda text: typer.echo(f"warning: {text}", err=True))
    watching = asyncio.ensure_future(discovery.watch(tell))
    try:
        return await asyncio.wait_for(found, FIND_S)
    except TimeoutError:
        return []
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _installed(config: Config, endpoint: Endpoint, wanted: set[str]) -> Catalog | RouterError:
    """Return the models of an Ollama, with the details of those that are wanted; the error if it does not answer."""
    client = client_of(endpoint, config)
    try:
        found: dict[str, ModelFacts] = {}
        for row in await client.tags():
            name = str(row.get("name") or row.get("model"))
            if is_name(name) and not is_derived(name):
                is_wanted = key_of(name) in wanted
                found[key_of(name)] = ModelFacts.of_show(row, await _show(client, name) if is_wanted else {})
    except RouterError as error:
        return error
    else:
        return found
    finally:
        await client.aclose()


async def _show(client: OllamaClient, name: str) -> dict[str, Any]:
    """Return the details of a model; nothing if they cannot be read, because the model is installed nevertheless."""
    try:
        return await client.show(name, verbose=False)
    except RouterError:
        return {}
