"""Clients, told apart by their addresses, and their connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Wire(Protocol):
    """What is under a connection, as far as its listener asks."""

    def abort(self) -> None: ...

    def get_write_buffer_size(self) -> int: ...


class Member(Protocol):
    """A connection as the others of its listener see it."""

    peer: Client

    @property
    def transport(self) -> Wire: ...

    @property
    def queue(self) -> Sequence[object]: ...

    @property
    def idle_since_s(self) -> float: ...


@dataclass(slots=True, eq=False)
class Client:
    """One address ("" if there is none), and its connections. Until `full_until_s` no idle ones are looked for."""

    address: str = ""
    connections: set[Member] = field(default_factory=set)
    full_until_s: float = 0.0

    def requests(self) -> int:
        """Return how many requests are under way, over all connections."""
        return sum(bool(one.queue) for one in self.connections)


def address_of(transport: asyncio.BaseTransport) -> str:
    """Return the address of a connection's client without its port, "" if it has none."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""
