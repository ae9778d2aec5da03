"""Who is a front: it shows their key. In `X-Router-Call` it says whose request it sends, and by which chain.

Without the key the header is refused. On a router that is not a node nothing of this runs, and the header is ignored.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from router.config import Rulebook
from router.core.decision.verdict import Verdict
from router.core.nodes.call import HEADER, NodeCall
from router.core.nodes.form import OtherVersion, UnreadableForm
from router.core.teams.credentials import credential_of
from router.core.teams.keys import digest_of
from router.core.teams.rights import TRUSTED
from router.core.teams.team import ALL_RIGHTS, NO_LIMITS, NO_MEMORY_RULES, Identity, Team, TeamLimits
from router.errors import BadRequest, Misdirected, UnknownFront
from router.http.server.heads import Head
from router.routing.nodes.front_call import FrontCall

MOST_KEPT = 1024
"""Different calls that are remembered: fronts send the same ones again and again."""

NO_KEY = "this is for the fronts of this node, which show its key"


class Declining(Protocol):
    """The node: whether it takes calls, and how it declines one."""

    @property
    def is_draining(self) -> bool: ...

    def declined(self, why: str, verdicts: Iterable[Verdict] = ()) -> bytes: ...


class Fronts:
    """The fronts of a node. `keys` are the hashes of their keys, `book` returns the rulebook in force."""

    def __init__(self, keys: tuple[bytes, ...], node: Declining, book: Callable[[], Rulebook]) -> None:
        self.identity = TRUSTED
        self._keys = keys
        self._node = node
        self._book = book
        self._kept_for: Rulebook | None = None
        self._kept: OrderedDict[bytes, FrontCall] = OrderedDict()

    def knows(self, head: Head) -> bool:
        """Return True if a request shows the key of the fronts, and no other credential.

        A head that repeats an earlier one is the same object, so what it shows is hashed once.
        """
        known = head.front
        if known is None or known[0] is not self:
            known = head.front = (self, self._shows_key(head))
        return bool(known[1])

    def _shows_key(self, head: Head) -> bool:
        try:
            shown = credential_of(head.headers, head.by_name)
        except BadRequest:  # two different ones
            return False
        if not isinstance(shown, bytes):
            return False
        digest = digest_of(shown)
        # Each of them, so that the time says nothing of the keys.
        return sum([hmac.compare_digest(digest, key) for key in self._keys]) > 0

    def check(self, head: Head) -> None:
        """Raise UnknownFront for a request without the key."""
        if not self.knows(head):
            raise UnknownFront(NO_KEY)

    def call_of(self, head: Head) -> FrontCall | None:
        """Return what a front says with a request, None if nothing.

        Raises UnknownFront without the key, BadRequest for what cannot be read, Misdirected for a version that is not
        known here, and while the node is about to stop.
        """
        value = head.by_name.get(HEADER)
        if value is None:
            return None
        self.check(head)
        if self._node.is_draining:
            raise self._declined("the node is about to stop")
        if (book := self._book()) is not self._kept_for:
            self._kept.clear()
            self._kept_for = book
        call = self._kept.get(value)
        if call is None:
            call = self._kept[value] = self._read(value, book)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return call

    def _read(self, value: bytes, book: Rulebook) -> FrontCall:
        try:
            told = NodeCall.from_header(value)
        except OtherVersion as error:
            raise self._declined(f"X-Router-Call: {error}") from None
        except UnreadableForm as error:
            raise BadRequest(f"X-Router-Call: {error}") from None
        known = book.team(told.team)
        memory = known.memory if known is not None else NO_MEMORY_RULES
        limits = _own_limits(known.limits) if known is not None else NO_LIMITS
        team = Team(told.team, rights=ALL_RIGHTS, manage_models=("*",), share=told.share, limits=limits, memory=memory)
        return FrontCall.of(told, Identity(team, told.key_id), self._node.declined)

    def _declined(self, why: str) -> Misdirected:
        return Misdirected(why, self._node.declined(why))


def _own_limits(limits: TeamLimits) -> TeamLimits:
    """Return those of a team's limits that are about this node's line; the others were counted by the front."""
    return TeamLimits(waiting=limits.waiting, evictions_per_minute=limits.evictions_per_minute)
