"""A contest for the card: somebody else (a second router, a direct client) loads and unloads as the router does.

After `UPSETS` switches in a row that were upset so, for `CONTEST_S`, the router stops making room itself, because the
other side would take it at once. It loads by a request that Ollama queues like everybody's, and that goes on until a
client's own request uses the runner: so the model cannot be unloaded in between, and each side has its turn.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus

from router.adapters.load_bodies import held_load_body, load_error
from router.backend.residents import Tracked
from router.backend.switches import SwitchResult
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import LoadOptions
from router.http.client.response import Relay, UpstreamRequest, UpstreamResponse

UPSETS = 2
"""Upset switches in a row after which it is a contest: one may be an accident."""

CONTEST_S = 60.0
"""How long a contest is assumed after its last sign."""

HELD_S, USED_S, LOOK_S = 2.0, 0.3, 0.02
"""A load is held for at most this long after it was verified, and for this long after a request has entered it; how
often that is looked at."""


class Contest:
    """Whether there is one, and loads that are held until they are used."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._upsets = 0
        self._until_s = -math.inf
        self._held: set[asyncio.Task[None]] = set()
        self._now = asyncio.get_running_loop().time

    @property
    def is_on(self) -> bool:
        """True while somebody else takes what is loaded."""
        return self._now() < self._until_s

    def count(self, result: SwitchResult) -> None:
        """Count how a switch ended."""
        self._upsets = self._upsets + 1 if result.is_upset else 0
        if self._upsets >= UPSETS:
            self._until_s = self._now() + CONTEST_S

    async def load(self, facts: ModelFacts, options: LoadOptions, keep_alive_s: float) -> UpstreamResponse:
        """Load a model by a request that goes on; the caller closes it. Raises LoadFailed or ModelNotFound."""
        body = held_load_body(facts.name, options, keep_alive_s)
        headers = [(b"content-type", b"application/json")]
        response = await self._relay.open(UpstreamRequest(b"POST", b"/api/generate", headers, body))
        if response.status == HTTPStatus.OK:
            return response
        try:
            text = await response.read()
        finally:
            response.close()
        raise load_error(response.status, text)

    def hold(self, tracked: Tracked, response: UpstreamResponse) -> None:
        """Close `response` once a request uses the resident, or when none comes."""
        task = asyncio.create_task(self._until_used(tracked, response.close))
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _until_used(self, tracked: Tracked, close: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(HELD_S):
                while not tracked.in_flight:  # noqa: ASYNC110 (an event per resident would cost every request)
                    await asyncio.sleep(LOOK_S)
                await asyncio.sleep(USED_S)
        except TimeoutError:
            pass
        finally:
            close()

    async def aclose(self) -> None:
        """Let go of what is held."""
        for task in tuple(self._held):
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)
