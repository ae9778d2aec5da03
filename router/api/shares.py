"""What one client may have of something that is for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Shares:
    """Lets each address have at most `most` at once; further ones wait. An address without any is forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shares: dict[str, tuple[asyncio.Semaphore, list[None]]] = {}

    @asynccontextmanager
    async def of(self, address: str) -> AsyncIterator[None]:
        """Wait until the address may have one more; it has it while the context lasts."""
        share, users = self._shares.setdefault(address, (asyncio.Semaphore(self._most), []))
        users.append(None)
        try:
            async with share:
                yield
        finally:
            users.pop()
            if not users:
                del self._shares[address]
