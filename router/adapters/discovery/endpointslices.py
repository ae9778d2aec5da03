"""Nodes behind a Service in Kubernetes: its EndpointSlices, listed and then watched.

A watch tells changes only, and one that happens while none is open is never told. So whenever a watch ends, breaks off
or says 410, everything is listed again, and the whole set replaced. Only endpoints that are ready count, each by the
UID of its pod: an address may soon be another pod's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from router.adapters.discovery.found import Nodes, Tell, bounded, url_of
from router.adapters.heads import BoundedTransport
from router.adapters.lean_httpx import httpx

MOST_BYTES = 64 << 20
"""Longest list."""

MOST_LINE_BYTES = 4 << 20
"""Longest event of a watch: a slice has at most 1,000 endpoints."""

WATCH_S = 60
"""How long the API server is asked to keep a watch open: by then whatever was missed is known."""

SILENT_S, ANSWER_S = WATCH_S + 15.0, 15.0
"""A watch that is silent for longer is broken; a list must have come within the second."""

TIMEOUT = httpx.Timeout(ANSWER_S, read=SILENT_S)
LEAST_PAUSE_S = 0.2
"""Between two lists, also where each watch ends at once."""

Slices = dict[str, Mapping[str, Any]]


class Unusable(Exception):
    """The API server's answer cannot be used; the text says why."""


class EndpointSlices:
    """The ready endpoints of `service` ("NAMESPACE/NAME") by an API server.

    With `is_tls` their URLs begin with `https:`. `token_file` is read for each request, for tokens expire; None = no
    token. `pause_s` is the pause after a failure, which `report` is told, once until a list succeeds.
    """

    def __init__(
        self,
        service: str,
        port: int,
        *,
        url: str,
        pause_s: float,
        report: Callable[[str], None],
        token_file: str | None = None,
        tls: ssl.SSLContext | None = None,
        is_tls: bool = False,
    ) -> None:
        namespace, _, name = service.partition("/")
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._of_service = {"labelSelector": f"kubernetes.io/service-name={name}"}
        self._service, self._port, self._is_tls, self._pause_s = service, port, is_tls, pause_s
        self._report = report
        self._token_file = token_file
        self._is_failing = False
        self._slices: Slices = {}
        verify: ssl.SSLContext | bool = tls or url.startswith("https:")
        self._url, self._verify = url, verify

    async def watch(self, tell: Tell) -> None:
        """List and watch again and again."""
        transport = BoundedTransport(self._verify)
        async with httpx.AsyncClient(base_url=self._url, transport=transport, trust_env=False, timeout=TIMEOUT) as http:
            while True:
                pause_s = LEAST_PAUSE_S
                try:
                    version = await self._list(http, tell)
                    await self._follow(http, version, tell)
                except (httpx.HTTPError, httpx.InvalidURL, OSError, Unusable, msgspec.MsgspecError) as error:
                    pause_s = self._pause_s
                    self._fail(error)
                await asyncio.sleep(pause_s)

    def _fail(self, error: Exception) -> None:
        if not self._is_failing:
            self._report(f"the endpoints of {self._service} cannot be read: {str(error) or type(error).__name__}")
        self._is_failing = True

    # --- requests ----------------------------------------------------------------------------------------------

    async def _list(self, http: httpx.AsyncClient, tell: Tell) -> str:
        """Replace everything by what is there now; return the version from which to watch."""
        content = bytearray()
        async with asyncio.timeout(ANSWER_S):
            async with http.stream("GET", self._path, params=self._of_service, headers=await self._headers()) as answer:
                _check(answer)
                async for part in answer.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise Unusable(f"the list is longer than {MOST_BYTES} bytes")
        found = _mapping(_read(bytes(content)))
        rows = found.get("items")
        slices = (_mapping(row) for row in rows) if isinstance(rows, list) else iter(())
        self._slices = {_name_of(one): one for one in slices}
        self._is_failing = False
        self._tell(tell)
        return str(_mapping(found.get("metadata")).get("resourceVersion", ""))

    async def _follow(self, http: httpx.AsyncClient, version: str, tell: Tell) -> None:
        """Apply changes until the watch ends. Whatever ends it, the next list knows more."""
        params = {**self._of_service, "watch": "1", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        try:
            async with http.stream("GET", self._path, params=params, headers=await self._headers()) as answer:
                if answer.status_code == httpx.codes.GONE:
                    return
                _check(answer)
                async for line in _lines(answer):
                    if not self._apply(_mapping(_read(line))):
                        return
                    self._tell(tell)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.ReadTimeout):
            return  # broken off, as happens to long connections

    def _apply(self, event: Mapping[str, Any]) -> bool:
        """Apply one event; return False if it says that the watch cannot go on (410 above all)."""
        kind, changed = event.get("type"), _mapping(event.get("object"))
        if kind in ("ADDED", "MODIFIED"):
            self._slices[_name_of(changed)] = changed
        elif kind == "DELETED":
            self._slices.pop(_name_of(changed), None)
        return kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")

    async def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._token_file is not None:
            token = await asyncio.to_thread(Path(self._token_file).read_text)
            headers["Authorization"] = f"Bearer {token.strip()}"
        return headers

    def _tell(self, tell: Tell) -> None:
        tell(bounded(nodes_in(self._slices.values(), self._port, is_tls=self._is_tls)))


# --- reading ---------------------------------------------------------------------------------------------------


def nodes_in(slices: Iterable[Mapping[str, Any]], port: int, *, is_tls: bool = False) -> Nodes:
    """Return the nodes of these slices: the ready endpoints, by the UID of their pods.

    A pod with addresses of IPv4 and of IPv6 stands in two slices, and is always reached by the same one.
    """
    found: dict[str, str] = {}
    for one in sorted(slices, key=_name_of):
        rows = one.get("endpoints")
        for endpoint in map(_mapping, rows) if isinstance(rows, list) else ():
            addresses = endpoint.get("addresses")
            if not _is_ready(endpoint) or not isinstance(addresses, list) or not addresses:
                continue
            address = str(addresses[0])
            key = str(_mapping(endpoint.get("targetRef")).get("uid") or address)
            found.setdefault(key, url_of(address, port, is_tls=is_tls))
    return found


def _is_ready(endpoint: Mapping[str, Any]) -> bool:
    """Return whether it takes requests; where that is not said it does, by the documentation of EndpointSlices."""
    return _mapping(endpoint.get("conditions")).get("ready") is not False


def _name_of(one: Mapping[str, Any]) -> str:
    return str(_mapping(one.get("metadata")).get("name", ""))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(content: bytes) -> object:
    try:
        return msgspec.json.decode(content)
    except (UnicodeDecodeError, RecursionError) as error:
        raise Unusable("not readable JSON") from error


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise Unusable(f"the API server answered with status {answer.status_code}")


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a watch. Raises Unusable for one that is too long."""
    rest = b""
    async for part in answer.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in filter(None, lines):
            yield line
        if len(rest) > MOST_LINE_BYTES:
            raise Unusable(f"an event is longer than {MOST_LINE_BYTES} bytes")
