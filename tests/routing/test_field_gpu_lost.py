"""Ollama loses its card while the router's probe still shows it, and finds it again."""

import asyncio

import pytest

from router.backend.cards import NO_GPU_S
from router.errors import NoVariantFits, UpstreamGone
from router.telemetry import Switched
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL)


async def refused(scene, facts):
    """Ask for `facts`, and return the text of the refusal."""
    with pytest.raises(NoVariantFits) as told:
        await scene.dispatcher.dispatch(scene.call(facts.name))
    assert told.value.retry_after_s
    return str(told.value)


async def served(scene, facts):
    """Serve a request for `facts`, and return which model answered."""
    task = asyncio.create_task(scene.dispatcher.dispatch(scene.call(facts.name)))
    sent = len(scene.relay.sent)
    for _ in range(600):  # until it has been sent: the model is loaded for it
        await asyncio.sleep(0.1)
        if len(scene.relay.sent) > sent:
            break
    scene.relay.sent[-1].answer()
    (await task).release("completed")
    return scene.heard.of(Switched)[-1].model


def loads(scene):
    return len(scene.machine.named("load"))


@pytest.mark.parametrize("is_amx", [False, True], ids=["ps shows no VRAM", "ps counts AMX buffers as VRAM"])
def test_one_load_finds_out_and_then_every_request_is_refused_at_once_until_ollama_restarts(is_amx):
    """The reason is named; nothing is learned, so that afterwards all is as before."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        assert await served(scene, MIDDLE) == MIDDLE.name
        learned = scene.backend.lessons.learned
        machine.drop(MIDDLE.name)
        machine.vram_share, machine.seen_share = float(is_amx), 0.0
        await scene.backend.world.refresh_fresh()
        assert "Ollama uses no GPU" in await refused(scene, SMALL)
        tried = loads(scene)
        for facts in (BIG, MIDDLE, SMALL, SMALL):
            assert "Ollama uses no GPU" in await refused(scene, facts)
        assert loads(scene) == tried
        machine.vram_share = machine.seen_share = 1.0
        machine.trouble["ps"] = UpstreamGone("connection refused")
        await scene.backend.world.refresh_fresh()
        machine.trouble.clear()
        await scene.backend.world.refresh_fresh()
        assert await served(scene, MIDDLE) == MIDDLE.name
        assert scene.backend.lessons.learned.by_weights.keys() == learned.by_weights.keys()

    routed(story, machine, {"defaults.auto_chains": "off"})


def test_without_a_restart_one_load_a_minute_tries_whether_the_card_is_back():
    """A driver that was reloaded needs no restart."""
    machine = MemoryMachine(*ALL)
    machine.vram_share = 0.0

    async def story(scene):
        await refused(scene, SMALL)
        await asyncio.sleep(NO_GPU_S + 1)
        await refused(scene, SMALL)
        assert loads(scene) == 2
        machine.vram_share = 1.0
        await asyncio.sleep(NO_GPU_S + 1)
        assert await served(scene, SMALL) == SMALL.name

    routed(story, machine, {"defaults.auto_chains": "off"})
