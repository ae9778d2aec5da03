"""What blocks an attempt, and when a request is decided again or refused in the end."""

import asyncio
import json
from contextlib import suppress

import pytest

from router.errors import Busy, NoVariantFits, RouterError, UpstreamError, UpstreamGone
from router.routing.attempt import MAX_ATTEMPTS
from router.routing.outcomes import Blocked
from router.telemetry import Finished
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine
from tests.routing.requests_by_hand import Replies, dispatched
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL)
ALONE = {"defaults.auto_chains": "off"}
CHAIN = {**ALONE, "chains": {"team": [BIG.name, SMALL.name]}}


def test_a_request_without_a_free_connection_keeps_its_resident_and_is_sent_on_the_next_one():
    """It is decided once."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.relay.free = 0
        task = await dispatched(scene, scene.call(SMALL.name))
        assert (scene.in_flight(), scene.relay.sent) == (1, [])
        scene.relay.may_connect.set()
        await asyncio.sleep(0.01)
        scene.relay.sent[0].answer()
        answer = await task
        assert (scene.relay.given_back, scene.relay.sent[0].body["model"]) == (0, SMALL.name)
        answer.release("completed")

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("error", [UpstreamError("refused"), Busy("no connection")])
def test_a_request_that_gets_no_connection_gives_its_resident_back(error):
    """The error is its answer."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.relay.free, scene.relay.error = 0, error
        scene.relay.may_connect.set()
        with pytest.raises(type(error)):
            await scene.dispatcher.dispatch(scene.call(SMALL.name))
        assert scene.in_flight() == 0
        assert scene.ends()[0][:2] == ("shed" if isinstance(error, Busy) else "upstream_error", error.status)

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("is_up", [True, False], ids=["no longer decided", "refused"])
def test_a_connection_that_was_awaited_in_vain_is_given_back(is_up):
    """Whether the request must wait for something else, or fails."""

    async def story(scene):
        call = scene.call("unknown:1b")
        call.attempts = 0 if is_up else MAX_ATTEMPTS
        connection = object()
        with suppress(RouterError):
            assert isinstance(scene.dispatcher.attempt(call, Replies(), connection), Blocked)
        assert (scene.relay.given_back, scene.relay.sent) == (1, [])

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_connection_is_given_back_if_the_body_for_it_cannot_be_made(monkeypatch):
    """A fault of one request must not cost the others a connection."""

    def fail(*_, **__):
        raise RuntimeError("odd")

    monkeypatch.setattr("router.routing.destination.rewrite", fail)

    async def story(scene):
        await scene.make_resident(SMALL)
        call = scene.call(SMALL.name)
        with pytest.raises(RuntimeError):
            scene.dispatcher.attempt(call, Replies(), object())
        scene.dispatcher.leave(call)
        assert (scene.relay.given_back, scene.relay.sent) == (1, [])

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_variant_that_has_vanished_at_the_upstream_is_decided_again_with_a_new_catalog():
    """The client named the chain, not the variant; the answer says how often the request was sent."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.machine.foreign[0] = 20 << 30
        await scene.backend.world.refresh_fresh()
        task = await dispatched(scene, scene.call("team"))
        reads = len(scene.machine.named("tags"))
        scene.relay.sent[0].answer(404)
        await asyncio.sleep(0.1)
        assert (len(scene.machine.named("tags")), scene.in_flight()) == (reads + 1, 1)
        scene.relay.sent[1].answer()
        answer = await task
        assert dict(answer.headers)[b"x-router-attempts"] == b"2"
        answer.release("completed")
        assert scene.ends() == [("completed", 200, "")]

    routed(story, MemoryMachine(*ALL), CHAIN)


def test_a_request_taken_at_once_whose_variant_has_vanished_goes_on_blocked():
    """Its caller reads the catalog and goes on."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.machine.foreign[0] = 20 << 30
        await scene.backend.world.refresh_fresh()
        replies = Replies()
        scene.dispatcher.start(scene.call("team"), replies)
        scene.relay.sent[0].answer(404)
        assert (replies, scene.in_flight(), scene.ends()) == ([None], 0, [])
        assert scene.dispatcher.gone().why == "variant"

    routed(story, MemoryMachine(*ALL), CHAIN)


def test_a_model_that_ollama_does_not_know_though_it_was_named_is_asked_for_once_more():
    """Ollama may have met another manifest that vanished; the second 404 is its answer."""

    async def story(scene):
        await scene.make_resident(SMALL)
        call, replies = scene.call(SMALL.name), Replies()
        scene.dispatcher.start(call, replies)
        scene.relay.sent[0].answer(404)
        assert (replies, scene.in_flight(), scene.ends()) == ([None], 0, [])
        scene.dispatcher.start(call, replies)
        scene.relay.sent[1].answer(404)
        answer = replies[1]
        assert answer.status == 404
        answer.release("completed")

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize(
    ("status", "text", "is_repeated"),
    [
        (400, "model is required", True),
        (400, "stat /models/manifests/registry.ollama.ai/library/x/y: no such file or directory", True),
        (400, '"small:3b" does not support thinking', False),
        (404, "model 'small:3b' not found", True),
        (500, "model is required", False),
        (500, "open /x: no such file or directory", False),
    ],
)
def test_what_a_failed_listing_answers_is_asked_once_more_and_real_errors_are_not(status, text, is_repeated):
    """By status and text; the model is installed."""

    async def story(scene):
        await scene.make_resident(SMALL)
        call, replies = scene.call(SMALL.name), Replies()
        scene.dispatcher.start(call, replies)
        scene.relay.sent[0].answer(status, json.dumps({"error": text}).encode())
        assert (replies == [None]) is is_repeated
        if not is_repeated:
            replies[0].release("completed")

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_request_whose_variants_keep_vanishing_is_refused_in_the_end():
    """Each attempt costs the upstream a request."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.machine.foreign[0] = 20 << 30
        await scene.backend.world.refresh_fresh()
        task = await dispatched(scene, scene.call("team"))
        for number in range(MAX_ATTEMPTS):
            scene.relay.sent[number].answer(404)
            await asyncio.sleep(0.1)
        with pytest.raises(NoVariantFits, match=f"gave up after {MAX_ATTEMPTS} attempts"):
            await task
        assert (len(scene.relay.sent), scene.ends()) == (MAX_ATTEMPTS, [("shed", 503, "")])

    routed(story, MemoryMachine(*ALL), CHAIN)


def test_an_unknown_name_is_looked_up_once_and_then_left_to_ollama():
    """It may have been installed a moment ago; a cloud model and a request without one are left at once."""

    async def story(scene):
        await asyncio.sleep(5)
        reads = len(scene.machine.named("tags"))
        for model, looked_up in (("unknown:1b", 1), ("x:cloud", 1), ("", 1)):
            task = await dispatched(scene, scene.call(model))
            assert len(scene.machine.named("tags")) == reads + looked_up
            scene.relay.sent[-1].answer(404)
            (await task).release("completed")
        reasons = [end.reason for end in scene.heard.of(Finished)]
        assert reasons == ["passthrough: not installed"] * 2 + ["passthrough: no model named"]

    routed(story, MemoryMachine(*ALL), {**ALONE, "snapshot.catalog_interval_s": 1000})


def test_a_model_that_was_just_installed_is_found_by_the_request_that_names_it():
    """No refresh has seen it yet."""

    async def story(scene):
        await asyncio.sleep(5)
        scene.machine.installed[MIDDLE.name] = MIDDLE
        task = await dispatched(scene, scene.call(MIDDLE.name))
        await asyncio.sleep(3)
        assert scene.resident(MIDDLE) is not None
        scene.relay.sent[0].answer()
        (await task).release("completed")

    routed(story, MemoryMachine(BIG, SMALL), {**ALONE, "snapshot.catalog_interval_s": 1000})


def test_an_ollama_that_is_away_is_asked_once_more_and_then_the_request_fails():
    """With the reason; taken at once it says that it must ask."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        machine.trouble["ps"] = machine.trouble["version"] = UpstreamGone("connection refused")
        await scene.backend.world.refresh_fresh()
        blocked = scene.dispatcher.start(scene.call(SMALL.name), Replies())
        assert blocked.why == "upstream"
        with pytest.raises(UpstreamError, match="cannot reach Ollama: connection refused"):
            await scene.dispatcher.dispatch(scene.call(SMALL.name))
        machine.trouble.clear()
        task = await dispatched(scene, scene.call(SMALL.name))
        await asyncio.sleep(3)
        scene.relay.sent[0].answer()
        (await task).release("completed")

    routed(story, machine, {**ALONE, "snapshot.ps_interval_s": 1000, "snapshot.probe_interval_s": 1000})


def test_a_request_that_is_refused_in_its_first_attempt_is_reported():
    """`start` returns the error, and nothing goes on."""

    async def story(scene):
        call = scene.call(SMALL.name)
        call.attempts = MAX_ATTEMPTS
        error = scene.dispatcher.start(call, Replies())
        assert isinstance(error, NoVariantFits)
        assert scene.ends() == [("shed", 503, "")]

    routed(story, MemoryMachine(*ALL), ALONE)
