"""Who may see the admin pages and change something through them: admin keys, and requests of the pages themselves.

| | without admin keys | with admin keys |
| --- | --- | --- |
| on loopback, reading | open | open |
| on loopback, POST | requests of the own pages, or with an X-Router-Admin or Bearer of any value | with a key |
| elsewhere | refused | with a key |

The files of the dashboard, `/healthz` and `/readyz` need no key anywhere: they show nothing of what is served. Where
reading needs a key, that of a team is enough for `/router/explain`, which explains its own requests to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from router.core.teams.identity import EXPIRED, TYPO, UNKNOWN
from router.core.teams.keys import digest_of, has_typo
from router.core.teams.team import Key

PUBLIC = frozenset(("/healthz", "/readyz"))
SAME_ORIGIN = (b"same-origin", b"none")
"""Values of Sec-Fetch-Site of a browser's request for a page of the same origin, or of its user."""

NEEDS_KEY = (
    "this needs an admin key: Authorization: Bearer KEY, or X-Router-Admin: KEY (for the commands: "
    "OLLAMA_ROUTER_ADMIN_KEY); ollama-router keys new --admin makes one for admin_keys of the configuration"
)
CLOSED = (
    "the admin address is not on loopback, so it needs admin keys, and none is configured; ollama-router keys new "
    "--admin makes one for admin_keys of the configuration"
)
OF_A_TEAM = "this is the key of a team; here an admin key is needed (ollama-router keys new --admin)"
SIGNS = frozenset((b"", b"ollama-router", b"1", b"true", b"yes"))
"""Values of X-Router-Admin that are no keys, but only show that no web page sends the request."""

OF_TEAMS = frozenset(("/router/explain",))
"""The pages that the key of a team opens, too."""

FOREIGN = "a request that changes something needs the header X-Router-Admin, so that no web page can send it"


class Refused(NamedTuple):
    """A refusal: its status, and why."""

    status: int
    why: str


class AdminLock:
    """Decides about requests to the admin pages. `clock` returns Unix time, by which keys expire.

    `is_open` switches the keys off, `public` are further paths that need none. `is_of_team` tells whether a key is one
    of a team, valid now.
    """

    def __init__(
        self,
        keys: Iterable[Key] = (),
        *,
        is_loopback: bool = True,
        is_open: bool = False,
        public: Iterable[str] = (),
        clock: Callable[[], float] = float,
        is_of_team: Callable[[bytes], bool] = lambda _key: False,
    ) -> None:
        self._expiry = {key.sha256: key.expires_s for key in keys}
        self._is_loopback = is_loopback
        self._is_open = is_open
        self._public = PUBLIC | frozenset(public)
        self._clock = clock
        self._is_of_team = is_of_team

    def refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Refused | None:
        """Return why a request is refused, None if it is not. `headers` are by their names in lower case."""
        is_reading = method in ("GET", "HEAD")
        if is_reading and (path in self._public or self._is_open or self._is_loopback):
            return None
        if self._is_open or (self._is_loopback and not self._expiry):
            return None if _is_own(headers) else Refused(403, FOREIGN)
        if not self._expiry:
            return Refused(403, CLOSED)
        key = shown_key(headers)
        if is_reading and path in OF_TEAMS and self._is_of_team(key):
            return None
        why = self._fault_of(key)
        return Refused(401, why) if why else None

    def valid_for_s(self, headers: Mapping[bytes, bytes]) -> float | None:
        """Return how long a request may read: until its key expires; None if that does not, or none is needed."""
        if self._is_open or self._is_loopback:
            return None
        expires_s = self._expiry.get(digest_of(shown_key(headers)))
        return None if expires_s is None else expires_s - self._clock()

    def _fault_of(self, key: bytes) -> str:
        """Return what is wrong with a key, "" if it is valid. It is never quoted."""
        digest = digest_of(key)
        if digest in self._expiry:
            expires_s = self._expiry[digest]
            return "" if expires_s is None or self._clock() < expires_s else _of_admins(EXPIRED)
        if key in SIGNS:
            return NEEDS_KEY
        if self._is_of_team(key):
            return OF_A_TEAM
        return _of_admins(TYPO if has_typo(key.decode("utf-8", "surrogateescape")) else UNKNOWN)


def shown_key(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that a request shows, b"" if it shows none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-router-admin", b"").strip()


def _of_admins(why: str) -> str:
    return why.replace("the key", "the admin key", 1)


def _is_own(headers: Mapping[bytes, bytes]) -> bool:
    """Return True for a request of the own pages, or with a header that a page of another site cannot send."""
    origin = headers.get(b"origin")
    is_same = origin is not None and origin.partition(b"://")[2] == headers.get(b"host")
    is_bearer = headers.get(b"authorization", b"")[:7].lower() == b"bearer "
    return is_same or is_bearer or b"x-router-admin" in headers or headers.get(b"sec-fetch-site") in SAME_ORIGIN
