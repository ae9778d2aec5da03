"""A request whose kept connection the upstream closed just as it was sent: it is sent once more, on a new connection.

A server may close an unused connection at any time (RFC 9112, 9.3.1), also while a request is on its way to it: one
that reloads, or whose keep-alive is shorter than ours. To be sent once more,

1. the request must do no harm if the upstream has read it after all: GET, HEAD, or one that says so (`safe_to_resend`).
   To generate is not idempotent by its method, but it changes nothing except which models are loaded, so that at worst
   it is worked on twice. What manages models changes more, and never says so;
2. its body must be there still: a stream is used up;
3. its connection must have been kept from before: an upstream that drops what comes by a new one means it;
4. the connection must have been closed or reset, and no byte of an answer have come. After a time that is over, or a
   link that is silent, the upstream may be at work on it;
5. that must have come about as soon as the bytes could be there and their refusal back, so within the time of a
   connection attempt (`connect_timeout_s`). An upstream that ends later had taken the request, and died of it, maybe.

The second time is the last one, since the connection is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from router.http.client.outgoing import Body
from router.http.client.parser import ConnectionGone
from router.http.client.response import UpstreamRequest, UpstreamResponse

_SAFE_METHODS = (b"GET", b"HEAD")


def may_resend(request: UpstreamRequest) -> bool:
    """Return True if a request does no harm when it is read twice, and its body can be sent again (1., 2.)."""
    is_safe = request.safe_to_resend or request.method in _SAFE_METHODS
    return is_safe and isinstance(request.body, bytes | list | None)


def was_closed(error: Exception | None) -> bool:
    """Return True if the upstream has ended a connection that asyncio has lost by `error`: by a FIN or a RST (4.)."""
    return error is None or isinstance(error, ConnectionError)


class NewConnection(Protocol):
    """What is needed of a new connection; see `Wire`."""

    def begin(
        self,
        head: bytes,
        body: Body | None,
        *,
        chunked: bool,
        on_head: Callable[[], None],
        response: UpstreamResponse | None = None,
    ) -> UpstreamResponse: ...


New = TypeVar("New", bound=NewConnection)


class Resend:
    """A request without a connection; until it has one it is where its answer is to come from.

    `sent_s` is the loop's time when it was sent first.
    """

    def __init__(
        self,
        head: bytes,
        body: Body | None,
        response: UpstreamResponse,
        on_head: Callable[[], None],
        sent_s: float,
    ) -> None:
        self.sent_s = sent_s
        self._head, self._body = head, body
        self._response, self._on_head = response, on_head
        self._is_given_up = False
        response.source = self

    async def run(self, connect: Callable[[], Awaitable[New]], keep: Callable[[New], None]) -> None:
        """Send it on a new connection; if that fails, that is its answer. `keep` takes one that is needed no more."""
        try:
            connection = await connect()
            if self._is_given_up:
                keep(connection)
                return
            connection.begin(self._head, self._body, chunked=False, on_head=self._on_head, response=self._response)
        except asyncio.CancelledError:
            self._fail(ConnectionGone("the upstream has closed the connection"))
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._is_given_up:
            self._response.fail(error)
            self._on_head()

    def cancel(self) -> None:
        """Give it up: the new connection, if it comes about, is for others."""
        self._is_given_up = True

    def pause(self) -> None:
        """Do nothing: no byte can come."""

    def resume(self) -> None:
        """Do nothing: no byte can come."""
