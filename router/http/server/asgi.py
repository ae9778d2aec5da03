"""An adapter that serves an ASGI application (the admin pages) from our own listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from router.http.server.cycle import ClientGone, Cycle

Message = MutableMapping[str, Any]
AsgiApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Asgi:
    """Runs `app` for each request, in a task."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    def take(self, _cycle: Cycle) -> bool:
        """Return False: an ASGI application needs a task."""
        return False

    async def serve(self, cycle: Cycle) -> None:
        """Answer one request."""
        exchange = _Exchange(cycle)
        await self._app(scope_of(cycle), exchange.receive, exchange.send)


class _Exchange:
    """ASGI's `receive` and `send` for one request."""

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._is_read = False

    async def receive(self) -> Message:
        if self._is_read:  # after the body, ASGI's only message is that the client has left
            await self._cycle.wait_until_ended()
            return {"type": "http.disconnect"}
        try:
            body = await self._cycle.read()
        except ClientGone:
            return {"type": "http.disconnect"}
        self._is_read = self._cycle.request_complete
        return {"type": "http.request", "body": body, "more_body": not self._is_read}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._cycle.start(message["status"], message.get("headers", ()))
        else:
            await self._cycle.write(message.get("body", b""), more=message.get("more_body", False))


def scope_of(cycle: Cycle) -> Message:
    """Return the ASGI scope of a request."""
    head, transport = cycle.head, cycle.carrier.transport
    path = head.target.decode("latin-1")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.0" if head.http_10 else "1.1",
        "server": address(transport.get_extra_info("sockname")),
        "client": address(transport.get_extra_info("peername")),
        "scheme": "http",
        "root_path": "",
        "method": head.method,
        "path": unquote(path) if "%" in path else path,
        "raw_path": head.target,
        "query_string": head.url[len(head.target) + 1 :],
        "headers": head.headers,
    }


def address(found: Any) -> tuple[str, int] | None:
    """Return host and port of a socket's end; forwarding headers are ignored."""
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
