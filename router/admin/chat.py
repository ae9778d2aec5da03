"""The dashboard's chat: one request on the way that every client's takes, with the decision in front of the answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from router.core.ollama.routes import TARGETS
from router.core.payload.read import read_wholly
from router.errors import UpstreamError
from router.http.headers import Header
from router.routing.answer import Answer
from router.routing.call import Call
from router.routing.dispatching import Dispatching

CHAT_ROUTE = TARGETS["POST", b"/api/chat"]
NDJSON: Header = (b"content-type", b"application/x-ndjson")


class Chat:
    """Sends chat requests of the dashboard through `dispatcher`."""

    def __init__(self, dispatcher: Dispatching) -> None:
        self._dispatcher = dispatcher
        self._numbers = itertools.count(1)

    async def answer(self, body: bytes) -> Parts:
        """Return the decision as one JSON line, ``{"router": {…}}``, then Ollama's answer to a body of /api/chat.

        Raises BadRequest for a body that Ollama would refuse, or the RouterError that refuses the request.
        """
        now_s = asyncio.get_running_loop().time()
        request = await asyncio.to_thread(read_wholly, CHAT_ROUTE.kind, body)  # it may hold very many values
        call = Call(CHAT_ROUTE, request, body, since_s=now_s, client="dashboard")
        call.request_id = f"dashboard-{next(self._numbers):x}"
        answer = await self._dispatcher.dispatch(call)
        return Parts(answer)


class Parts(AsyncIterator[bytes]):
    """The decision and the answer as lines. `aclose` releases the answer, also if nothing of it was read."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._lines = self._read(answer)

    async def __anext__(self) -> bytes:
        return await anext(self._lines)

    async def aclose(self) -> None:
        """Release the answer. A generator that has not begun runs no `finally`."""
        await self._lines.aclose()
        self._answer.release("client_gone")

    @staticmethod
    async def _read(answer: Answer) -> AsyncGenerator[bytes]:
        """Yield the decision and the answer; if that breaks off, a line that says why."""
        outcome, size, why = "client_gone", 0, ""
        try:
            facts = {name.decode().removeprefix("x-router-"): value.decode() for name, value in answer.headers}
            yield msgspec.json.encode({"router": {**facts, "status": answer.status}}) + b"\n"
            while part := await answer.upstream.read():
                size += len(part)
                yield part
            outcome = "completed"
        except UpstreamError as error:
            outcome, why = "upstream_error", error.message
            yield b"\n" + msgspec.json.encode({"error": why}) + b"\n"
        finally:
            answer.release(outcome, sent_bytes=size, error=why)
