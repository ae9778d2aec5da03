"""What there is by name: chains as models, hidden tags, expiry, readiness."""

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from router.backend.keepalive import NEVER
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from router.errors import BadRequest, ModelNotFound, ProbeError, UpstreamError, UpstreamGone
from router.http.client.response import AnswerHead, UpstreamRequest
from router.routing.directory import START_S, TIDY_S, Managed, VirtualModel
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine
from tests.routing.scene import routed, routing_on

ALL = (BIG, MIDDLE, SMALL)
TAG = "ollama-router-derived/small:3b-d1"
CHAINS = {
    "defaults.auto_chains": "off",
    "chains": {"team": [BIG.name, SMALL.name], BIG.name: [BIG.name, SMALL.name], "ghost": ["absent:1b"]},
}


async def fill_card(scene):
    scene.machine.foreign[0] = 23 * GIB
    await scene.backend.world.refresh_fresh()


def test_chains_that_are_not_models_are_listed_with_their_installed_variants():
    """One that is named like an installed model is that model."""

    async def story(scene):
        assert scene.directory.virtual_models() == [
            VirtualModel("team", (BIG.name, SMALL.name)),
            VirtualModel("ghost", ()),
        ]

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_a_name_is_known_if_it_has_a_chain():
    """Metrics name no others."""

    async def story(scene):
        names = (SMALL.name, "team", "SMALL:3b", "unknown:1b", "x:cloud")
        assert [scene.directory.is_known(name) for name in names] == [True, True, True, False, False]

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_derived_tags_are_hidden_and_shown_as_what_they_stand_for():
    """Those of another router are hidden as well."""

    async def story(scene):
        assert (scene.directory.is_hidden(TAG), scene.directory.is_hidden(SMALL.name)) == (True, False)
        assert scene.directory.display_name(TAG) == TAG
        scene.backend.installed.derive(TAG, SMALL.name)
        assert scene.directory.display_name(TAG) == SMALL.name
        assert scene.directory.display_name("team") == "team"

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_a_chain_is_shown_as_the_variant_that_would_serve_it():
    """Names that are models, or nothing at all, stay."""

    async def story(scene):
        names = ("team", SMALL.name, "unknown:1b")
        assert [await scene.directory.show_name(name) for name in names] == [BIG.name, SMALL.name, "unknown:1b"]

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_a_chain_that_does_not_fit_is_shown_as_its_last_installed_variant_and_without_one_it_is_not_found():
    """`ollama run` must not start to pull it."""

    async def story(scene):
        await fill_card(scene)
        assert await scene.directory.show_name("team") == SMALL.name
        with pytest.raises(ModelNotFound, match="model 'ghost' not found"):
            await scene.directory.show_name("ghost")

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_expiry_is_what_clients_have_asked_for():
    """None where the upstream's own is right."""

    async def story(scene):
        assert scene.directory.client_expiry(SMALL.name) is None
        tracked = await scene.make_resident(SMALL)
        scene.backend.keepalive.apply(tracked, -1.0)
        assert scene.directory.client_expiry(SMALL.name) == scene.directory.client_expiry("Small:3B") == NEVER

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_a_change_of_the_catalog_is_read_soon():
    """With the next refresh, not at the next interval."""

    async def story(scene):
        await asyncio.sleep(2)
        scene.machine.installed.pop(MIDDLE.name)
        scene.directory.catalog_changed()
        await asyncio.sleep(1.1)
        assert not scene.directory.is_known(MIDDLE.name)

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_readiness_says_how_memory_is_known():
    """By the probe, by verification, or not at all."""

    async def story(scene):
        modes = [scene.directory.is_ready()]
        scene.machine.probe.error = ProbeError("lost")
        await asyncio.sleep(12)
        modes.append(scene.directory.is_ready())
        scene.backend.cards.mark_no_gpu()
        modes.append(scene.directory.is_ready())
        assert [(is_ready, facts["memory"]) for is_ready, facts in modes] == [
            (True, "probe"),
            (True, "verify"),
            (True, "no GPU: requests pass unchanged"),
        ]
        scene.machine.trouble["ps"] = UpstreamGone("refused")
        await scene.backend.world.refresh_fresh()
        is_ready, facts = scene.directory.is_ready()
        assert (is_ready, facts["upstream"], facts["error"]) == (False, False, "refused")

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_the_version_is_the_upstreams():
    """Asked for where it is not known yet."""
    machine = MemoryMachine(*ALL)
    machine.trouble["version"] = UpstreamError("refused")

    async def story(scene):
        with pytest.raises(UpstreamError):
            await scene.directory.version()
        machine.trouble.clear()
        assert await scene.directory.version() == "0.33.0"
        await scene.backend.world.refresh_fresh()
        asked = len(machine.named("version"))
        assert await scene.directory.version() == "0.33.0"
        assert len(machine.named("version")) == asked

    routed(story, machine, CHAINS)


def test_what_is_not_routed_is_forwarded_unchanged():
    """Management and lists."""

    async def story(scene):
        request = UpstreamRequest(b"GET", b"/api/tags")
        forwarding = asyncio.create_task(scene.directory.forward(request))
        await asyncio.sleep(0)
        scene.relay.sent[0].answer(200, b"[]")
        assert (scene.relay.sent[0].request, await (await forwarding).read()) == (request, b"[]")

    routed(story, MemoryMachine(*ALL), CHAINS)


DELETE = UpstreamRequest(b"DELETE", b"/api/delete", [], b'{"model":"small:3b"}')


def test_the_answer_to_a_deletion_comes_after_the_models_tags_have_gone():
    """A client that checks at once sees it. What failed has deleted nothing."""

    async def story(scene):
        await scene.backend.derived.ensure(SMALL.name, SMALL.digest, LoadOptions(num_ctx=8192))
        for status, is_left in ((404, True), (200, False)):
            forwarding = asyncio.create_task(scene.directory.forward(DELETE))
            await asyncio.sleep(0)
            scene.machine.installed.pop(SMALL.name, None) if status == 200 else None
            scene.machine.derived = {name: (BIG.name, {}) for name in scene.machine.derived}  # of any weights
            scene.relay.sent[-1].answer(status)
            assert (await forwarding).status == status
            assert bool(scene.machine.derived) is is_left

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_a_deletion_waits_for_its_tags_only_so_long_and_gives_its_answer_back_if_the_client_leaves():
    """Ollama does not answer; the tags go later."""

    async def story(scene):
        async def hang(**_):
            await asyncio.sleep(3600)

        scene.backend.derived.tidy = hang
        forwarding = asyncio.create_task(scene.directory.forward(DELETE))
        await asyncio.sleep(0)
        scene.relay.sent[-1].answer()
        started_s = asyncio.get_running_loop().time()
        assert (await forwarding).status == 200
        assert asyncio.get_running_loop().time() - started_s == TIDY_S
        leaving = asyncio.create_task(scene.directory.forward(DELETE))
        await asyncio.sleep(0)
        sent = scene.relay.sent[-1]
        sent.response.begin(AnswerHead(200, [], {}))
        sent.on_head()
        await asyncio.sleep(1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert sent.is_cancelled

    routed(story, MemoryMachine(*ALL), CHAINS)


def test_a_backend_that_is_asked_for_by_name_must_be_the_one_that_is_there():
    """`X-Router-Backend` of a request that manages models."""

    async def story(scene):
        managed = Managed("pull")
        assert scene.directory.targets(managed) == scene.directory.targets(managed, "local") == (scene.directory,)
        with pytest.raises(BadRequest, match="there is no backend 'tower', only local"):
            scene.directory.targets(managed, "tower")

    routed(story, MemoryMachine(*ALL), CHAINS)


class LateMachine(MemoryMachine):
    """Its list of models comes when `may_list` is set."""

    may_list: asyncio.Event

    async def tags(self):
        rows = await super().tags()
        await self.may_list.wait()
        return rows


def test_what_is_asked_at_the_start_waits_until_the_models_are_known_but_not_for_long():
    """A client that saw no chain then would pull it as a model that is missing."""

    async def story(scene):
        machine, now = scene.machine, asyncio.get_running_loop().time
        assert scene.directory.virtual_models()[0] == VirtualModel("team", ())
        machine.trouble.clear()
        machine.may_list = asyncio.Event()
        start = asyncio.create_task(scene.backend.start(lambda: None))
        await asyncio.sleep(0)
        began_s = now()
        await scene.directory.settled()
        assert now() - began_s == START_S
        asyncio.get_running_loop().call_later(1.0, machine.may_list.set)
        _, shown = await scene.directory.shown_by("team")
        assert shown == BIG.name
        assert scene.directory.virtual_models()[0] == VirtualModel("team", (BIG.name, SMALL.name))
        await start

    machine = LateMachine(*ALL)
    machine.trouble["tags"] = UpstreamError("not yet")

    async def run():
        async with routing_on(machine, CHAINS) as scene:
            await story(scene)

    run_virtual(run())
