"""By which variant of its chain each conversation was served last, so that it keeps it."""

from __future__ import annotations

import secrets

from router.routing.call import Call

_KINDS = frozenset({"chat", "v1_chat", "v1_messages"})
"""The routes whose bodies hold all messages of a conversation."""

_SECRET = secrets.token_bytes(16)  # one for all, so that each request is hashed once


class Conversations:
    """The `most` conversations that were served last; 0 remembers none.

    A conversation is one team's, with one requested model, and has one beginning of its messages, of which only a hash
    is kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._variants: dict[tuple[str, str, bytes], str] = {}

    def note(self, call: Call, variant: str) -> None:
        """Note that a turn is served by `variant`; other requests are no turns."""
        key = self._key(call)
        if key is None:
            return
        self._variants.pop(key, None)  # to the end: the first one is the longest unserved
        self._variants[key] = variant
        if len(self._variants) > self._most:
            del self._variants[next(iter(self._variants))]

    def variant_of(self, call: Call) -> str:
        """Return the variant that served the last turn; "" if this is the first one, or none is known."""
        key = self._key(call) if self._variants else None
        return self._variants.get(key, "") if key is not None else ""

    def _key(self, call: Call) -> tuple[str, str, bytes] | None:
        if not self._most or call.route.kind not in _KINDS:
            return None
        beginning = call.beginning(_SECRET)
        return (call.team, call.request.model, beginning) if beginning else None
