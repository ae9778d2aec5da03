"""A relay to an upstream without a network: the answers are a function of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.errors import UpstreamError
from router.http.client.response import Connection, UpstreamRequest, UpstreamResponse


class ScriptedRelay:
    """`answer` returns the answer to each request, `requests` collects them."""

    def __init__(self, answer: Callable[[UpstreamRequest], UpstreamResponse]) -> None:
        self._answer = answer
        self.requests: list[UpstreamRequest] = []

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        self.requests.append(request)
        response = self._answer(request)
        if response.status == 0:
            raise UpstreamError("the upstream sent no answer")
        return response

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        """Send on a connection that `connect` returned; no other is ever free."""
        if connection is None:
            return None
        self.requests.append(request)
        asyncio.get_running_loop().call_soon(on_head)
        return self._answer(request)

    async def connect(self) -> Connection:
        return self

    connect_reserved = connect

    def give_back(self, connection: Connection) -> None:
        """Do nothing: there is no pool."""

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""
