"""A request that was sent, until the head of its answer arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.backend.backend import Backend
from router.core.ollama.listings import BAD_REQUEST, NOT_FOUND, SERVER_ERROR, may_be_failed_listing
from router.core.ollama.names import key_of
from router.errors import RouterError, UpstreamError
from router.http.client.response import UpstreamResponse
from router.routing.announcing import announcement
from router.routing.answer import Answer, Released
from router.routing.call import Call
from router.routing.destination import Destination
from router.routing.ends import Ends
from router.routing.outcomes import Blocked

OK = 200
Reply = Callable[[Answer | RouterError | Blocked | None], None]
"""Receives the answer when its head has arrived, or the error; or what must be awaited before another attempt.

None: attempt again, the variant was deleted."""


class Underway:
    """A request under way. `reply` is called once, not after `give_up`. The resident is left at the answer's end."""

    __slots__ = ("_backend", "_call", "_destination", "_ends", "_reply", "_ttft_s", "_upstream")

    def __init__(self, backend: Backend, ends: Ends, call: Call, destination: Destination, reply: Reply) -> None:
        self._backend = backend
        self._ends = ends
        self._call = call
        self._destination = destination
        self._reply = reply
        self._upstream: UpstreamResponse | None = None
        self._ttft_s = 0.0

    def sent(self, upstream: UpstreamResponse, now_s: float) -> None:
        """Set the response in which the answer will arrive."""
        self._upstream = upstream
        resident = self._call.resident
        if resident is not None and self._call.needs_slot:
            resident.slots.send(upstream, now_s)

    def on_head(self) -> None:
        """Handle the head of the answer, or that there will be none. Never raises: a connection calls it."""
        upstream = self._upstream
        assert upstream is not None
        came: Answer | RouterError | None
        try:
            came = self._came(upstream)
        except Exception as error:
            upstream.close()
            self._leave(upstream)
            is_moved = isinstance(error, UpstreamError) and self._ends.elsewhere.moves(self._call, error)
            came = None if is_moved else self._ends.fault(self._call, error, UpstreamError)
        self._reply(came)

    def _came(self, upstream: UpstreamResponse) -> Answer | None:
        """Return the answer; None if the request is to be decided again. Raises UpstreamError if there is none."""
        call = self._call
        if self._destination.loads:
            self._backend.answered(self)
        if not upstream.status:
            upstream.raise_error()
        if upstream.status != OK and self._is_to_be_repeated(upstream):
            upstream.close()
            self._leave(upstream)
            return None
        if call.resident is not None:  # only now: a request without an answer must not change the expiry
            if call.request.keep_alive_s is not None:
                self._backend.keepalive.apply(call.resident, call.request.keep_alive_s, call.unloads_as)
            if upstream.status == OK:
                self._backend.line.slots.answered(call.resident, upstream)
        return self._answer(upstream)

    def _is_to_be_repeated(self, upstream: UpstreamResponse) -> bool:
        """Return True if the request is worth another attempt, here or on another backend."""
        if self._was_not_found(upstream):
            # Somebody has deleted the variant or its derived tag, or another manifest that Ollama was just listing. All
            # tags of the variant: a request with other options would run into the same 404.
            self._backend.derived.forget(self._destination.variant)
            return True
        return upstream.status >= SERVER_ERROR and self._ends.elsewhere.moves(self._call, upstream)

    def _was_not_found(self, upstream: UpstreamResponse) -> bool:
        """Return True if Ollama did not find the model, and the request is worth another attempt."""
        status, destination = upstream.status, self._destination
        if status == NOT_FOUND and destination.may_vanish:
            return True
        if status not in (NOT_FOUND, BAD_REQUEST) or not destination.variant or self._call.attempts > 1:
            return False
        is_installed = key_of(destination.variant) in self._backend.installed.catalog
        return is_installed and may_be_failed_listing(status, upstream.peek())

    def _answer(self, upstream: UpstreamResponse) -> Answer:
        call, destination, backend = self._call, self._destination, self._backend
        self._ttft_s = backend.now() - call.since_s
        # Those of a destination are shared by all requests that were sent at once; one that waited has its own.
        headers, lines = destination.headers, destination.lines
        if call.queue_s or call.attempts > 1 or (call.visit is not None and call.tries > 1):
            headers, lines = destination.headers_after(call.request.model, call.queue_s, call.tries, backend.name)
        rename, errors = destination.rename, destination.errors
        left, said = call.limits_left, ""
        if call.chain_rules is not None and call.chain_rules.is_announcing and upstream.status == OK:
            said = announcement(call)
        front = call.front is not None
        return Answer(upstream.status, headers, upstream, rename, errors, lines, left, said, self._released, front)

    def _released(self, released: Released) -> None:
        """Leave the resident, and report how sending the answer ended."""
        upstream = self._upstream
        assert upstream is not None
        self._leave(upstream)
        self._ends.report_end(self._call, released, upstream.status, self._ttft_s)

    def _leave(self, upstream: UpstreamResponse | None) -> None:
        """Leave the resident, and its slot."""
        now_s = self._backend.now()
        resident = self._call.leave(now_s)
        if resident is None:
            return
        if upstream is not None:
            resident.slots.end(upstream)
        self._backend.world.residents.leave(resident, now_s)

    def give_up(self, *, is_gone: bool = True) -> None:
        """Cancel the request upstream and release what it holds: its client has left, or the router stops."""
        if self._upstream is not None:
            self._upstream.close()
        self._backend.answered(self)
        self._leave(self._upstream)
        self._call.give_up(is_gone=is_gone)
        self._ends.report_failure(self._call, asyncio.CancelledError())
