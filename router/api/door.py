"""Who asks: finds the identity of each request at the edge, from its head and from where it comes.

What a head shows is remembered with it, for as long as the same identities are in force and the key has not expired.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

import msgspec

from router.api.fronts import Fronts
from router.api.reports import client_of
from router.api.settings import EdgeSettings
from router.core.teams.credentials import Signature, credential_of
from router.core.teams.identity import EXPIRED, UNKNOWN, Identities, Recognized
from router.core.teams.team import Identity
from router.errors import Unauthorized
from router.http.server.cycle import Cycle
from router.http.server.heads import Head
from router.routing.nodes.front_call import FrontCall


class Rules(Protocol):
    """The rules in force. `identities` is another object after each reload, None without teams."""

    @property
    def identities(self) -> Identities | None: ...


class NoTeams:
    """The rules of a router without teams: whoever can connect has the same rights."""

    identities: Identities | None = None


NO_TEAMS = NoTeams()


class _Shown(msgspec.Struct, eq=False):
    """What a head shows, found in the identities with `mark`; `identity` is None if it shows nothing. Changed in place,
    because the copies of a head that repeats with another length share it. It keeps nothing of before a reload alive: a
    head is remembered long after its client has gone.
    """

    mark: object = None
    identity: weakref.ref[Identity] | None = None
    expires_s: float | None = None


class Door:
    """Identifies requests. Without teams each of them is `settings.anyone`'s. `clock` returns Unix time.

    `fronts` are those of a node, None if this is not one.
    """

    def __init__(
        self,
        rules: Rules,
        settings: EdgeSettings,
        clock: Callable[[], float],
        fronts: Fronts | None = None,
    ) -> None:
        self._fronts = fronts
        self._rules = rules
        self._anyone = settings.anyone
        self._proxies = settings.proxies
        self._clock = clock

    @property
    def takes_keys(self) -> bool:
        """True if there are teams; without, no path begins with a key."""
        return self._rules.identities is not None

    def is_front(self, head: Head) -> bool:
        """Return True for a front of this node. It may come by any name: no web page knows the key that it shows."""
        return self._fronts is not None and self._fronts.knows(head)

    def identify(self, cycle: Cycle) -> tuple[Identity, FrontCall | None]:
        """Return whose request it is, and what a front says with it, None if nothing.

        Raise Unauthorized, BadRequest for two different credentials, or as `Fronts.call_of`.
        """
        if self._fronts is not None:
            if (front := self._fronts.call_of(cycle.head)) is not None:
                return front.identity, front
            if self.is_front(cycle.head):
                return self._fronts.identity, None
        identities = self._rules.identities
        return self._anyone if identities is None else self._shown(cycle, identities), None

    def _shown(self, cycle: Cycle, identities: Identities) -> Identity:
        """Return whose key a request shows, or from whose network it comes."""
        shown: _Shown | None = cycle.head.who
        if shown is None:
            shown = cycle.head.who = _Shown()
        if shown.mark is not identities.mark:
            self._read(shown, identities, cycle.head)
        if shown.identity is None:
            return identities.of_address(client_of(cycle, self._proxies))
        identity = shown.identity()
        if identity is None:  # the identities in force hold it
            raise Unauthorized(UNKNOWN)
        if shown.expires_s is not None and self._clock() >= shown.expires_s:
            raise Unauthorized(EXPIRED)
        return identity

    def _read(self, shown: _Shown, identities: Identities, head: Head) -> None:
        credential = credential_of(head.headers, head.by_name, head.key)
        found: Recognized | None = None
        if isinstance(credential, Signature):
            path = head.target.decode("utf-8", "surrogateescape")
            found = identities.of_signature(credential, head.method, path, _time_of(head.url), self._clock())
        elif credential is not None:
            found = identities.of_credential(credential, self._clock())
        shown.identity = None if found is None else weakref.ref(found.identity)  # which the identities hold
        shown.expires_s = None if found is None else found.expires_s
        shown.mark = identities.mark


def _time_of(url: bytes) -> str:
    """Return the parameter `ts` of a target's query, "" if it has none."""
    pairs = url.partition(b"?")[2].split(b"&")
    return next((pair[3:].decode("latin-1") for pair in pairs if pair.startswith(b"ts=")), "")
