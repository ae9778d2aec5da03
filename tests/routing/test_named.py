"""A model that the configuration names and Ollama lacks is warned about, when it becomes so."""

import asyncio

from router.config import load_config, models_named
from router.errors import UpstreamGone
from router.routing.named import CHECK_S, NamedModels
from router.telemetry import Notified, Telemetry
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine
from tests.routing.scene import routed


def config_of(**options):
    return load_config(env={}, options={"store.path": ":memory:", **options})


def places(**options):
    return [(one.place, one.model) for one in models_named(config_of(**options))]


def test_every_place_that_names_a_model_counts():
    """Variants of chains and patterns, chains that are derived, `keep`, and `preload` unless it is a chain."""
    chains = {"a": ["x", "y"], "b*": ["z"], "c:8b": "auto", "d*": "auto"}
    assert places(chains=chains, **{"defaults.keep": ["k"], "defaults.preload": ["a", "p"]}) == [
        ("chain a", "x"), ("chain a", "y"), ("chain b*", "z"), ("chain c:8b", "c:8b"),
        ("defaults.keep", "k"), ("defaults.preload", "p"),
    ]  # fmt: skip


def test_a_missing_model_is_warned_about_at_start_and_when_the_catalog_changes():
    """Once each time, and noted as long as it is so."""

    async def story(scene):
        config = config_of(chains={"team": [BIG.name, f"{SMALL.name}b", MIDDLE.name]})
        named = NamedModels(tuple(models_named(config)), lambda: scene.backend.world.catalog, Telemetry([scene.heard]))
        watching = asyncio.create_task(named.watch())
        await asyncio.sleep(3 * CHECK_S)
        told = [event.message for event in scene.heard.of(Notified) if event.level == "warning"]
        assert told == [f"chain team: {SMALL.name}b is not installed (did you mean {SMALL.name}?)"] == named.notes()
        del scene.machine.installed[MIDDLE.name]
        await scene.backend.installed.refresh()
        await asyncio.sleep(2 * CHECK_S)
        assert len([event for event in scene.heard.of(Notified) if event.level == "warning"]) == 2
        assert len(named.notes()) == 2
        watching.cancel()

    routed(story, MemoryMachine(BIG, MIDDLE, SMALL))


def test_while_ollama_is_away_nothing_is_missing():
    """Its models are not known."""

    async def story(scene):
        scene.machine.trouble["ps"] = UpstreamGone("refused")
        await scene.backend.world.refresh_fresh()
        named = NamedModels(
            tuple(models_named(config_of(chains={"team": ["gone:1b"]}))), lambda: None, Telemetry([scene.heard])
        )
        assert named.notes() == []

    routed(story, MemoryMachine(BIG))
