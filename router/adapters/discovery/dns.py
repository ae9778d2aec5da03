"""Nodes at the addresses of a name, as of a headless Service: compose and Kubernetes alike, without any right."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from router.adapters.discovery.found import Nodes, Tell, bounded, url_of

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(name: str, port: int) -> Sequence[str]:
    """Return the addresses of a name by the system's resolver. Raises OSError."""
    rows = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(row[4][0]) for row in rows]


class DnsNodes:
    """The nodes at the addresses of `name`, which is asked for every `every_s` seconds.

    With `is_tls` their URLs begin with `https:`. `report` is called with a sentence when the name cannot be resolved,
    once until it can be again.
    """

    def __init__(
        self,
        name: str,
        port: int,
        every_s: float,
        report: Callable[[str], None],
        resolve: Resolve = resolve,
        *,
        is_tls: bool = False,
    ) -> None:
        self._name, self._port, self._every_s, self._is_tls = name, port, every_s, is_tls
        self._report = report
        self._resolve = resolve
        self._is_failing = False

    async def watch(self, tell: Tell) -> None:
        """Ask for the name again and again."""
        told: Nodes | None = None
        while True:
            found = await self._found()
            if found is not None and found != told:
                tell(found)
                told = found
            await asyncio.sleep(self._every_s)

    async def _found(self) -> Nodes | None:
        """Return the nodes, None if the name cannot be resolved now."""
        try:
            addresses = await self._resolve(self._name, self._port)
        except (OSError, UnicodeError) as error:
            if not self._is_failing:
                self._report(f"the name {self._name} of the nodes cannot be resolved: {error}")
            self._is_failing = True
            return None
        self._is_failing = False
        return bounded({address: url_of(address, self._port, is_tls=self._is_tls) for address in addresses})
