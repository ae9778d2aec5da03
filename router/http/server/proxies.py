"""Proxies in front of the router that are trusted to say who a client is: X-Forwarded-For, and the PROXY protocol.

Whoever else says so is not believed. The PROXY protocol is HAProxy's, versions 1 and 2: a header in front of the first
request of a connection (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from router.http.server.connection import DISCARDING
from router.http.server.protocol import HttpProtocol, OnRefused
from router.http.server.shared import Shared

Network = IPv4Network | IPv6Network

V1, V1_BYTES = b"PROXY ", 107
"""The start of a header of version 1, and its longest form with its line break."""

V2, V2_HEAD_BYTES, V2_MOST_BYTES = b"\r\n\r\n\x00\r\nQUIT\n", 16, 4096
"""The start of a header of version 2, the bytes up to its addresses, and the most that are read after those."""

MOST_HOPS = 64
_SIZES = {0x1: 4, 0x2: 16}  # bytes of an address by the family in a header of version 2
_FAMILIES = frozenset((0, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32))  # all others are to be refused (its section 2.2)


class Proxies:
    """The trusted proxies, as networks."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self.networks = tuple(networks)
        self.trusts = lru_cache(maxsize=512)(self._trusts)

    def _trusts(self, address: str) -> bool:
        """Return True for the address of a trusted proxy."""
        found = _parsed(address)
        return found is not None and any(found in network for network in self.networks)

    def client_of(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Return the address of the client for whom `peer` sent `headers`: the last one that no trusted proxy has."""
        if not self.networks or not self.trusts(peer):
            return peer
        lines = [value for name, value in headers if name == b"x-forwarded-for"]
        for hop in reversed(b",".join(lines).decode("latin-1").split(",")[-MOST_HOPS:]):
            address = _parsed(_without_port(hop.strip()))
            if address is None:
                return peer
            peer = str(address)
            if not self.trusts(peer):
                return peer
        return peer


class ProxiedProtocol(HttpProtocol):
    """A connection that begins with a header of the PROXY protocol if a trusted proxy has made it."""

    def __init__(
        self, shared: Shared, loop: asyncio.AbstractEventLoop, on_refused: OnRefused, proxies: Proxies
    ) -> None:
        super().__init__(shared, loop, on_refused)
        self._proxies = proxies
        self._early: bytes | None = b""  # bytes of a header that is not complete; None after it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._proxies.trusts(self.client):
            self._early = None

    def data_received(self, data: bytes) -> None:
        if self._early is not None and self.reading is not DISCARDING:
            self._early += data
            try:
                found = read_header(self._early)
            except ValueError:
                self._early = None
                self.refuse(400, b"no PROXY protocol header")
                return
            if found is None:
                return
            size, address = found
            data, self._early = self._early[size:], None
            self.client = address or self.client
        if data:
            super().data_received(data)


def read_header(data: bytes) -> tuple[int, str] | None:
    """Return the size of the header at the start of `data`, and the client's address ("" if it names none).

    Returns None while it is not complete. Raises ValueError for anything else.
    """
    if data.startswith(V2[: len(data)]):
        return _read_v2(data)
    if data.startswith(V1[: len(data)]):
        return _read_v1(data)
    raise ValueError("not a header of the PROXY protocol")


def _read_v1(data: bytes) -> tuple[int, str] | None:
    line, end, _ = data[:V1_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= V1_BYTES:
            raise ValueError("too long")
        return None
    parts = line.decode("ascii").split(" ")
    if parts[1] == "UNKNOWN":
        return len(line) + 2, ""
    _, family, source, target, *ports = parts
    address = ip_address(source)
    is_right = {"TCP4": 4, "TCP6": 6}.get(family) == address.version == ip_address(target).version
    if not is_right or len(ports) != 2 or not all(port.isdecimal() and int(port) <= 65535 for port in ports):
        raise ValueError("malformed")
    return len(line) + 2, _plain(address)


def _read_v2(data: bytes) -> tuple[int, str] | None:
    if len(data) < V2_HEAD_BYTES:
        return None
    command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21) or length > V2_MOST_BYTES:
        raise ValueError("malformed")
    size = V2_HEAD_BYTES + length
    if len(data) < size:
        return None
    if command == 0x21 and family not in _FAMILIES:
        raise ValueError("a family that is none of the protocol's")
    width = _SIZES.get(family >> 4, 0)
    if command == 0x20 or not width:  # the proxy itself (a health check), or a family without an IP address
        return size, ""
    if length < 2 * width + 4:
        raise ValueError("too short")
    return size, _plain(ip_address(data[V2_HEAD_BYTES : V2_HEAD_BYTES + width]))


def _without_port(hop: str) -> str:
    """Return an address without the port that some proxies add: `1.2.3.4:5`, `[::1]:5`, `[::1]`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _parsed(text: str) -> object:
    try:
        return ip_address(_plain(ip_address(text.partition("%")[0])))
    except ValueError:
        return None


def _plain(address: object) -> str:
    """Return an address as text; an IPv4 address within IPv6 as itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
