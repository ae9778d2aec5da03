"""Whatever ends a request, what it holds is given back and its end is reported once."""

import asyncio

import pytest

from router.errors import RouterError, UpstreamError
from router.routing.outcomes import Blocked
from router.routing.underway import Underway
from router.telemetry import Finished
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.routing.requests_by_hand import Replies, cancelled, dispatched
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL)
ALONE = {"defaults.auto_chains": "off"}
CHAIN = {**ALONE, "chains": {"team": [BIG.name, SMALL.name]}}


@pytest.mark.parametrize(
    ("is_gone", "end"),
    [(True, ("client_gone", 499, "before_answer")), (False, ("shutdown", 503, ""))],
    ids=["the client has left", "the router stops"],
)
def test_a_request_cancelled_while_it_awaits_the_head_of_its_answer_is_cancelled_at_the_upstream(is_gone, end):
    """Ollama must not go on computing for nobody."""

    async def story(scene):
        await scene.make_resident(SMALL)
        call = scene.call(SMALL.name)
        call.is_gone = lambda: is_gone
        task = await dispatched(scene, call)
        (sent,) = scene.relay.sent
        assert (scene.in_flight(), sent.is_cancelled) == (1, False)
        await cancelled(task)
        assert (scene.in_flight(), sent.is_cancelled, scene.ends()) == (0, True, [end])

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_answer_that_comes_in_the_instant_of_a_cancellation_is_given_back(is_gone):
    """Nobody will read it."""

    async def story(scene):
        await scene.make_resident(SMALL)
        call = scene.call(SMALL.name)
        call.is_gone = lambda: is_gone
        task = await dispatched(scene, call)
        scene.relay.sent[0].answer()
        await cancelled(task)
        assert scene.in_flight() == 0
        assert [end[0] for end in scene.ends()] == ["client_gone" if is_gone else "shutdown"]

    routed(story, MemoryMachine(*ALL), ALONE)


def test_an_error_that_comes_in_the_instant_of_a_cancellation_is_reported_once():
    """And the cancellation goes on."""

    async def story(scene):
        await scene.make_resident(SMALL)
        task = await dispatched(scene, scene.call(SMALL.name))
        scene.relay.sent[0].fail(UpstreamError("cut"))
        await cancelled(task)
        assert (scene.in_flight(), scene.ends()) == (0, [("upstream_error", 502, "")])

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("how", ["an answer", "a cut", "a 404"])
def test_a_request_cancelled_in_the_turn_in_which_something_comes_is_given_up(how):
    """Its task has not run yet: what came reaches nobody, and the connection that calls is told of no failure."""

    async def story(scene):
        await scene.make_resident(SMALL)
        call = scene.call(SMALL.name)
        call.is_gone = lambda: True
        task = await dispatched(scene, call)
        (sent,) = scene.relay.sent
        task.cancel()
        if how == "a cut":
            sent.fail(UpstreamError("cut"))
        else:
            sent.answer(200 if how == "an answer" else 404)
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        end = ("upstream_error", 502, "") if how == "a cut" else ("client_gone", 499, "before_answer")
        assert (scene.in_flight(), scene.ends()) == (0, [end])

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_blocked_request_whose_task_is_cancelled_ahead_of_its_beginning_gives_its_resident_back():
    """It had entered it in its first attempt."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.relay.free = 0
        call, replies = scene.call(SMALL.name), Replies()
        call.is_gone = lambda: True
        blocked = scene.dispatcher.start(call, replies)
        assert (type(blocked), blocked.why, scene.in_flight()) == (Blocked, "connection", 1)
        task = asyncio.create_task(scene.dispatcher.dispatch(call, blocked))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert scene.in_flight() == 1
        for _ in range(2):
            scene.dispatcher.abandon(call)
            assert (scene.in_flight(), scene.ends(), replies) == (0, [("client_gone", 499, "before_answer")], [])

    routed(story, MemoryMachine(*ALL), ALONE)


def test_abandoning_a_request_that_has_ended_does_nothing():
    """Its resident is somebody else's by now."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.relay.free = 0
        call = scene.call(SMALL.name)
        blocked = scene.dispatcher.start(call, Replies())
        task = asyncio.create_task(scene.dispatcher.dispatch(call, blocked))
        await asyncio.sleep(0.01)
        await cancelled(task)
        other = scene.backend.world.residents.enter(weights_of(SMALL))
        scene.dispatcher.abandon(call)
        assert (scene.in_flight(), len(scene.ends())) == (1, 1)
        scene.backend.leave(other)

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_request_taken_at_once_that_is_given_up_is_cancelled_at_the_upstream(is_gone):
    """No reply comes for it any more."""

    async def story(scene):
        await scene.make_resident(SMALL)
        replies = Replies()
        underway = scene.dispatcher.start(scene.call(SMALL.name), replies)
        assert isinstance(underway, Underway)
        underway.give_up(is_gone=is_gone)
        assert (scene.relay.sent[0].is_cancelled, scene.in_flight(), replies) == (True, 0, [])
        assert [end[0] for end in scene.ends()] == ["client_gone" if is_gone else "shutdown"]

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_request_that_is_cancelled_in_line_has_left_in_line():
    """All of its time was spent there."""

    async def story(scene):
        call = scene.call(SMALL.name)
        call.is_gone = lambda: True
        task = await dispatched(scene, call)
        await asyncio.sleep(1)
        await cancelled(task)
        (end,) = scene.heard.of(Finished)
        assert (end.outcome, end.phase, round(end.queue_s)) == ("client_gone", "queued", 1)

    routed(story, MemoryMachine(*ALL), ALONE)


def test_an_answer_holds_its_resident_until_it_is_released_once():
    """With what was counted; a keep_alive counts from then on."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        replies = Replies()
        scene.dispatcher.start(scene.call(SMALL.name, keep_alive=7), replies)
        scene.relay.sent[0].answer()
        (answer,) = replies
        assert (answer.status, scene.in_flight(), tracked.client_keep_alive_s) == (200, 1, 7)
        for _ in range(2):
            answer.release("completed", sent_bytes=10, tokens_in=3, tokens_out=4)
        assert scene.in_flight() == 0
        (end,) = scene.heard.of(Finished)
        assert (end.outcome, end.sent_bytes, end.tokens_in, end.tokens_out, end.variant) == (
            "completed",
            10,
            3,
            4,
            SMALL.name,
        )

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_request_that_waited_says_for_how_long():
    """One that did not says nothing of it."""

    async def story(scene):
        task = await dispatched(scene, scene.call(SMALL.name))
        await asyncio.sleep(3)
        scene.relay.sent[0].answer()
        answer = await task
        assert dict(answer.headers)[b"x-router-queue-ms"] == b"2000"
        assert b"x-router-queue-ms: 2000" in answer.lines
        answer.release("completed")
        replies = Replies()
        scene.dispatcher.start(scene.call(SMALL.name), replies)
        scene.relay.sent[1].answer()
        assert b"x-router-queue-ms: 0" in replies[0].lines
        replies[0].release("completed")

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("is_taken_at_once", [True, False])
def test_an_upstream_that_breaks_off_before_its_answer_is_an_error_and_the_resident_is_free(is_taken_at_once):
    """Reported as the upstream's."""

    async def story(scene):
        await scene.make_resident(SMALL)
        if is_taken_at_once:
            replies = Replies()
            scene.dispatcher.start(scene.call(SMALL.name), replies)
            scene.relay.sent[0].fail(UpstreamError("cut"))
            (error,) = replies
        else:
            task = await dispatched(scene, scene.call(SMALL.name))
            scene.relay.sent[0].fail(UpstreamError("cut"))
            (error,) = await asyncio.gather(task, return_exceptions=True)
        assert (type(error), str(error)) == (UpstreamError, "cut")
        assert (scene.in_flight(), scene.ends()) == (0, [("upstream_error", 502, "")])

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_fault_of_ours_ends_the_request_as_failed():
    """It is raised to the edge, which answers 500; nothing is held any more."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.relay.free, scene.relay.error = 0, ZeroDivisionError("a fault")
        scene.relay.may_connect.set()
        with pytest.raises(ZeroDivisionError):
            await scene.dispatcher.dispatch(scene.call(SMALL.name))
        assert (scene.in_flight(), scene.ends()) == (0, [("failed", 500, "")])

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_fault_of_ours_in_the_first_attempt_ends_the_request_as_failed(monkeypatch, caplog):
    """Its client gets an error, the log the reason, and the resident that it had entered is free."""

    def fails(*_, **__):
        raise ZeroDivisionError("a fault")

    async def story(scene):
        await scene.make_resident(SMALL)
        monkeypatch.setattr(scene.relay, "open_now", fails)
        found = scene.dispatcher.start(scene.call(SMALL.name), Replies())
        assert (type(found), found.status, str(found)) == (RouterError, 500, "internal error")
        assert (scene.in_flight(), scene.ends()) == (0, [("failed", 500, "")])

    routed(story, MemoryMachine(*ALL), ALONE)
    assert "a fault" in caplog.text


@pytest.mark.parametrize("is_taken_at_once", [True, False])
def test_a_fault_of_ours_at_the_head_of_an_answer_ends_the_request_as_failed(is_taken_at_once, monkeypatch, caplog):
    """The connection that reports the head hears nothing of it; the answer is cancelled."""

    def fails(*_, **__):
        raise ZeroDivisionError("a fault")

    async def story(scene):
        await scene.make_resident(SMALL)
        monkeypatch.setattr(scene.backend.line.slots, "answered", fails)
        if is_taken_at_once:
            replies = Replies()
            scene.dispatcher.start(scene.call(SMALL.name, keep_alive=5), replies)
            scene.relay.sent[0].answer()
            (error,) = replies
        else:
            task = await dispatched(scene, scene.call(SMALL.name, keep_alive=5))
            scene.relay.sent[0].answer()
            (error,) = await asyncio.gather(task, return_exceptions=True)
        assert (type(error), str(error)) == (RouterError, "internal error")
        assert (scene.in_flight(), scene.ends()) == (0, [("failed", 500, "")])

    routed(story, MemoryMachine(*ALL), ALONE)
    assert "a fault" in caplog.text


@pytest.mark.parametrize("end", ["answered", "given up", "cancelled in line", "broken off"])
def test_a_request_that_counts_towards_limits_is_settled_once_however_it_ends(end):
    """With its status, and whether it was ever sent."""

    async def story(scene):
        settled = []
        call = scene.call(SMALL.name)
        call.count((), lambda *how: settled.append((how[1].outcome, how[2], bool(how[0].served))))
        if end == "cancelled in line":
            await cancelled(await dispatched(scene, call))
        else:
            await scene.make_resident(SMALL)
            replies = Replies()
            underway = scene.dispatcher.start(call, replies)
            assert not settled
            if end == "given up":
                underway.give_up()
            elif end == "broken off":
                scene.relay.sent[0].fail(UpstreamError("cut"))
            else:
                scene.relay.sent[0].answer()
                replies[0].release("completed")
                replies[0].release("completed")
        scene.dispatcher.abandon(call)
        ends = {
            "answered": ("completed", 200, True),
            "given up": ("client_gone", 499, True),
            "cancelled in line": ("shutdown", 503, False),
            "broken off": ("upstream_error", 502, True),
        }
        assert settled == [ends[end]]

    routed(story, MemoryMachine(*ALL), ALONE)
