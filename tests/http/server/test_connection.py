"""One client's connection without a socket: its deadlines, its requests in turn, and how it ends."""

import asyncio

import pytest

from router.http.deadlines import NEVER, Deadlines
from router.http.server.connection import LINGER_S, Reading, Writing
from router.http.server.limits import WireLimits
from router.http.server.protocol import HttpProtocol
from router.http.server.shared import CROWDED, TOO_MANY, Shared

LIMITS = WireLimits(header_s=10.0, keep_alive_s=75.0, write_idle_s=300.0, connections=2)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def _way():
    """No edge is here: once is enough."""


class Transport(asyncio.Transport):
    """Keeps what is written; `left_bytes` is what the client has not taken."""

    def __init__(self, *, has_eof=True, address="10.0.0.1"):
        super().__init__()
        self.address = address
        self.data, self.left_bytes, self.has_eof = b"", 0, has_eof
        self.did = []

    def write(self, data):
        self.data += bytes(data)

    def get_extra_info(self, name, default=None):
        return (self.address, 1) if name == "peername" else default

    def get_write_buffer_size(self):
        return self.left_bytes

    def can_write_eof(self):
        return self.has_eof

    def is_closing(self):
        return "close" in self.did or "abort" in self.did

    def __getattribute__(self, name):
        if name in ("close", "abort", "write_eof", "pause_reading", "resume_reading"):
            return lambda: self.did.append(name)
        return super().__getattribute__(name)


class App:
    """Keeps the requests that it is given; a task does nothing until it is cancelled."""

    def __init__(self, error=None):
        self.cycles, self.error = [], error

    def take(self, _):
        if self.error is not None:
            raise self.error
        return False

    async def serve(self, cycle):
        self.cycles.append(cycle)
        await asyncio.Event().wait()


class Client:
    """A connection under test."""

    def __init__(self, app=None, shared=None, **transport):
        self.app = app or App()
        self.shared = shared or Shared(self.app, LIMITS, Deadlines(1000.0))
        self.transport = Transport(**transport)
        self.connection = HttpProtocol(self.shared, asyncio.get_running_loop())
        self.connection.connection_made(self.transport)

    async def says(self, *pieces):
        for piece in pieces:
            self.connection.data_received(piece)
        await asyncio.sleep(0)

    async def leaves(self):
        self.connection.connection_lost(None)
        await asyncio.gather(*self.shared.tasks, return_exceptions=True)
        for cycle in self.app.cycles:
            cycle.task.cancel()
        await asyncio.sleep(0)

    @property
    def waits_s(self):
        return self.connection.deadline - asyncio.get_running_loop().time()

    def answer(self, number=0):
        self.app.cycles[number].respond(200, ((b"content-length", b"2"),), b"ok")

    @property
    def answers(self):
        return self.transport.data.count(b"HTTP/1.1 ")


async def test_a_connection_too_many_is_refused_in_ollamas_words():
    shared = Shared(App(), LIMITS, Deadlines(1000.0))
    clients = [Client(shared=shared) for _ in range(3)]
    assert [client.answers for client in clients] == [0, 0, 1]
    assert clients[2].transport.data.endswith(TOO_MANY)
    for client in clients:
        await client.leaves()
    assert shared.connections == set()


async def test_idle_connections_go_before_a_new_one_is_refused():
    """The one that is idle for longest; not one that works, has begun a request, or was used just now."""
    limits = WireLimits(connections=4)
    shared = Shared(App(), limits, Deadlines(1000.0))
    clients = [Client(shared=shared) for _ in range(4)]
    at_work, half_a_head, used, longer_idle = clients
    await at_work.says(GET)
    await half_a_head.says(GET[:10])
    await longer_idle.says(GET)
    shared.app.cycles[-1].respond(200, (), b"")
    await asyncio.sleep(5)
    await used.says(GET)
    shared.app.cycles[-1].respond(200, (), b"")
    newcomer = Client(shared=shared)
    assert longer_idle.transport.did == ["abort"]
    assert (used.transport.did, newcomer.answers) == ([], 0)
    await longer_idle.leaves()
    refused = Client(shared=shared)
    assert (refused.answers, refused.transport.data.endswith(TOO_MANY)) == (1, True)
    await asyncio.sleep(2)
    admitted = Client(shared=shared)
    assert admitted.answers == 0
    for client in (*clients[:3], newcomer, refused, admitted):
        await client.leaves()
    assert (shared.connections, shared.clients) == (set(), {})


async def test_one_address_cannot_take_every_connection():
    """It is told so; others get in, and in place of its idle ones if need be."""
    limits = WireLimits(connections=5, connections_per_address=3)
    shared = Shared(App(), limits, Deadlines(1000.0))
    many = [Client(shared=shared, address="10.0.0.1") for _ in range(4)]
    assert [client.answers for client in many] == [0, 0, 0, 1]
    assert many[3].transport.data.endswith(CROWDED)
    await many[3].leaves()
    others = [Client(shared=shared, address=f"10.0.0.{number}") for number in (2, 3)]
    await asyncio.sleep(2)
    others.append(Client(shared=shared, address="10.0.0.4"))
    assert [client.answers for client in others] == [0, 0, 0]
    assert ["abort"] in [client.transport.did for client in many]
    assert all(client.transport.did == [] for client in others)
    for client in (*many[:3], *others):
        await client.leaves()


async def test_an_address_at_its_limit_keeps_nobody_else_out():
    """However often it is refused, and however long its refused connections stay open."""
    limits = WireLimits(connections=8, connections_per_address=3)
    shared = Shared(App(), limits, Deadlines(1000.0))
    many = [Client(shared=shared, address="10.0.0.1") for _ in range(3)]
    for client in many:
        await client.says(GET)
    others = []
    for number in range(5):
        many += [Client(shared=shared, address="10.0.0.1") for _ in range(3)]
        others.append(Client(shared=shared, address=f"10.0.1.{number}"))
        await asyncio.sleep(1.5)
    assert [client.answers for client in others] == [0] * 5
    assert [client.answers for client in many] == [0] * 3 + [1] * 15
    for client in (*many, *others):
        await client.leaves()
    assert (shared.connections, shared.clients) == (set(), {})


async def test_refused_connections_make_no_room():
    """Their end, which they only wait for, lets no more connections in than the limit says."""
    shared = Shared(App(), WireLimits(connections=2), Deadlines(1000.0))
    clients = [Client(shared=shared) for _ in range(2)]
    for client in clients:
        await client.says(GET)
    for _ in range(5):
        clients.append(Client(shared=shared))
        await asyncio.sleep(1.5)
    assert [client.answers for client in clients] == [0, 0, 1, 1, 1, 1, 1]
    for client in clients:
        await client.leaves()


async def test_a_flood_of_connections_costs_no_search_each():
    """Where there is no room none is looked for again at once."""
    shared = Shared(App(), WireLimits(connections=2), Deadlines(1000.0))
    clients = [Client(shared=shared) for _ in range(2)]
    for client in clients:
        await client.says(GET)
    looked = []

    class Counting(set):
        def __iter__(self):
            looked.append(len(self))
            return super().__iter__()

    shared.everyone.connections = Counting(shared.everyone.connections)
    flood = [Client(shared=shared) for _ in range(50)]
    assert all(client.answers == 1 for client in flood)
    assert 1 <= len(looked) <= 2
    for client in (*clients, *flood):
        await client.leaves()


async def test_a_head_must_come_in_time_and_an_answered_client_may_rest_longer():
    """While a request is at work there is no deadline."""
    client = Client()
    assert client.waits_s == pytest.approx(LIMITS.header_s, abs=1)
    await client.says(GET[:10])
    assert client.waits_s == pytest.approx(LIMITS.header_s, abs=1)
    await client.says(GET[10:])
    assert client.connection.deadline == NEVER
    client.answer()
    assert client.waits_s == pytest.approx(LIMITS.keep_alive_s, abs=1)
    await client.leaves()


@pytest.mark.parametrize(("said", "done"), [(b"", ["close"]), (GET[:10], ["write_eof"])], ids=["idle", "half a head"])
async def test_an_overdue_client_is_told_only_if_it_has_begun(said, done):
    """408, or the end of an idle connection."""
    client = Client()
    await client.says(*([said] if said else []))
    client.connection.expire()
    assert client.transport.did == done
    assert client.transport.data.startswith(b"HTTP/1.1 408 ") is bool(said)
    await client.leaves()


async def test_a_client_that_does_not_go_after_the_last_answer_is_cut_off():
    """After a moment in which it may read it."""
    client = Client()
    client.connection.refuse(400)
    assert (client.connection.reading, client.waits_s) == (Reading.DISCARDING, pytest.approx(LINGER_S, abs=0.5))
    client.connection.expire()
    assert client.transport.did == ["write_eof", "abort"]
    await client.leaves()


async def test_a_transport_that_cannot_be_half_closed_is_closed():
    """TLS, say."""
    client = Client(has_eof=False)
    client.connection.refuse(400)
    assert client.transport.did == ["close"]
    await client.leaves()


async def test_a_client_that_takes_nothing_is_cut_off_and_one_that_takes_something_is_not():
    """Each time it has as long again."""
    client = Client()
    await client.says(GET)
    client.transport.left_bytes = 1000
    client.connection.pause_writing()
    client.transport.left_bytes = 900
    client.connection.expire()
    assert client.transport.did == []
    assert client.waits_s == pytest.approx(LIMITS.write_idle_s, abs=1)
    client.connection.expire()
    assert client.transport.did == ["abort"]
    await client.leaves()


async def test_a_closed_client_that_takes_nothing_is_cut_off():
    """Though nobody has paused for it."""
    client = Client()
    client.transport.left_bytes = 10
    client.transport.close()
    client.connection.expire()
    assert client.transport.did == ["close", "abort"]
    await client.leaves()


async def test_pipelined_requests_are_answered_in_turn():
    """The reading stops meanwhile, and goes on."""
    client = Client()
    await client.says(GET + GET)
    assert (len(client.app.cycles), client.transport.did) == (1, ["pause_reading"])
    client.answer()
    await asyncio.sleep(0)
    assert len(client.app.cycles) == 2
    client.answer(1)
    assert (client.answers, client.transport.did) == (2, ["pause_reading", "resume_reading"])
    await client.leaves()


async def test_a_pipelined_request_whose_body_is_still_to_come_is_read_on_in_its_turn():
    """Its head had stopped the reading."""
    client = Client()
    await client.says(GET + POST)
    client.answer()
    assert client.transport.did == ["pause_reading", "resume_reading"]
    await asyncio.sleep(0)
    reading = asyncio.create_task(client.app.cycles[1].read())
    await client.says(b"abc")
    assert await reading == b"abc"
    await client.leaves()


async def test_a_body_in_front_does_not_resume_the_reading_of_a_pipelined_request():
    """It is not its turn yet."""
    client = Client()
    await client.says(GET + GET)
    client.connection.resume_body()
    assert client.transport.did == ["pause_reading"]
    await client.connection.drain()
    await client.leaves()


async def test_the_next_request_waits_until_the_client_has_taken_the_answer():
    """Nothing further for a client that does not read."""
    client = Client()
    await client.says(GET + GET)
    client.connection.pause_writing()
    client.answer()
    assert (client.connection.writing, len(client.app.cycles)) == (Writing.STALLED, 1)
    client.connection.resume_writing()
    await asyncio.sleep(0)
    assert (client.connection.writing, len(client.app.cycles)) == (Writing.FREE, 2)
    await client.leaves()


async def test_a_request_that_comes_while_an_answer_is_held_waits_too():
    """It was under way already."""
    client = Client()
    await client.says(GET)
    client.connection.pause_writing()
    client.answer()
    await client.says(GET)
    assert len(client.app.cycles) == 1
    await client.leaves()


async def test_a_client_that_leaves_while_its_answer_is_held_leaves_nothing_behind():
    """No further request starts."""
    client = Client()
    await client.says(GET + GET)
    client.connection.pause_writing()
    client.answer()
    waiting = asyncio.create_task(client.connection.drain())
    await asyncio.sleep(0)
    await client.leaves()
    await waiting
    assert (len(client.app.cycles), client.connection.queue, client.shared.connections) == (1, [], set())


async def test_an_answer_ahead_of_the_end_of_its_request_ends_the_connection():
    """What still comes is read and thrown away, so that the answer survives."""
    client = Client()
    await client.says(POST)
    client.answer()
    assert (client.connection.reading, client.transport.did) == (Reading.DISCARDING, ["write_eof"])
    await client.says(b"abc" + GET)
    assert (len(client.app.cycles), client.answers) == (1, 1)
    await client.leaves()


async def test_the_last_answer_closes_the_connection_and_drops_what_was_pipelined():
    """The client has said so."""
    client = Client()
    await client.says(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    client.answer()
    assert client.transport.did == ["close"]
    await client.leaves()


async def test_an_answer_on_a_connection_that_is_closing_starts_nothing():
    """Its client has left."""
    client = Client()
    await client.says(GET + GET)
    client.transport.abort()
    client.answer()
    client.connection.cycle_done(client.app.cycles[0])
    await asyncio.sleep(0)
    assert len(client.app.cycles) == 1
    await client.leaves()


async def test_an_application_that_fails_to_take_a_request_costs_that_request():
    """Its client gets an error."""
    client = Client(App(ZeroDivisionError("a fault")))
    await client.says(GET)
    assert client.transport.data.startswith(b"HTTP/1.1 500 ")
    await client.leaves()


async def test_nothing_is_refused_beside_an_answer_under_way():
    """One answer per request; the connection ends after it."""
    client = Client()
    await client.says(GET + b"nonsense\r\n\r\n")
    assert client.answers == 0
    client.answer()
    assert (client.answers, client.transport.did[-1]) == (1, "close")
    await client.leaves()


@pytest.mark.parametrize("has_answer", [True, False])
async def test_a_body_that_breaks_off_cancels_its_request(has_answer):
    """It is refused, or cut where its answer has begun."""
    client = Client()
    await client.says(CHUNKED)
    (cycle,) = client.app.cycles
    if has_answer:
        cycle.start(200, ())
        cycle.push(b"part")
    await client.says(b"zz\r\n")
    assert cycle.is_gone
    assert client.transport.did == (["abort"] if has_answer else ["write_eof"])
    assert (b"HTTP/1.1 400 " in client.transport.data) is not has_answer
    await client.leaves()


async def test_a_body_without_end_stops_the_reading_while_nobody_takes_it():
    """After the answer it is thrown away."""
    client = Client()
    await client.says(POST.replace(b"3", b"9999999"), bytes(600 << 10))
    assert client.transport.did == ["pause_reading"]
    assert len(await client.app.cycles[0].read()) == 600 << 10
    assert client.transport.did == ["pause_reading", "resume_reading"]
    await client.leaves()


@pytest.mark.parametrize(
    ("said", "done", "reading"),
    [(b"", ["close"], Reading.BETWEEN), (GET, [], Reading.DISCARDING), (POST, [], Reading.BODY)],
    ids=["idle", "at work", "half a body"],
)
async def test_a_listener_that_stops_lets_what_has_begun_end(said, done, reading):
    """Nothing new is read; the answer is the last one."""
    client = Client()
    await client.says(*([said] if said else []))
    client.connection.shutdown()
    assert (client.transport.did, client.connection.reading) == (done, reading)
    assert all(not cycle.keep_alive for cycle in client.app.cycles)
    await client.leaves()


async def test_an_interruption_reaches_work_without_a_task():
    """Each request of the connection."""
    client = Client()
    await client.says(GET)
    heard = []

    class Work:
        def interrupt(self):
            heard.append("interrupt")

    client.app.cycles[0].process_with(Work())
    client.connection.interrupt()
    assert heard == ["interrupt"]
    await client.leaves()


UPGRADE = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUPGRADE: h2c\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("cut", range(1, len(UPGRADE)))
async def test_an_upgrade_is_ignored_wherever_its_head_is_cut_e5(cut):
    """Into segments, by whatever is between; the body is read, and so is the next request."""
    client = Client()
    await client.says(UPGRADE[:cut], UPGRADE[cut:] + GET)
    first = client.app.cycles[0]
    assert (first.head.method, first.take_body(), b"upgrade" in first.head.by_name) == ("POST", b"abc", False)
    client.answer()
    await asyncio.sleep(0)
    assert [cycle.head.method for cycle in client.app.cycles] == ["POST", "GET"]
    await client.leaves()


async def test_many_upgrades_in_one_segment_are_parsed_once_each():
    """Neither by recursion nor by copying the rest of the segment each time."""
    client = Client()
    await client.says(UPGRADE * 700)
    assert len(client.connection.queue) == 700
    await client.leaves()


@pytest.mark.parametrize("chunked", [b"3\r\nabc\r\n0\r\n\r\n"])
async def test_a_chunked_body_behind_an_upgrade_is_read_e5(chunked):
    """It is framed like any other."""
    client = Client()
    head = UPGRADE[:-3].replace(b"Content-Length: 3", b"Transfer-Encoding: chunked")
    await client.says(head + chunked + GET)
    assert client.app.cycles[0].take_body() == b"abc"
    await client.leaves()


async def test_a_tunnel_is_refused_e5():
    """Nothing that follows is taken for a request."""
    client = Client()
    await client.says(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET)
    assert client.transport.data.startswith(b"HTTP/1.1 400 ")
    assert (client.answers, client.app.cycles) == (1, [])
    await client.leaves()
