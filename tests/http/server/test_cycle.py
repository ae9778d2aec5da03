"""One request and its answer without a socket: what may be done in which phase, and what is sent then."""

import asyncio

import pytest

from router.http.server.cycle import LARGE_BYTES, ClientGone, Cycle, Phase
from router.http.server.heads import Head
from router.http.server.limits import GONE_WRONG, HIGH_WATER_BYTES


@pytest.fixture(autouse=True)
def _way():
    """No edge is here: once is enough."""


class Transport:
    """Keeps what is written."""

    def __init__(self):
        self.data, self.writes, self.is_aborted = b"", 0, False

    def write(self, data):
        self.data += data
        self.writes += 1

    def abort(self):
        self.is_aborted = True


class Carrier:
    """A connection of one cycle. `can_write` is set while the client reads."""

    def __init__(self):
        self.transport, self.loop = Transport(), asyncio.get_running_loop()
        self.done, self.resumed = [], 0
        self.can_write = asyncio.Event()
        self.can_write.set()

    @property
    def is_write_paused(self):
        return not self.can_write.is_set()

    def resume_body(self):
        self.resumed += 1

    async def drain(self):
        await self.can_write.wait()

    def cycle_done(self, cycle):
        self.done.append(cycle)


def cycle_of(method="POST", *, is_whole=True, **more):
    head = Head(method, b"/", b"/", [], {})
    return Cycle(Carrier(), head, request_complete=is_whole, **more)


def sent(cycle):
    """Head and body of the answer so far."""
    head, _, body = cycle.carrier.transport.data.partition(b"\r\n\r\n")
    return head, body


TEXT = ((b"content-type", b"text/plain"),)


async def test_a_whole_answer_is_one_write_and_ends_the_cycle():
    """With further header lines that are rendered already."""
    cycle = cycle_of()
    cycle.respond(200, (*TEXT, (b"content-length", b"2")), b"hi", b"x: y\r\n")
    head, body = sent(cycle)
    assert (head.startswith(b"HTTP/1.1 200 OK\r\n"), b"\r\nx: y\r\n" in head, body) == (True, True, b"hi")
    assert (cycle.carrier.transport.writes, cycle.carrier.done, cycle.is_complete) == (1, [cycle], True)


async def test_a_head_leaves_with_the_first_piece_even_an_empty_one():
    """And pieces are chunks where the length is not known."""
    cycle = cycle_of()
    cycle.start(200, TEXT)
    assert cycle.carrier.transport.writes == 0
    await cycle.write(b"", more=True)
    assert (sent(cycle)[1], cycle.carrier.transport.writes) == (b"", 1)
    assert cycle.push(b"abc")
    await cycle.write(b"", more=False)
    assert sent(cycle)[1] == b"3\r\nabc\r\n0\r\n\r\n"
    assert cycle.carrier.done == [cycle]


async def test_an_empty_piece_after_the_head_writes_nothing():
    """An empty chunk would end the body."""
    cycle = cycle_of()
    cycle.start(200, TEXT)
    await cycle.write(b"a", more=True)
    writes = cycle.carrier.transport.writes
    await cycle.write(b"", more=True)
    assert cycle.carrier.transport.writes == writes


async def test_a_large_piece_is_framed_like_a_small_one():
    """With and without chunks."""
    large = bytes(LARGE_BYTES)
    for headers, framed in (
        (TEXT, b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)),
        (((b"content-length", b"%d" % len(large)),), large),
    ):
        cycle = cycle_of()
        cycle.respond(200, headers, large)
        assert sent(cycle)[1] == framed


@pytest.mark.parametrize(("body", "more"), [(b"abcd", False), (b"ab", False), (b"abcd", True)])
async def test_a_body_that_is_not_as_long_as_announced_is_a_fault(body, more):
    """A client would wait for the rest, or take it for the next answer."""
    cycle = cycle_of()
    cycle.start(200, ((b"content-length", b"3"),))
    with pytest.raises(RuntimeError, match="content-length"):
        await cycle.write(body, more=more)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_an_answer_without_a_body_sends_none(method, status):
    """Whatever is handed over."""
    cycle = cycle_of(method)
    cycle.respond(status, ((b"content-length", b"2"),), b"hi")
    assert sent(cycle)[1] == b""


async def test_a_second_answer_is_a_fault():
    """In each way of giving one; and so is a piece without a beginning."""
    cycle = cycle_of()
    with pytest.raises(RuntimeError, match="open"):
        await cycle.write(b"a", more=True)
    cycle.start(200, TEXT)
    for again in (lambda: cycle.respond(200, TEXT, b""), lambda: cycle.start(200, TEXT)):
        with pytest.raises(RuntimeError, match="started"):
            again()
    await cycle.write(b"", more=False)
    with pytest.raises(RuntimeError, match="complete"):
        await cycle.write(b"a", more=True)


async def test_nothing_is_sent_to_a_client_that_has_left():
    """Without an error: whoever answers need not know."""
    cycle = cycle_of()
    cycle.leave()
    cycle.respond(200, TEXT, b"a")
    cycle.start(200, TEXT)
    assert cycle.push(b"a")
    await cycle.write(b"a", more=False)
    assert (cycle.is_gone, cycle.has_client_gone(), cycle.carrier.transport.data) == (True, True, b"")


async def test_a_client_that_leaves_after_its_answer_has_not_left():
    """It has all that it asked for."""
    cycle = cycle_of()
    cycle.respond(200, TEXT, b"")
    cycle.leave()
    assert (cycle.is_gone, cycle.is_complete) == (False, True)


async def test_a_slow_client_is_waited_for():
    """After a piece, not after the last one; a pushed piece says that it should be."""
    cycle = cycle_of()
    cycle.start(200, TEXT)
    cycle.carrier.can_write.clear()
    assert cycle.push(b"a") is False
    writing = asyncio.create_task(cycle.write(b"b", more=True))
    draining = asyncio.create_task(cycle.drain())
    await asyncio.sleep(0)
    assert not writing.done() and not draining.done()
    cycle.carrier.can_write.set()
    await asyncio.gather(writing, draining)
    cycle.carrier.can_write.clear()
    await cycle.write(b"", more=False)


async def test_a_body_is_read_as_it_comes_or_taken_when_it_is_whole():
    """An empty piece is its end; a long one that was held back lets the connection read on."""
    cycle = cycle_of(is_whole=False)
    assert cycle.take_body() is None
    reading = asyncio.create_task(cycle.read())
    await asyncio.sleep(0)
    cycle.feed(b"a")
    assert await reading == b"a"
    cycle.feed(bytes(HIGH_WATER_BYTES))
    cycle.feed(b"b")
    assert (len(await cycle.read()), cycle.carrier.resumed) == (HIGH_WATER_BYTES + 1, 1)
    cycle.feed(b"c")
    cycle.feed(b"d")
    cycle.end_request()
    assert (cycle.take_body(), await cycle.read()) == (b"cd", b"")


async def test_a_client_that_waits_for_leave_to_send_gets_it_once_and_only_ahead_of_an_answer():
    """When its body is read."""
    cycle = cycle_of(is_whole=False, expects_continue=True)
    cycle.feed(b"a")
    assert await cycle.read() == b"a"
    cycle.feed(b"b")
    await cycle.read()
    assert cycle.carrier.transport.data == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_client_that_leaves_ends_the_reading_of_its_body():
    """Whether it is waited for or comes back later."""
    cycle = cycle_of(is_whole=False)
    reading = asyncio.create_task(cycle.read())
    await asyncio.sleep(0)
    cycle.leave()
    with pytest.raises(ClientGone):
        await reading
    with pytest.raises(ClientGone):
        await cycle.read()


@pytest.mark.parametrize("end", ["complete", "gone"])
async def test_the_end_of_a_cycle_can_be_awaited(end):
    """Its answer is complete, or its client has left; news of its body are no end."""
    cycle = cycle_of(is_whole=False)
    waiting = asyncio.create_task(cycle.wait_until_ended())
    await asyncio.sleep(0)
    cycle.feed(b"a")
    await asyncio.sleep(0)
    assert not waiting.done()
    if end == "gone":
        cycle.leave()
    else:
        cycle.respond(200, TEXT, b"")
    await asyncio.wait_for(waiting, 30)
    await cycle.wait_until_ended()


async def test_work_that_ends_without_an_answer_is_a_plain_error():
    """Or a visible cut where the answer has begun."""
    cycle = cycle_of()
    cycle.abandon()
    head, body = sent(cycle)
    assert (head.startswith(b"HTTP/1.1 500 "), b"connection: close" in head, body) == (True, True, GONE_WRONG)
    begun = cycle_of()
    begun.start(200, TEXT)
    begun.abandon()
    assert sent(begun)[0].startswith(b"HTTP/1.1 500 ")
    cut = cycle_of()
    cut.start(200, TEXT)
    cut.push(b"a")
    cut.abandon()
    assert (cut.carrier.transport.is_aborted, cut.is_complete) == (True, False)


async def test_work_that_fails_after_its_answer_sends_no_second_one():
    """A client would take it for the answer to its next request."""
    cycle = cycle_of()
    cycle.respond(200, TEXT, b"hi", adds_length=True)
    before = sent(cycle)
    cycle.abandon()
    assert (sent(cycle), len(cycle.carrier.done)) == (before, 1)


async def test_a_task_that_fails_or_forgets_to_answer_costs_one_request():
    """Its client gets an error; what is to be done at the end is done."""

    async def fails():
        raise ValueError("a fault")

    async def forgets():
        return

    for work in (fails, forgets):
        cycle, ended = cycle_of(), []
        cycle.process_in_task(work, lambda ended=ended: ended.append(True))
        await asyncio.wait([cycle.task])
        await asyncio.sleep(0)
        assert (sent(cycle)[1], ended) == (GONE_WRONG, [True])


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_that_leaves_cancels_the_task_at_work(has_begun):
    """Which is no error; also ahead of its first step."""
    cycle, ended = cycle_of(), []
    cycle.process_in_task(asyncio.Event().wait, lambda: ended.append(True))
    if has_begun:
        await asyncio.sleep(0)
    cycle.leave()
    await asyncio.wait([cycle.task])
    await asyncio.sleep(0)
    assert (cycle.task.cancelled(), cycle.carrier.transport.data, ended) == (not has_begun, b"", [True])


async def test_a_task_that_somebody_else_cancels_ends_as_cancelled():
    """The listener does so when it stops, and waits for it."""
    cycle = cycle_of()
    cycle.process_in_task(asyncio.Event().wait)
    await asyncio.sleep(0)
    cycle.task.cancel()
    await asyncio.wait([cycle.task])
    assert (cycle.task.cancelled(), cycle.phase) == (True, Phase.OPEN)


class Work:
    """Work without a task."""

    def __init__(self):
        self.heard = []

    def give_up(self):
        self.heard.append("give up")

    def interrupt(self):
        self.heard.append("interrupt")


async def test_work_without_a_task_hears_once_that_its_client_has_left_or_time_is_over():
    """Not both, and nothing once it is done."""
    for first, other in (("leave", "interrupt"), ("interrupt", "leave")):
        cycle, work = cycle_of(), Work()
        cycle.process_with(work)
        getattr(cycle, first)()
        getattr(cycle, other)()
        assert work.heard == ["give up" if first == "leave" else "interrupt"]
    cycle, work = cycle_of(), Work()
    cycle.process_with(work)
    cycle.respond(200, TEXT, b"")
    cycle.interrupt()
    cycle.leave()
    assert work.heard == []
