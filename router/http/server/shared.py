"""What the connections of one listener share, and what they know of each other: how many there are, and of whom."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from router.http.deadlines import Deadlines
from router.http.repeats import HeadCache
from router.http.server.clients import Client, Member
from router.http.server.cycle import Cycle
from router.http.server.departures import PEEK_S
from router.http.server.heads import Head
from router.http.server.limits import WireLimits

TOO_MANY = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
CROWDED = b'{"error":"server busy, please try again.  too many connections from this address"}'

IDLE_S = 1.0
"""A connection that is unused for less than this is not idle: its next request may be on its way."""

ROOM = 64
"""If room must be made, this part of all connections at most is closed at once: it is looked for in all of them."""

LINGERING = 8
"""Refused connections, as a part of all, that may stay open for a moment. Each is an open file."""

FULL_S = 0.05
"""If there was no room, none is looked for during this time."""


def lingering(connections: int) -> int:
    """Return how many refused connections may be open beside so many others, until their clients have read why."""
    return max(4, connections // LINGERING)


class App(Protocol):
    """An application: answers requests."""

    def take(self, cycle: Cycle) -> bool:
        """Answer a complete request without a task, and return True; or return False to have it served in one."""

    async def serve(self, cycle: Cycle) -> None:
        """Answer a request; runs in a task."""


class Connection(Member, Protocol):
    """A connection as its listener sees it."""

    peer: Client
    queue: list[Cycle]

    @property
    def may_ask(self) -> bool: ...

    def shutdown(self) -> None: ...

    def interrupt(self) -> None: ...


@dataclass(slots=True, eq=False)
class Shared:
    """The state that the connections of one listener share.

    `everyone` has all that were not refused. `tasks` are those of requests whose client has left.
    """

    app: App
    limits: WireLimits
    deadlines: Deadlines
    departures: Deadlines = field(default_factory=lambda: Deadlines(PEEK_S))
    head_cache: HeadCache[Head] = field(default_factory=HeadCache)
    connections: set[Connection] = field(default_factory=set)
    everyone: Client = field(default_factory=Client)
    clients: dict[str, Client] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_draining: bool = False

    def drain(self) -> None:
        """Accept no new requests from now on."""
        self.is_draining = True

    def client_at(self, address: str) -> Client:
        """Return the client with this address."""
        return self.clients.setdefault(address, Client(address))

    def admit(self, newcomer: Connection, now_s: float) -> bytes | None:
        """Add a connection. Beyond a limit idle ones make room for it, else return the text of its refusal.

        One that is refused is open for a moment, but takes nobody's place, and its end makes no room.
        """
        self.connections.add(newcomer)
        if not self._has_room(newcomer.peer, self.limits.connections_per_address, now_s):
            return CROWDED
        if not self._has_room(self.everyone, self.limits.connections, now_s):
            return TOO_MANY
        newcomer.peer.connections.add(newcomer)
        self.everyone.connections.add(newcomer)
        return None

    @property
    def is_overfull(self) -> bool:
        """True if there are more refused connections than may be kept open until their clients have read why."""
        return len(self.connections) > self.limits.connections + lingering(self.limits.connections)

    def leave(self, member: Connection) -> None:
        """Remove a connection that has ended."""
        self.connections.discard(member)
        self.everyone.connections.discard(member)
        member.peer.connections.discard(member)
        if not member.peer.connections and self.clients.get(member.peer.address) is member.peer:
            del self.clients[member.peer.address]

    def _has_room(self, client: Client, most: int, now_s: float) -> bool:
        """Return True if `client` has fewer than `most` connections, or some idle ones of it are closed now.

        Those of addresses with most of them go first, and then those idle for longest.
        """
        if len(client.connections) < most:
            return True
        if now_s < client.full_until_s:
            return False
        idle = [(-len(one.peer.connections), one.idle_since_s, id(one), one) for one in client.connections]
        idle = [found for found in idle if found[1] <= now_s - IDLE_S]
        if not idle:
            client.full_until_s = now_s + FULL_S
            return False
        for *_, one in sorted(idle)[: max(1, self.limits.connections // ROOM)]:
            one.transport.abort()
        return True
