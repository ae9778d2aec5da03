"""What a discovery tells: the whole set of nodes, each time that it has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

MOST_NODES = 4096
"""More nodes are not taken: each has a connection of its own."""

Nodes = Mapping[str, str]
"""URLs by what tells one node from another: its URL, its address, or the UID of its pod."""

Tell = Callable[[Nodes], None]


class Discovery(Protocol):
    """Finds nodes until it is cancelled."""

    async def watch(self, tell: Tell) -> None:
        """Call `tell` with all nodes at first and after each change; return if there can be none. A failure keeps what
        was found before: that nodes cannot be found is no reason to leave those that answer.
        """


def url_of(address: str, port: int, *, is_tls: bool = False) -> str:
    """Return the URL of a node at an address, which may be one of IPv6."""
    host = f"[{address}]" if ":" in address else address
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def bounded(nodes: Nodes) -> Nodes:
    """Return at most `MOST_NODES` of the nodes, the same ones each time."""
    return nodes if len(nodes) <= MOST_NODES else {key: nodes[key] for key in sorted(nodes)[:MOST_NODES]}
