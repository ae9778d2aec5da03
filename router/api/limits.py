"""Limits of teams at the edge: each request of a team with limits is counted before it is dispatched, and at its end.

A request above a limit of its own team is a 429; a card that is too busy for everybody is a 503, which is the queue's.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache, partial

from router.core.payload.read import BYTES_PER_TOKEN
from router.core.teams.quotas import Asking, Granted, Left, Quotas, Refused, Standing, refusal
from router.errors import LimitReached
from router.http.headers import Header
from router.routing.answer import Released
from router.routing.call import Call
from router.telemetry import Rejected

ANSWER_TOKENS = 512
"""An answer whose length the client does not bound is expected to have this many tokens."""

STREAMED_BYTES = 100
"""Bytes of a streamed token: a client that leaves before the end gets no count of them."""

OK = 200
_FORM = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %b\r\n"
_EMBEDDINGS = frozenset({"embed", "embeddings", "v1_embeddings"})


class Limits:
    """Counts requests in `quotas`; `emit` receives the refusals. `notes` returns for `/readyz` how they are counted."""

    def __init__(
        self,
        quotas: Quotas,
        emit: Callable[[Rejected], None],
        notes: Callable[[], dict[str, object]] = dict,
    ) -> None:
        self.quotas, self.notes = quotas, notes
        self._emit = emit

    def admit(self, call: Call) -> Callable[[], Awaitable[None]] | None:
        """Count a request, which is released at its end. Raise LimitReached if it is above a limit of its team.

        If that is not known here, return what finds out, and then does the same.
        """
        team, limits = call.identity.team, call.identity.team.limits
        if not limits.is_metered:
            return None
        tokens = expected_tokens(call) if limits.tokens_per_day is not None else 0
        found = self.quotas.admit(team, call, tokens)  # not by the client's own id, which it may use twice
        if isinstance(found, Granted):
            call.count(found, self._settle)
            return None
        if isinstance(found, Asking):
            return partial(self._asked, call, found)
        raise self._refusal(call, found)

    async def _asked(self, call: Call, asking: Asking) -> None:
        found = await asking.answer()
        if isinstance(found, Refused):
            raise self._refusal(call, found)
        call.count(found, self._settle)

    def _refusal(self, call: Call, found: Refused) -> LimitReached:
        team = call.identity.team
        self._emit(Rejected(team.name, found.why))
        return refusal(team, found.why, found.retry_s, tuple(headers_of(found.left)))

    def _settle(self, call: Call, released: Released, status: int) -> None:
        self.quotas.settle(call, tokens_of(call, released, status))


def expected_tokens(call: Call) -> int:
    """Return how many tokens a request may take: its prompt, and an answer as long as it allows."""
    request = call.request
    prompt = request.prompt_bytes // BYTES_PER_TOKEN
    if call.route.kind in _EMBEDDINGS or request.is_load_only or request.is_unload:
        return prompt
    most = request.num_predict
    return prompt + (most if most is not None and most >= 0 else ANSWER_TOKENS)


def tokens_of(call: Call, released: Released, status: int) -> int:
    """Return how many tokens a request took; as far as the answer does not say, by what was sent of it."""
    if released.tokens_in is not None or released.tokens_out is not None:
        return (released.tokens_in or 0) + (released.tokens_out or 0)
    if not call.served or (status != OK and not released.sent_bytes):  # it waited, or was refused
        return 0
    prompt = call.request.prompt_bytes // BYTES_PER_TOKEN
    return prompt if call.route.kind in _EMBEDDINGS else prompt + released.sent_bytes // STREAMED_BYTES


def lines_of(left: Standing) -> bytes:
    """Return the lines of the headers that say what is left, in the form that clients of OpenAI read."""
    requests, tokens = left.requests, left.tokens
    lines = _lines(b"requests", requests) if requests is not None else b""
    return lines + _lines(b"tokens", tokens) if tokens is not None else lines


def _lines(what: bytes, one: Left) -> bytes:
    return _form(what, one.limit, math.ceil(one.reset_s)) % one.remaining


def headers_of(left: Standing) -> Iterator[Header]:
    """Yield the same headers one by one."""
    for line in lines_of(left).splitlines():
        name, _, value = line.partition(b": ")
        yield name, value


@lru_cache(maxsize=256)
def _form(what: bytes, limit: int, reset_s: int) -> bytes:
    """Return the lines of a limit without what remains, which alone differs between the answers of a second."""
    return _FORM % (what, limit, what, what, _duration(reset_s))


def _duration(seconds: int) -> bytes:
    """Return a time such as `1s` or `6h5m0s`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
    return text.encode()
