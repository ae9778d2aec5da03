"""The dashboard's data: cards to scale, the queue, counts, the timeline; and the actions on what is loaded."""

import asyncio
import itertools
import json
import threading

import msgspec
import pytest

from router.admin.actions import Actions
from router.admin.board import Board
from router.admin.chat import Chat
from router.admin.feed import Feed
from router.admin.timeline import Timeline
from router.admin.totals import MOST_UNDER_WAY, Totals
from router.core.payload.read import read_wholly
from router.core.units import GIB
from router.errors import BadRequest, ModelNotFound, UpstreamError
from router.http.client.response import AnswerHead
from router.telemetry import Decided, Finished, Spilled, SteadyTime, Switched
from tests.admin.test_inspector import inspected, taken
from tests.backend.machine import BIG, SMALL, weights_of
from tests.config.keys.play import MIDDLE as OTHER_MODEL
from tests.config.keys.play import SMALL as MODEL
from tests.config.keys.play import get, hello, play

CHAIN_BODY = json.dumps({"model": "team", "messages": [{"role": "user", "content": "hi"}]}).encode()


class Clock:
    """A wall clock that stands until a test moves it."""

    now_s = 1_000_000.0

    def __call__(self):
        return self.now_s


def steady(clock):
    """Return the time of a wall clock that is never set."""
    return SteadyTime(clock, clock)


def board_of(scene, inspector, clock=None):
    clock = clock or Clock()
    return Board(scene.backend, inspector, Totals(steady(clock)), Timeline(steady(clock)), clock)


def test_a_card_is_shown_to_scale_with_residents_other_programs_and_free_memory():
    """Together the blocks are the whole card."""

    async def story(scene, inspector):
        await scene.make_resident(SMALL)
        await taken(scene, 5.0)
        (card,) = board_of(scene, inspector).data()["cards"]
        kinds = [block["kind"] for block in card["blocks"]]
        assert kinds == ["model", "others", "free"]
        assert card["blocks"][0]["model"] == SMALL.name
        assert card["blocks"][1]["bytes"] == pytest.approx(5 * GIB, rel=0.2)
        assert sum(block["bytes"] for block in card["blocks"]) == card["total_bytes"] == 24 * GIB

    inspected(story)


def test_without_readings_there_are_no_cards_but_models():
    """The page says that free memory is unknown."""

    async def story(scene, inspector):
        await scene.make_resident(SMALL)
        found = board_of(scene, inspector).data()
        assert found["cards"] is None
        assert [model["name"] for model in found["models"]] == [SMALL.name]

    inspected(story, has_probe=False)


def test_a_waiting_request_is_shown_with_what_it_waits_for_and_since_when():
    """Positions are by arrival; times are of the wall clock."""

    async def story(scene, inspector):
        clock, loop = Clock(), asyncio.get_running_loop()
        await scene.make_resident(SMALL)
        resident = scene.backend.world.residents.enter(weights_of(SMALL))

        def decide():
            return scene.decide(BIG)

        since_s = loop.time()
        waiting = [asyncio.create_task(scene.backend.line.wait(n, decide, since_s + n)) for n in (1, 0)]
        await asyncio.sleep(0)
        found = board_of(scene, inspector, clock).data()["queue"]
        assert [row["position"] for row in found] == [1, 2]
        assert {row["model"] for row in found} <= {BIG.name, ""}
        assert [row["since"] for row in found] == [clock.now_s, clock.now_s + 1]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        scene.backend.leave(resident)

    inspected(story)


def test_counts_are_kept_since_the_start_and_for_each_minute_of_the_last_hour():
    """An avoided spill is a request for a model that does not fit, whether a smaller one serves it or none."""
    clock = Clock()
    totals = Totals(steady(clock))
    totals.on(Decided("r1", "t", "big", "small", "fallback", "fallback", cause="too_big"))
    totals.on(Decided("r2", "t", "big", "", "rejected", "rejected", cause="too_big", below_best="x"))
    totals.on(Decided("r3", "t", "small", "small", "fits", "exact", cause="fits"))
    totals.on(Finished("r1", "t", "/api/chat", 200, "big", "small", "completed", tokens_out=7))
    totals.on(Finished("r2", "t", "/api/chat", 503, "big", "", "shed"))
    clock.now_s += 120
    totals.on(Switched("started", "small"))
    totals.on(Switched("finished", "small"))
    totals.on(Spilled("big", 2, 1))
    found = totals.since_start()
    assert (found["spills_avoided"], found["substituted"], found["refused"], found["below_best"]) == (2, 1, 1, 1)
    assert (found["requests"], found["tokens"], found["switches"], found["spills"]) == (2, 7, 1, 1)
    assert [minute["spills_avoided"] for minute in totals.by_minute()] == [2, 0]
    clock.now_s += 3600
    assert totals.by_minute() == []


def test_what_was_decided_on_a_request_counts_when_the_request_does():
    """Never one avoided spill of no request; of a request that was decided repeatedly, the last decision counts."""
    totals = Totals(steady(Clock()))
    avoided = Decided("r1", "t", "big", "small", "fallback", "fallback", cause="too_big")
    plain = Decided("r2", "t", "big", "big", "fits", "exact", cause="fits")
    totals.on_requests([avoided, msgspec.structs.replace(avoided, request_id="r2")], [])
    found = totals.since_start()
    assert (found["requests"], found["spills_avoided"], found["substituted"]) == (0, 0, 0)
    totals.on_requests([avoided, plain], [])
    for request in ("r1", "r2"):
        totals.on(Finished(request, "t", "/api/chat", 200, "big", "small", "completed"))
    found = totals.since_start()
    assert (found["requests"], found["spills_avoided"], found["substituted"]) == (2, 1, 1)


def test_decisions_on_requests_that_never_end_take_bounded_memory():
    """Whoever floods."""
    totals = Totals(steady(Clock()))
    for number in range(2 * MOST_UNDER_WAY):
        totals.on(Decided(f"r{number}", "t", "big", "small", "fallback", "fallback", cause="too_big"))
    assert len(totals._notable) == MOST_UNDER_WAY


def test_the_timeline_keeps_the_last_hour():
    """Spans end when a model leaves its card; switches and spills are marks."""
    clock = Clock()
    timeline = Timeline(steady(clock))
    timeline.observe([(0, "a"), (1, "b")])
    clock.now_s += 10
    timeline.observe([(1, "b")])
    timeline.on(Switched("finished", "b", ("a",), 1.5))
    timeline.on(Switched("started", "c"))
    timeline.on(Spilled("c", 2, 1))
    found = timeline.as_data()
    spans = {(span["model"], span["card"]): (span["from"], span["to"]) for span in found["spans"]}
    assert spans == {("a", 0): (1_000_000.0, 1_000_010.0), ("b", 1): (1_000_000.0, None)}
    assert [mark["kind"] for mark in found["marks"]] == ["switch finished", "spill"]
    assert found["since"] == 1_000_000
    clock.now_s += 3601
    found = timeline.as_data()
    assert ([span["model"] for span in found["spans"]], found["marks"]) == (["b"], [])


async def test_viewers_get_each_state_once_and_a_slow_one_only_the_newest():
    """The task ends with the last viewer."""
    states = iter(range(1000))
    feed = Feed(lambda: {"n": next(states)}, list, every_s=0.001)
    events = feed.events()
    assert await anext(events) == b": ollama-router\n\n"
    first = await anext(events)
    assert first.startswith(b"event: board\ndata: ")
    await asyncio.sleep(0.05)
    found = [await anext(events), await anext(events)]
    assert any(event.startswith(b"event: decisions") for event in found)
    assert feed.viewers == 1
    await events.aclose()
    for _ in range(1000):
        if not feed.is_watching:
            break
        await asyncio.sleep(0.001)
    assert (feed.viewers, feed.is_watching) == (0, False)


async def test_a_state_that_cannot_be_built_is_said_and_tried_again():
    """The page does not go blank because of one bad value."""
    states = iter([1 / 3, ValueError("odd")])

    def board():
        found = next(states, {"n": 2})
        if isinstance(found, Exception):
            raise found
        return {"n": found}

    feed = Feed(board, list, every_s=0.001)
    events, texts = feed.events(), []
    while not any(b'"n":2}' in text for text in texts):
        texts.append(await anext(events))
    assert any(b"odd" in text for text in texts) or len(texts) < 4
    await events.aclose()
    await feed.aclose()


async def test_what_takes_long_to_build_is_built_less_often_k5(monkeypatch):
    """So that dashboards take at most a fiftieth of the loop's time, however much there is to show."""
    naps, spent = [], [0.0]

    def board():
        spent[0] += 0.5
        return {"n": 1}

    async def nap(seconds, sleep=asyncio.sleep):
        naps.append(seconds)
        await sleep(0)

    feed = Feed(board, list, every_s=1.0, time_s=lambda: spent[0])
    monkeypatch.setattr("router.admin.feed.asyncio.sleep", nap)
    events = feed.events()
    while len(naps) < 3:
        await anext(events)
        await nap(0)
    assert 25.0 in naps
    assert 1.0 not in naps
    await events.aclose()
    await feed.aclose()


async def test_twenty_viewers_get_one_rendering_and_one_that_does_not_read_stops_nobody_k5():
    """All share one task and one encoding: the very same bytes."""
    built = []

    def board():
        built.append(1)
        return {"n": len(built)}

    feed = Feed(board, list, every_s=0.001)
    slow, viewers = feed.events(), [feed.events() for _ in range(20)]
    assert await anext(slow) == b": ollama-router\n\n"
    for viewer in viewers:
        await anext(viewer)
    found = [await anext(viewer) for viewer in viewers]
    assert {event[:12] for event in found} == {b"event: board"}
    same = [event for event in found if event == found[0]]
    assert all(event is same[0] for event in same)
    assert feed.viewers == 21
    while len(built) < 50:  # noqa: ASYNC110  (nothing else says so)
        await asyncio.sleep(0.001)
    before = len(built)
    newest = await anext(slow)  # one of now and not the fifty before it
    assert int(newest.split(b'"n":')[1].split(b"}")[0]) >= before - 1
    for viewer in (slow, *viewers):
        await viewer.aclose()
    await feed.aclose()


async def test_what_cannot_be_prepared_leaves_the_rest_on_the_page():
    """Today's usage is in a file, which may be away."""

    async def prepare():
        raise OSError("disk full")

    feed = Feed(lambda: {"n": 1}, list, lambda: {"teams": []}, prepare=prepare, every_s=0.001)
    events = feed.events()
    found = [await anext(events) for _ in range(4)]
    assert [event.split(b"\n")[0] for event in found[1:]] == [b"event: board", b"event: decisions", b"event: teams"]
    await events.aclose()
    await feed.aclose()


def test_the_board_does_not_build_what_it_does_not_show(monkeypatch):
    """The rows of residents with advice are for `/router/state`."""

    async def story(scene, inspector):
        await scene.make_resident(SMALL)
        monkeypatch.setattr(inspector, "state", lambda: pytest.fail("the whole state was built"))
        found = board_of(scene, inspector).data()
        assert found["ollama"]["up"] is True
        assert found["barred"] == []
        assert found["notes"] == inspector.notes()

    inspected(story)


def test_an_idle_model_is_unloaded_by_hand_even_one_that_is_kept():
    """One that answers goes when it is idle; `keep` is shown and lasts until then."""

    async def story(scene, inspector):
        actions = Actions([scene.backend])
        await scene.make_resident(SMALL)
        assert actions.keep(SMALL.name, is_kept=True) == {"model": SMALL.name, "kept": True}
        assert board_of(scene, inspector).data()["models"][0]["kept"] is True
        resident = scene.backend.world.residents.enter(weights_of(SMALL))
        assert actions.unload(SMALL.name)["unloads"] == "when idle"
        await scene.backend.keepalive.check()
        assert SMALL.name in [one.name for one in scene.backend.world.residents.values()]
        scene.backend.leave(resident)
        await scene.backend.keepalive.check()
        assert list(scene.backend.world.residents.values()) == []
        with pytest.raises(ModelNotFound):
            actions.unload(SMALL.name)

    inspected(story)


def test_draining_by_hand_is_reported_and_can_be_taken_back():
    """Load balancers go by `/readyz`."""
    seen = []
    actions = Actions([], seen.append)
    assert actions.drain(is_draining=True) == {"draining": True}
    assert actions.drain(is_draining=False) == {"draining": False}
    assert seen == [True, False]


def test_the_chat_takes_the_way_of_every_request_and_shows_the_decision_first():
    """A body that Ollama refuses is refused; leaving releases what the request holds."""

    async def story(scene, _inspector):
        await scene.make_resident(BIG)
        chat = Chat(scene.dispatcher)
        with pytest.raises(BadRequest):
            await chat.answer(b"{")
        task = asyncio.create_task(chat.answer(CHAIN_BODY))
        await asyncio.sleep(1.0)
        assert scene.relay.sent[-1].body["model"] == BIG.name
        scene.relay.sent[-1].answer(200, b'{"message":{"content":"hello"}}\n')
        parts = await task
        first = json.loads(await anext(parts))
        assert first["router"]["model"] == BIG.name
        assert b"hello" in await anext(parts)
        assert next(iter(scene.backend.world.residents.values())).in_flight == 1
        await parts.aclose()
        assert next(iter(scene.backend.world.residents.values())).in_flight == 0
        task = asyncio.create_task(chat.answer(CHAIN_BODY))
        await asyncio.sleep(1.0)
        scene.relay.sent[-1].answer(200, b'{"done":true}\n')
        read = [part async for part in await task]
        assert read[-1] == b'{"done":true}\n'
        assert next(iter(scene.backend.world.residents.values())).in_flight == 0

    inspected(story)


def test_a_chat_whose_reader_leaves_before_the_first_line_holds_nothing():
    """The answer is there, and nothing of it was sent."""

    async def story(scene, _inspector):
        await scene.make_resident(BIG)
        task = asyncio.create_task(Chat(scene.dispatcher).answer(CHAIN_BODY))
        await asyncio.sleep(1.0)
        scene.relay.sent[-1].answer(200, b'{"done":true}\n')
        parts = await task
        await parts.aclose()
        assert next(iter(scene.backend.world.residents.values())).in_flight == 0
        assert [outcome for outcome, _, _ in scene.ends()] == ["client_gone"]

    inspected(story)


def test_a_chat_whose_answer_breaks_off_ends_with_a_line_that_says_so():
    """After what had come of it, and what it holds is released as after a failure of Ollama."""

    async def story(scene, _inspector):
        await scene.make_resident(BIG)
        task = asyncio.create_task(Chat(scene.dispatcher).answer(CHAIN_BODY))
        await asyncio.sleep(1.0)
        sent = scene.relay.sent[-1]
        sent.response.begin(AnswerHead(200, [], {}))
        sent.on_head()
        sent.response.feed(b'{"message":')
        sent.response.fail(UpstreamError("Ollama closed the connection"))
        *_, last = (b"".join([part async for part in await task])).splitlines()
        assert json.loads(last) == {"error": "Ollama closed the connection"}
        assert next(iter(scene.backend.world.residents.values())).in_flight == 0
        assert [outcome for outcome, _, _ in scene.ends()] == ["upstream_error"]

    inspected(story)


def test_a_chat_of_very_many_values_is_read_beside_the_loop(monkeypatch):
    """What is read in a thread leaves the loop free, and reads as any other body does."""
    threads = []

    def read(*asked):
        threads.append(threading.current_thread())
        return read_wholly(*asked)

    monkeypatch.setattr("router.admin.chat.read_wholly", read)

    async def story(scene, _inspector):
        await scene.make_resident(BIG)
        calls = [{"function": {"name": "f", "arguments": {}}}] * 1000
        messages = [{"role": "assistant", "tool_calls": calls}]
        body = json.dumps({"model": "team", "messages": messages}).encode()
        task = asyncio.create_task(Chat(scene.dispatcher).answer(body))
        while not scene.relay.sent:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert threads
        assert threading.current_thread() not in threads
        assert scene.relay.sent[-1].body["messages"] == messages
        task.cancel()

    inspected(story)


async def test_viewers_share_one_task_and_a_quiet_stream_stays_alive(monkeypatch):
    """Both hear a comment when nothing has changed for a while."""
    monkeypatch.setattr("router.admin.feed.ALIVE_S", 0.01)
    feed = Feed(lambda: {"n": 1}, list, every_s=0.001)
    viewers = [feed.events(), feed.events()]
    for viewer in viewers:
        texts = [await anext(viewer)]
        while texts[-1] != b": alive\n\n":
            texts.append(await anext(viewer))
        assert sum(b'{"n":1}' in text for text in texts) == 1
    assert feed.viewers == 2
    for viewer in viewers:
        await viewer.aclose()
    await feed.aclose()


def test_what_is_being_loaded_is_on_its_card_and_others_stay_as_before():
    """With what it replaces."""

    async def story(one):
        await one.ask(hello(MODEL, tokens=1))
        one.sim.cards.set_foreign(0, 2 * GIB)
        asked = asyncio.create_task(one.ask(hello(OTHER_MODEL, tokens=1)))
        boards = []
        while not asked.done():
            await asyncio.sleep(0.2)
            boards.append(json.loads((await get(one.router.admin_url, "/router/board")).body))
        loading = next(board for board in boards if board["loading"] is not None)
        assert loading["loading"]["model"] == OTHER_MODEL
        assert loading["loading"]["expected_s"] > 0
        sinces = {board["loading"]["since"] for board in boards if board["loading"] is not None}
        assert len(sinces) == 1
        blocks = [block for board in boards for block in board["cards"][0]["blocks"] if block["kind"] == "loading"]
        assert {block["model"] for block in blocks} == {OTHER_MODEL}

    play(story)


async def test_what_cannot_be_read_now_holds_up_no_viewer():
    """A database that does not answer: the cards are as fresh as ever, and the reading ends with the last viewer."""
    read, ended = 0, asyncio.Event()

    async def prepare():
        nonlocal read
        read += 1
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    numbers = itertools.count()
    feed = Feed(lambda: {"n": next(numbers)}, list, prepare=prepare, every_s=0.001)
    viewer = feed.events()
    texts = [await anext(viewer) for _ in range(9)]
    assert sum(b"event: board" in text for text in texts) > 3
    assert read == 1
    await viewer.aclose()
    await feed.aclose()
    await asyncio.wait_for(ended.wait(), 60)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 3e8, -3e8])
def test_minutes_and_the_timeline_follow_a_clock_that_is_set_j10(jump_s):
    """None is lost, comes twice, is of the future, or ends before it begins."""
    clock, loop = Clock(), Clock()
    totals, timeline = Totals(SteadyTime(loop, clock)), Timeline(SteadyTime(loop, clock))

    def minute():
        timeline.observe([(0, "a")])
        totals.on(Finished("r", "t", "/api/chat", 200, "m", "m", "completed"))
        clock.now_s += 60
        loop.now_s += 60

    minute()
    timeline.on(Spilled("c", 2, 1))
    clock.now_s += jump_s
    minute()
    timeline.observe([])
    counted = totals.by_minute()
    assert [found["requests"] for found in counted] == [1, 1]
    assert counted[1]["at"] - counted[0]["at"] == 60
    assert clock.now_s - 180 <= counted[0]["at"] <= clock.now_s
    found = timeline.as_data()
    assert (found["spans"][0]["from"], found["spans"][0]["to"]) == (clock.now_s - 120, clock.now_s)
    assert [mark["at"] for mark in found["marks"]] == [clock.now_s - 60]
    assert found["since"] == clock.now_s - 120
    loop.now_s += 3700
    clock.now_s += 3700
    assert (totals.by_minute(), timeline.as_data()["spans"], timeline.as_data()["marks"]) == ([], [], [])
