"""Who a client is: what trusted proxies say, and nobody else."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.server.limits import WireLimits
from router.http.server.listener import Listener
from router.http.server.proxies import V2, Proxies, read_header
from tests.fakes import RawClient, request_bytes

TRUSTED = Proxies(map(ipaddress.ip_network, ("127.0.0.1", "10.0.0.0/8", "fd00::/8")))
GET = request_bytes("GET", "/")


def forwarded(*lines: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"x-forwarded-for", line.encode("latin-1")) for line in lines)]


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("10.1.2.3", ["203.0.113.7"], "203.0.113.7"),
        ("10.1.2.3", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),  # the first one is the client's own word
        ("10.1.2.3", ["203.0.113.7, 10.9.9.9, 127.0.0.1"], "203.0.113.7"),
        ("10.1.2.3", ["198.51.100.1", "203.0.113.7", "10.9.9.9"], "203.0.113.7"),
        ("10.1.2.3", ["10.9.9.9, 10.8.8.8"], "10.9.9.9"),
        ("10.1.2.3", ["203.0.113.7:4711"], "203.0.113.7"),
        ("fd00::1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.1.2.3", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("10.1.2.3", ["unknown"], "10.1.2.3"),
        ("10.1.2.3", ["<script>, 10.9.9.9"], "10.9.9.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_client_is_the_last_address_that_no_trusted_proxy_has(peer: str, lines: list[str], client: str) -> None:
    """What comes before it may be invented. An untrusted peer is the client itself."""
    assert TRUSTED.client_of(peer, forwarded(*lines)) == client


def test_without_trusted_proxies_nobody_is_believed() -> None:
    """The peer is the client."""
    assert Proxies().client_of("127.0.0.1", forwarded("203.0.113.7")) == "127.0.0.1"


def v2(source: str, target: str = "10.0.0.1", *, command: int = 0x21, more: bytes = b"", family: int = 0) -> bytes:
    first, second = ipaddress.ip_address(source), ipaddress.ip_address(target)
    body = first.packed + second.packed + struct.pack("!HH", 4711, 80) + more
    return V2 + bytes((command, family or (0x11 if first.version == 4 else 0x21))) + struct.pack("!H", len(body)) + body


GOOD = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n", "203.0.113.7"),
    (b"PROXY TCP6 2001:db8::7 fd00::1 4711 80\r\n", "2001:db8::7"),
    (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 4711 80\r\n", "203.0.113.7"),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", ""),
    (v2("203.0.113.7"), "203.0.113.7"),
    (v2("2001:db8::7", "fd00::1"), "2001:db8::7"),
    (v2("203.0.113.7", more=b"\x04\x00\x01x" * 100), "203.0.113.7"),
    (v2("203.0.113.7", command=0x20), ""),
    (v2("203.0.113.7", family=0x31), ""),
    (v2("203.0.113.7", command=0x20, family=0xFF), ""),
]
BAD = [
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01\x02",
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4 203.0.113.7\r\n",
    b"PROXY TCP4 2001:db8::7 fd00::1 1 2\r\n",
    b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 99999\r\n",
    b"PROXY TCP4 203.0.113.777 10.0.0.1 4711 80\r\n",
    b"PROXY TCP4 \xff 10.0.0.1 4711 80\r\n",
    b"PROXY " + b"x" * 200,
    V2 + b"\x11\x11\x00\x0c" + bytes(12),
    V2 + b"\x21\x11\xff\xff",
    V2 + b"\x21\x11\x00\x04" + bytes(4),
    v2("203.0.113.7", family=0xFF),
    v2("203.0.113.7", family=0x13),
    v2("203.0.113.7", family=0x01),
    b"\r\n\r\nGET",
]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_a_header_is_read_however_it_is_cut(header: bytes, client: str) -> None:
    """Each part of it is incomplete, and what follows does not belong to it."""
    assert all(read_header(header[:end]) is None for end in range(1, len(header)))
    assert read_header(header + GET) == (len(header), client)


@pytest.mark.parametrize("data", BAD)
def test_anything_else_is_no_header(data: bytes) -> None:
    """It is refused, and never waited for longer than the longest header."""
    with pytest.raises(ValueError):
        assert read_header(data) is not None


@given(data=st.binary(min_size=1, max_size=600), start=st.sampled_from([b"", b"PROXY TCP4 ", V2, V2 + b"\x21\x11\x00"]))
def test_no_bytes_crash_the_reader(data: bytes, start: bytes) -> None:
    """A header, an incomplete one, or ValueError."""
    try:
        found = read_header(start + data)
    except ValueError:
        return
    assert found is None or 0 < found[0] <= len(start + data)


class Who:
    """An application that answers with the client's address."""

    def take(self, cycle) -> bool:
        body = cycle.carrier.client.encode()
        cycle.respond(200, [(b"content-length", b"%d" % len(body))], body)
        return True

    async def serve(self, _cycle) -> None:
        raise AssertionError


@pytest.mark.real_time
@pytest.mark.parametrize(("header", "client"), GOOD)
@pytest.mark.parametrize("is_cut", [False, True])
async def test_requests_after_a_header_are_those_of_its_client(header: bytes, client: str, is_cut: bool) -> None:
    """All of the connection, pipelined ones too; a header that names nobody leaves the peer."""
    async with Listener(Who(), proxies=TRUSTED) as listener:
        raw = await RawClient.to(listener.port)
        if is_cut:
            for at in range(len(header)):
                await raw.send(header[at : at + 1])
            await raw.send(GET + GET)
        else:
            await raw.send(header + GET + GET)
        assert [(await raw.reply()).body.decode() for _ in range(2)] == [client or "127.0.0.1"] * 2
        raw.close()


@pytest.mark.real_time
@pytest.mark.parametrize("data", [data for data in BAD if data != b"\r\n\r\nGET"])
async def test_a_trusted_proxy_without_a_header_is_refused(data: bytes) -> None:
    """By a 400, after which the connection closes."""
    async with Listener(Who(), proxies=TRUSTED) as listener:
        raw = await RawClient.to(listener.port)
        await raw.send(data + GET)
        assert (await raw.reply()).status == 400
        raw.close()


@pytest.mark.real_time
async def test_a_header_of_anybody_else_is_a_bad_request() -> None:
    """Without one they are served as themselves."""
    async with Listener(Who(), proxies=Proxies(map(ipaddress.ip_network, ["10.0.0.0/8"]))) as listener:
        raw = await RawClient.to(listener.port)
        assert (await raw.ask("GET", "/")).body == b"127.0.0.1"
        raw.close()
        raw = await RawClient.to(listener.port)
        await raw.send(GOOD[0][0] + GET)
        assert (await raw.reply()).status == 400
        raw.close()


@pytest.mark.real_time
async def test_a_proxy_that_sends_half_a_header_is_closed_at_the_deadline() -> None:
    """As any other client that sends half a head."""
    async with Listener(Who(), proxies=TRUSTED, limits=WireLimits(header_s=0.2)) as listener:
        raw = await RawClient.to(listener.port)
        await raw.send(b"PROXY TCP4")
        assert await raw.is_closed()
        raw.close()
