"""Who may see the admin pages and change something through them: admin keys, and requests of the pages themselves.

| | without admin keys | with admin keys |
| --- | --- | --- |
| on loopback, reading | open | open |
| on loopback, POST | requests of the own pages, or with an X-Router-Admin or Bearer of any value | with a key |
| elsewhere | refused | with a key |

The files of the dashboard, `/healthz` and `/readyz` need no key anywhere: they show nothing of what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from router.core.teams.keys import digest_of
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
FOREIGN = "a request that changes something needs the header X-Router-Admin, so that no web page can send it"


class Refused(NamedTuple):
    """A refusal: its status, and why."""

    status: int
    why: str


class AdminLock:
    """Decides about requests to the admin pages. `clock` returns Unix time, by which keys expire.

    `is_open` switches the keys off, `public` are further paths that need none.
    """

    def __init__(
        self,
        keys: Iterable[Key] = (),
        *,
        is_loopback: bool = True,
        is_open: bool = False,
        public: Iterable[str] = (),
        clock: Callable[[], float] = float,
    ) -> None:
        self._expiry = {key.sha256: key.expires_s for key in keys}
        self._is_loopback = is_loopback
        self._is_open = is_open
        self._public = PUBLIC | frozenset(public)
        self._clock = clock

    def refusal(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Refused | None:
        """Return why a request is refused, None if it is not. `headers` are by their names in lower case."""
        is_reading = method in ("GET", "HEAD")
        if is_reading and (path in self._public or self._is_open or self._is_loopback):
            return None
        if self._is_open or (self._is_loopback and not self._expiry):
            return None if _is_own(headers) else Refused(403, FOREIGN)
        if not self._expiry:
            return Refused(403, CLOSED)
        return None if self._is_valid(_shown(headers)) else Refused(401, NEEDS_KEY)

    def _is_valid(self, key: bytes) -> bool:
        digest = digest_of(key)
        if digest not in self._expiry:
            return False
        expires_s = self._expiry[digest]
        return expires_s is None or self._clock() < expires_s


def _shown(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key that a request shows, b"" if it shows none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-router-admin", b"").strip()


def _is_own(headers: Mapping[bytes, bytes]) -> bool:
    """Return True for a request of the own pages, or with a header that a page of another site cannot send."""
    origin = headers.get(b"origin")
    is_same = origin is not None and origin.partition(b"://")[2] == headers.get(b"host")
    is_bearer = headers.get(b"authorization", b"")[:7].lower() == b"bearer "
    return is_same or is_bearer or b"x-router-admin" in headers or headers.get(b"sec-fetch-site") in SAME_ORIGIN
