"""One round of loads without a request: what is tried, what is left, and what is not tried again at once."""

import asyncio

from router.core.units import GIB
from router.errors import LoadFailed
from router.routing.warmup import AGAIN_S
from tests.backend.machine import BIG, EMBEDDER, MIDDLE, SMALL, MemoryMachine
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL, EMBEDDER)
ALONE = {"defaults.auto_chains": "off"}


def preloading(*names, **more):
    return {**ALONE, "defaults.preload": list(names), **more}


def loaded(scene):
    return [name for name, *_ in scene.machine.named("load")]


def test_what_is_to_be_preloaded_is_loaded_once_per_start_of_ollama():
    """In the order of the configuration; a client's unload stands."""

    async def story(scene):
        scene.warmup.restart()
        await scene.warmup.check()
        assert loaded(scene) == [SMALL.name, EMBEDDER.name]
        scene.machine.drop(SMALL.name)
        await scene.backend.world.refresh_fresh()
        await scene.warmup.check()
        assert loaded(scene) == [SMALL.name, EMBEDDER.name]
        scene.warmup.restart()
        await scene.warmup.check()
        assert loaded(scene) == [SMALL.name, EMBEDDER.name, SMALL.name]

    routed(story, MemoryMachine(*ALL), preloading(SMALL.name, EMBEDDER.name))


def test_a_preload_does_not_evict_what_is_to_be_preloaded_itself():
    """Two that do not fit together: the first stays."""

    async def story(scene):
        scene.warmup.restart()
        await scene.warmup.check()
        assert list(scene.machine.rows) == [BIG.name]

    routed(story, MemoryMachine(*ALL), preloading(BIG.name, MIDDLE.name))


def test_what_is_not_installed_or_does_not_fit_is_left():
    """Without an error, and without a load."""

    async def story(scene):
        scene.machine.foreign[0] = 20 * GIB
        await scene.backend.world.refresh_fresh()
        scene.warmup.restart()
        await scene.warmup.check()
        assert loaded(scene) == []

    routed(story, MemoryMachine(*ALL), preloading("absent:1b", BIG.name))


def test_a_kept_model_comes_back_but_not_more_often_than_once_in_a_while():
    """One that cannot be loaded does not keep the card busy."""

    async def story(scene):
        scene.machine.trouble["load"] = LoadFailed("corrupt")
        for _ in range(3):
            await scene.warmup.check()
        assert loaded(scene) == [SMALL.name]
        scene.machine.trouble.clear()
        await asyncio.sleep(AGAIN_S)
        await scene.warmup.check()
        assert (loaded(scene), list(scene.machine.rows)) == ([SMALL.name] * 2, [SMALL.name])

    routed(story, MemoryMachine(*ALL), {**ALONE, "defaults.keep": [SMALL.name]})


def test_a_kept_model_evicts_nothing():
    """Clients' models go first."""

    async def story(scene):
        await scene.make_resident(BIG)
        await scene.warmup.check()
        assert loaded(scene) == [BIG.name]

    routed(story, MemoryMachine(*ALL), {**ALONE, "defaults.keep": [MIDDLE.name]})


def test_a_model_that_is_busy_is_not_waited_for():
    """A load without a request stands back."""

    async def story(scene):
        tracked = await scene.make_resident(BIG)
        scene.backend.world.residents.enter(tracked.weights)
        scene.warmup.restart()
        await scene.warmup.check()
        assert loaded(scene) == [BIG.name]
        scene.backend.leave(tracked)

    routed(story, MemoryMachine(*ALL), preloading(MIDDLE.name))


def test_a_load_that_fails_is_given_up():
    """The line leaves the model alone for a while, and so do we."""
    machine = MemoryMachine(*ALL)
    machine.trouble["load"] = LoadFailed("out of memory")

    async def story(scene):
        scene.warmup.restart()
        await scene.warmup.check()
        assert len(loaded(scene)) == 1

    routed(story, machine, preloading(SMALL.name))
