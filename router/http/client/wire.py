"""One connection to an upstream: HTTP/1.1 on asyncio.Protocol and httptools, one request at a time.

A wire returns to its pool as soon as an answer is complete. It is reused only after a request that was sent in full and
an answer that ended by its own framing; in all other cases it is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

from router.errors import UpstreamError, UpstreamTimeout
from router.http.client.limits import ExchangeLimits
from router.http.client.outgoing import LARGE_BYTES, Body, is_long, steps_of
from router.http.client.parser import MAX_HEADER_BYTES, AnswerParser, ConnectionGone, ParserErrors, lost, reason
from router.http.client.phase import ANSWERING, AWAITING, CLOSED, IDLE
from router.http.client.resend import Resend, was_closed
from router.http.client.response import NO_HEAD, AnswerHead, UpstreamResponse
from router.http.deadlines import NEVER
from router.http.repeats import HeadCache, LastHead


class Owner(Protocol):
    """The pool that a wire belongs to."""

    head_cache: HeadCache[AnswerHead]
    limits: ExchangeLimits

    def put_back(self, wire: Wire) -> None: ...

    def forget(self, wire: Wire) -> None: ...

    def resend(self, again: Resend) -> bool: ...


class Wire(AnswerParser):
    """One connection to an upstream. `deadline` is checked by the pool's `Deadlines`.

    `is_kept` is True once it has been used or unused: the upstream may close it at any time.
    """

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner.limits.idle_timeout_s, LastHead(owner.head_cache))
        self.owner, self._limits = owner, owner.limits
        self._phase = IDLE
        self.loop = loop
        self._upload: asyncio.Task[None] | None = None
        self._can_write: asyncio.Future[None] | None = None
        self._is_sent = True
        self.transport = cast("asyncio.Transport", None)
        self._unwanted_until_s = NEVER
        self.deadline = self._sent_s = NEVER
        self.is_owned = self.is_kept = False
        self._copy: tuple[bytes, Any] | None = None  # what may be sent once more

    @property
    def is_closed(self) -> bool:
        return self._phase is CLOSED

    @property
    def is_usable(self) -> bool:
        """False for a connection that is closed or closing: a write to it would be lost silently."""
        return self._phase is not CLOSED and not self.transport.is_closing()

    # --- one exchange ------------------------------------------------------------------------------------------

    def begin(
        self,
        head: bytes,
        body: Body | AsyncIterator[bytes] | None,
        *,
        chunked: bool,
        on_head: Callable[[], None],
        may_resend: bool = False,
        response: UpstreamResponse | None = None,
    ) -> UpstreamResponse:
        """Send a request; `on_head` is called once, when the head of its answer has arrived or there will be none.

        With `may_resend` it is sent once more as `resend.py` says; `response` is the answer of one that is.
        Raises ConnectionGone if the upstream has closed the connection.
        """
        response = self._response = response or UpstreamResponse(None, NO_HEAD)
        response.source = self
        if self._phase is CLOSED or self.transport.is_closing():
            self.abort()
            raise ConnectionGone("the upstream has closed the connection")
        self._on_head = on_head
        self._unwanted_until_s = NEVER
        self._phase = AWAITING
        self._is_head_request = head.startswith(b"HEAD ")
        self._is_sent = True
        self._wait_s = self._limits.first_byte_timeout_s
        self._copy = (head, body) if may_resend and self.is_kept else None
        try:
            self._send_out(head, body, chunked=chunked)
        except RuntimeError as exc:  # uvloop: closed by the upstream, but not reported to this protocol yet
            self.abort()
            raise ConnectionGone("the upstream has closed the connection") from exc
        self._sent_s = self.loop.time()
        self.deadline = self._sent_s + self._wait_s if self._is_sent else NEVER
        return response

    def _send_out(self, head: bytes, body: Body | AsyncIterator[bytes] | None, *, chunked: bool) -> None:
        if isinstance(body, bytes) and len(body) < LARGE_BYTES:
            self.transport.write(head + body)  # in one packet
            return
        self.transport.write(head)
        if isinstance(body, bytes) and not is_long(body):
            self.transport.write(body)  # without a copy
        elif body is not None:
            self._is_sent = False
            steps = steps_of(body) if isinstance(body, bytes | list) else body
            self._upload = self.loop.create_task(self._send(steps, chunked=chunked))

    async def _send(self, body: AsyncIterator[bytes | memoryview], *, chunked: bool) -> None:
        """Send a body in steps; an exception of the source of a stream ends the exchange."""
        try:
            async for chunk in body:
                if self._response is None or not self.is_usable:
                    return
                if chunk:
                    # Not writelines, which in Python 3.12 never says that the buffer is full (CVE-2024-12254).
                    self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), bytes(chunk)) if chunked else chunk)
                    await self._until_writable()
            if chunked and not self.is_closed:
                self.transport.write(b"0\r\n\r\n")
            self._is_sent = True
            self.deadline = self.loop.time() + self._wait_s
        except Exception as exc:
            self._fail(exc)
        finally:
            self._upload = None

    async def _until_writable(self) -> None:
        """Wait while the write buffer is full, because the upstream reads slowly."""
        if self._can_write is not None:
            self.deadline = self.loop.time() + self._limits.idle_timeout_s
            await self._can_write
            self.deadline = NEVER

    # --- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self.abort()  # bytes without a request must never be taken for the answer to the next one
            return
        is_first, self._phase, self._copy = self._phase is AWAITING, ANSWERING, None
        template = self._known.template if is_first and self._is_sent and not self._is_head_request else None
        if template is not None and (found := template.match(data)) is not None:
            self._repeated(response, *found)
            return
        if is_first:
            self._begin_parsing()
        try:
            has_come = self._parse(data)
        except ParserErrors as exc:
            self._flush(response)
            if self._response is not None:
                self._fail(UpstreamError(f"the upstream's answer is not valid HTTP: {reason(exc)}"))
                return
            has_come, self._is_keep_alive = True, False  # it is complete, but garbage followed it: not to be used again
        if has_come and self._is_sent:  # whatever else it sends keeps no deadline away
            self.deadline = min(self.loop.time() + self._wait_s, self._unwanted_until_s)
        self._flush(response)
        if self._head_bytes > MAX_HEADER_BYTES and self._response is not None:
            self._fail(UpstreamError("the upstream's answer is not valid HTTP: too many headers"))
        elif response.status:
            if is_first and self._response is None and self._is_keep_alive and response.head.status:
                self._learn(data, response.head)
            self._hand_over(response)

    def _repeated(self, response: UpstreamResponse, head: AnswerHead, body: bytes) -> None:
        """Take one complete answer with a cached head (fast path)."""
        if self._known.misses:
            self._known.record_hit()
        on_head, self._response, self._on_head = self._on_head, None, None
        response.arrive(head, body)
        if self._phase is not CLOSED:
            self._phase, self.is_kept = IDLE, True
            self.owner.put_back(self)
        if on_head is not None:
            on_head()

    def _hand_over(self, response: UpstreamResponse) -> None:
        """Report the head once, after the end if the answer is complete: `on_head` may reuse this wire."""
        on_head, self._on_head = self._on_head, None
        if self._response is None:
            self._finish(response)
        if on_head is not None:
            on_head()

    def connection_lost(self, exc: Exception | None) -> None:
        has_begun = self._phase is ANSWERING
        self._phase = CLOSED
        response = self._response
        if response is not None and exc is None and self._until_eof:
            self._response = None
            response.finish()
        elif not self._resend(exc):
            self._fail(lost(has_begun, exc))
        self.resume_writing()
        self._parser = None  # break the reference cycle, so that nothing is left for the garbage collector
        self.owner.forget(self)

    def _resend(self, exc: Exception | None) -> bool:
        """Have the request sent once more on another connection, if the upstream has closed this one as it came."""
        copy, response, on_head = self._copy, self._response, self._on_head
        if copy is None or response is None or on_head is None or not was_closed(exc):
            return False
        return self.owner.resend(Resend(*copy, response, on_head, self._sent_s))

    def pause_writing(self) -> None:
        self._can_write = self.loop.create_future()

    def resume_writing(self) -> None:
        waiter, self._can_write = self._can_write, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- what the answer and the pool need ---------------------------------------------------------------------

    def pause(self) -> None:
        if self._response is None:
            return  # the answer is complete: the next request on this connection must be able to read
        self.deadline, self._wait_s = NEVER, NEVER
        self.transport.pause_reading()

    def resume(self) -> None:
        self._wait_s = self._limits.idle_timeout_s
        self.deadline = self.loop.time() + self._wait_s
        self.transport.resume_reading()

    def cancel(self) -> None:
        """Give up the answer: abort, or drain it if the upstream must not be cut off (`suppress_cancel`)."""
        if not (self._limits.suppress_cancel and self._is_sent) or self.is_closed:
            self.abort()
            return
        self._response = UpstreamResponse.unwanted(self._limits.unwanted_bytes, self.abort)
        self._on_head = self._copy = None
        self._unwanted_until_s = self.loop.time() + self._limits.unwanted_s
        self.deadline = self._unwanted_until_s
        self.transport.resume_reading()

    def abort(self) -> None:
        """Close immediately and discard what was not written yet."""
        if self._upload is not None:
            self._upload.cancel()
        self._response = self._on_head = self._copy = None
        self._phase = CLOSED
        self.deadline = NEVER
        self.transport.abort()

    def expire(self) -> None:
        """Handle the deadline: close an idle wire, or fail the answer whose first or next byte did not arrive."""
        if self._response is None:
            self.abort()
        elif self._phase is ANSWERING and self._response.status:
            self._fail(UpstreamTimeout(f"the upstream has sent nothing for {self._limits.idle_timeout_s:g} s"))
        else:
            self._fail(UpstreamTimeout(f"the upstream did not answer within {self._limits.first_byte_timeout_s:g} s"))

    def _finish(self, response: UpstreamResponse) -> None:
        response.finish()
        if self._is_keep_alive and self._is_sent and self._phase is not CLOSED:
            self._phase, self.is_kept = IDLE, True
            self.owner.put_back(self)
        else:
            self.abort()

    def _fail(self, error: Exception) -> None:
        """End the exchange with `error`."""
        response, self._response = self._response, None
        if response is not None:
            response.fail(error)
        del error  # its traceback would keep this frame alive
        on_head, self._on_head = self._on_head, None
        self.abort()
        if on_head is not None:
            on_head()
