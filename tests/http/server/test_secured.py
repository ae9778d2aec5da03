"""Clients of a listener with TLS before their handshake is over: counted, bounded in time, and told what is wrong."""

import asyncio
import os
import resource
import socket
import ssl
import struct
import time
from contextlib import contextmanager, suppress

import pytest

from router.http.server.limits import WireLimits
from router.http.server.listener import Listener
from router.http.server.secured import NOT_TLS, listening_on
from tests.certificates import certificate, needs_openssl

pytestmark = needs_openssl
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def has_ipv6():
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@contextmanager
def no_descriptors():
    """Let this process open nothing meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Hello:
    """Answers every request."""

    def take(self, cycle):
        cycle.respond(200, [], b"hello", adds_length=True)
        return True


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _way():
    """Neither with nor without tasks: the application is no edge."""


@pytest.fixture(name="opened")
async def _opened():
    """Collect what is to be closed."""
    opened = []
    yield opened
    for writer in opened:
        writer.transport.abort()
    await asyncio.sleep(0)


def listener(made, refused=None, **limits):
    def on_refused(status, text, client):
        if refused is not None:
            refused.append((status, text.decode(), client))

    return Listener(Hello(), limits=WireLimits(**limits), tls=made.server_side(), on_refused=on_refused)


async def silent(port, opened):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    opened.append(writer)
    return reader, writer


async def secret(port, made, opened):
    """Return the head of the answer to a request over TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=made.trusting())
    opened.append(writer)
    writer.write(GET)
    return await reader.readuntil(b"\r\n\r\n")


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_clients_that_begin_no_handshake_count_as_connections(made, opened):
    """Beyond the limit they are refused, however many there are; nothing more than some refused ones is held."""
    async with listener(made, connections=20, header_s=60.0) as running:
        clients = [await silent(running.port, opened) for _ in range(200)]
        await until(lambda: running.open_connections == 24)
        for _, writer in clients:
            writer.close()
        await until(lambda: running.open_connections == 0)


async def test_of_one_address_only_so_many_may_be_in_their_handshake(made, opened):
    async with listener(made, connections=100, connections_per_address=3, header_s=60.0) as running:
        clients = [await silent(running.port, opened) for _ in range(3)]
        await until(lambda: running.open_connections == 3)
        assert (await secret(running.port, made, opened)).startswith(b"HTTP/1.1 503 ")
        clients[0][1].close()
        await until(lambda: running.open_connections == 2)
        assert (await secret(running.port, made, opened)).startswith(b"HTTP/1.1 200 ")


async def test_those_silent_for_long_make_room_for_who_speaks(made, opened):
    """As idle connections do."""
    async with listener(made, connections=5, header_s=60.0) as running:
        silent_ones = [await silent(running.port, opened) for _ in range(5)]
        await until(lambda: running.open_connections == 5)
        await asyncio.sleep(1.1)
        head = await secret(running.port, made, opened)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(silent_ones) == 5


@pytest.mark.parametrize("start", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_handshake_has_the_time_of_a_head(made, opened, start):
    """Whatever of it has come."""
    async with listener(made, header_s=0.2) as running, asyncio.timeout(20):
        reader, writer = await silent(running.port, opened)
        writer.write(start)
        assert await reader.read() == b""
        await until(lambda: running.open_connections == 0)


@pytest.mark.parametrize("request_", [GET, b"POST /api/chat HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.0\r\n\r\n"])
async def test_plain_http_is_told_so_in_the_words_of_net_http(made, opened, request_):
    """And the operator, too."""
    refused = []
    async with listener(made, refused) as running, asyncio.timeout(20):
        reader, writer = await silent(running.port, opened)
        writer.write(request_)
        said = await reader.read()
        assert said == b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
        assert refused == [(400, NOT_TLS.decode(), "127.0.0.1")]
        writer.close()
        await until(lambda: running.open_connections == 0)


async def test_a_handshake_that_fails_is_reported_and_one_that_was_not_begun_is_not(made, opened):
    """A client that does not trust the certificate; port scans and health checks say nothing."""
    refused = []
    async with listener(made, refused) as running:
        (await silent(running.port, opened))[1].close()
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", running.port, ssl=ssl.create_default_context())
        await until(lambda: refused)
        assert [(status, client) for status, _, client in refused] == [(400, "127.0.0.1")]
        assert refused[0][1].startswith("the TLS handshake failed: ")
        reader, writer = await silent(running.port, opened)
        writer.write(b"\x80\x2e\x01")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert refused[1:] == [(400, "no TLS", "127.0.0.1")]
        await until(lambda: running.open_connections == 0)


async def test_a_stop_ends_handshakes_under_way(made, opened):
    """They leave nothing behind."""
    running = listener(made, header_s=60.0)
    await running.start()
    reader, _writer = await silent(running.port, opened)
    await until(lambda: running.open_connections == 1)
    before = len(asyncio.all_tasks())
    await running.stop(0.1)
    assert await reader.read() == b""
    assert running.open_connections == 0
    assert len(asyncio.all_tasks()) <= before


async def test_two_listeners_share_a_socket_as_at_a_reload(made, opened):
    """A connection that one takes is not the other one's, and no one is refused when the first ends."""
    first = listener(made)
    await first.start()
    async with Listener(Hello(), sockets=first.sockets(), tls=made.server_side()) as second:
        for _ in range(10):
            head = await secret(first.port, made, opened)
            assert head.startswith(b"HTTP/1.1 200 ")
        port = first.port
        await first.stop(0.1)
        assert second.port == port
        assert (await secret(port, made, opened)).startswith(b"HTTP/1.1 200 ")


async def test_without_free_descriptors_clients_wait_and_are_served_when_there_are_some(made, opened, monkeypatch):
    """Nothing is asked of a socket that cannot be accepted until a pause is over: it would be asked all the time."""
    monkeypatch.setattr("router.http.server.secured.PAUSE_S", 0.3)
    refused = []
    async with listener(made, refused, header_s=60.0) as running, asyncio.timeout(20):
        with socket.create_connection(("127.0.0.1", running.port)) as client, no_descriptors():
            await asyncio.sleep(0.1)
            assert running.open_connections == 0
            busy_s = time.thread_time()
            await asyncio.sleep(0.1)
            assert time.thread_time() - busy_s < 0.05
            assert client.fileno() >= 0
        assert (await secret(running.port, made, opened)).startswith(b"HTTP/1.1 200 ")
        assert refused == []


async def test_a_listener_that_stops_during_that_pause_stays_stopped(made, monkeypatch):
    """The pause ends after the stop, and touches no socket any more."""
    monkeypatch.setattr("router.http.server.secured.PAUSE_S", 0.1)
    said = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))
    running = listener(made)
    await running.start()
    with socket.create_connection(("127.0.0.1", running.port)), no_descriptors():
        await asyncio.sleep(0.05)
    await running.stop(0.0)
    await asyncio.sleep(0.2)
    assert (running.open_connections, said) == (0, [])


async def test_a_client_that_resets_before_it_speaks_is_no_one_to_report(made):
    """As a port scan does."""
    refused = []
    async with listener(made, refused, header_s=60.0) as running:
        client = socket.create_connection(("127.0.0.1", running.port))
        await until(lambda: running.open_connections == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: running.open_connections == 0)
        assert refused == []


async def test_of_a_host_whose_address_is_taken_nothing_stays_open():
    """And a socket of IPv6 takes no client of IPv4 away from another one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use"):
            await listening_on("127.0.0.1", taken.getsockname()[1])
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_a_socket_of_ipv6_leaves_clients_of_ipv4_to_another_one():
    """Also where it listens at every address."""
    [sock] = await listening_on("::", 0)
    with sock, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sock.getsockname()[1]))
