"""One connection to a Valkey or Redis server that runs scripts: an answer in time, or `StoreLost`.

The driver is optional: `pip install 'ollama-router[valkey]'`. Of it only one connection is used, and one call at a time
that may hold several scripts, because its pools raise or wait when there are more calls than connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import socket
from collections.abc import Coroutine, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from router.adapters.limit_scripts import MOST, Script
from router.core.masking import masked
from router.errors import ConfigError

if TYPE_CHECKING:
    from valkey.asyncio import Valkey


T = TypeVar("T")
HELD_UP_S = 0.01
"""A time that ends later than this was not kept: the loop had something else to do."""

CLOSE_S = 0.05
"""How long is waited for the end of a connection."""

_SCHEMES = {"redis": "valkey", "rediss": "valkeys"}


class StoreLost(Exception):
    """The server did not answer in time, or not as it should. The text is for the operator."""


class ValkeyStore:
    """The server at `url`, without the credentials. Raises ConfigError if the driver is missing.

    `ca` is a file with the authorities of its certificate, None = those of the system.
    """

    def __init__(
        self, url: str, *, user: str | None = None, password: str | None = None, ca: str | None = None
    ) -> None:
        try:
            self._driver = importlib.import_module("valkey.asyncio")
            self._backoff = importlib.import_module("valkey.backoff")
        except ImportError:
            raise ConfigError("shared.valkey needs the driver of Valkey: pip install 'ollama-router[valkey]'") from None
        scheme, rest = url.split("://", 1)
        self._url = f"{_SCHEMES.get(scheme, scheme)}://{rest}"
        self._user, self._password, self._ca = user, password, ca
        self._client: Valkey | None = None
        self._lookup: asyncio.Future[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def connect(self, timeout_s: float) -> None:
        """Connect within `timeout_s`. Raises StoreLost."""
        await self.drop()
        await self._in_time(self._connect(timeout_s), timeout_s, "it cannot be reached within")

    async def run(self, scripts: Sequence[Script], timeout_s: float) -> list[list[int] | StoreLost]:
        """Run scripts within `timeout_s` in all, and return the answer or the fault of each.

        Raises StoreLost, after which it must be connected again.
        """
        return await self._in_time(self._answers(scripts), timeout_s, "it did not answer within")

    async def _answers(self, scripts: Sequence[Script]) -> list[list[int] | StoreLost]:
        found = await self._sent(scripts, by_digest=True)
        unknown = [place for place, answer in enumerate(found) if _is_unknown(answer)]
        if unknown:  # after a start of the server, or SCRIPT FLUSH
            again = await self._sent([scripts[place] for place in unknown], by_digest=False)
            for place, answer in zip(unknown, again, strict=True):
                found[place] = answer
        return [_checked(script, answer) for script, answer in zip(scripts, found, strict=True)]

    async def drop(self) -> None:
        """Close the connection; idempotent, and never raises."""
        client, self._client = self._client, None
        if client is not None:
            await asyncio.wait({self._begin(client.connection_pool.disconnect())}, timeout=CLOSE_S)

    async def _in_time(self, work: Coroutine[Any, Any, T], timeout_s: float, late: str) -> T:
        """Return the result of `work`; raise StoreLost if it fails, or takes longer although the loop was not held up.

        It runs in a task of its own: the driver takes a cancellation for a lost connection, and goes on.
        """
        now, task = asyncio.get_running_loop().time, self._begin(work)
        try:
            began_s = now()
            await asyncio.wait({task}, timeout=timeout_s)
            if not task.done() and now() - began_s > timeout_s + HELD_UP_S:  # what has arrived is still to be read
                await asyncio.wait({task}, timeout=timeout_s)
            if task.done():
                return task.result()
            why = f"{late} {timeout_s * 1000:.0f} ms"
        except Exception as error:  # whatever the driver raises: what it reads may be anything
            why = _why(error)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=CLOSE_S)  # until it has given its connection back
        await self.drop()
        raise StoreLost(why)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody may wait for it any more

    async def _connect(self, timeout_s: float) -> None:
        await self._look_up()
        self._client = self._made(timeout_s)
        await self._client.ping()

    def _made(self, timeout_s: float) -> Valkey:
        options: dict[str, Any] = {"ssl_check_hostname": True, "ssl_ca_certs": self._ca} if self._is_tls else {}
        client: Valkey = self._driver.Valkey.from_url(
            self._url,
            username=self._user,
            password=self._password,
            retry=self._driver.retry.Retry(self._backoff.NoBackoff(), 0),  # else a dead server costs seconds a call
            socket_connect_timeout=timeout_s,
            max_connections=1,
            lib_name=None,
            lib_version=None,
            client_name="ollama-router",
            **options,
        )
        return client

    @property
    def _is_tls(self) -> bool:
        return self._url.startswith("valkeys:")

    async def _look_up(self) -> None:
        """Wait for the address of the server: one look-up at a time, because one that hangs keeps its thread."""
        host = urlsplit(self._url).hostname
        if host is None:  # a socket in the file system
            return
        if self._lookup is None or self._lookup.done():
            work = asyncio.get_running_loop().run_in_executor(None, socket.getaddrinfo, host, None)
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it
            self._lookup = work
        await asyncio.shield(self._lookup)

    async def _sent(self, scripts: Sequence[Script], *, by_digest: bool) -> list[Any]:
        if self._client is None:
            raise StoreLost("it is not connected")
        pipeline = self._client.pipeline(transaction=False)
        for script in scripts:
            send, text = (pipeline.evalsha, _digest(script.text)) if by_digest else (pipeline.eval, script.text)
            send(text, len(script.keys), *script.keys, *(str(one) for one in script.arguments))
        return list(await pipeline.execute(raise_on_error=False))


def _checked(script: Script, answer: Any) -> list[int] | StoreLost:
    if isinstance(answer, list) and len(answer) >= script.answers and all(isinstance(one, int) for one in answer):
        if all(-1 <= one <= MOST for one in answer[: script.answers]):
            return answer
        return StoreLost("it answered with numbers that no script of the router returns")
    if isinstance(answer, Exception):
        return StoreLost(_why(answer))
    return StoreLost(f"it answered with {type(answer).__name__} instead of numbers")


def _is_unknown(answer: Any) -> bool:
    return isinstance(answer, Exception) and type(answer).__name__ == "NoScriptError"


@lru_cache
def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _why(error: Exception) -> str:
    text = masked(" ".join(str(error).split()))[:200]
    return text or type(error).__name__
