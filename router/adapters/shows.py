"""Reads `/api/show` of many models in the background: few at once, and first those that a request or a runner needs.

A show can take a minute (a cold disk) or hang (a dead mount). That delays its own model only, and not without
end: a model is waited for until `patience_s` after it was first asked for, and has coarse facts until it is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import msgspec
from cachetools import LRUCache

from router.adapters.control import Refused
from router.adapters.leaving import Leaving
from router.adapters.shown_models import ShownModels
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts
from router.core.ollama.show import size, text
from router.errors import ModelNotFound, RouterError, UpstreamTimeout

AT_ONCE, IN_BACKGROUND, HANGING_IN_BACKGROUND = 8, 2, 4
"""Shows under way: of all kinds, of models that no one waits for, and the latter while some of them take long."""

LONG_S = 5.0
"""A show that takes longer leaves its place among those in the background to another."""

GATHER_S = 0.25
"""Time in which the facts of models that nothing waits for are gathered."""

AGAIN_S = 0.25
"""Pause before a refused show is repeated: Ollama refuses any model while another one vanishes from its list."""

PAUSE_S, MAX_PAUSE_S = 60.0, 960.0
"""First and longest pause before a show that did not end in time is tried again; each doubles the last."""

_MAX_KEPT = 8192

_INLINE_TENSORS = 500
"""A model with more of them is sized in a thread."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row of `/api/tags`: its name and digest ("" without one), and all of it as JSON.

    As objects, ten thousand rows would be many more for Python's garbage collector to look at.
    """

    name: str
    digest: str
    text: bytes

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Row:
        """Return a row with these fields."""
        name, digest = text(fields.get("name")) or text(fields.get("model")), text(fields.get("digest"))
        try:
            return cls(name, digest, msgspec.json.encode(fields))
        except OverflowError:  # a number that none of Ollama's is like
            rest = {"name": name, "digest": digest, "size": size(fields.get("size"))}
            return cls(name, digest, msgspec.json.encode(rest))

    def fields(self) -> dict[str, Any]:
        """Return the row as Ollama has sent it."""
        return _read_row(self.text)


_read_row = msgspec.json.Decoder(dict[str, Any]).decode


class ShowServer(Protocol):
    """The part of a ModelServer that is used here."""

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]: ...


class Shows:
    """The shows of one Ollama's models, by manifest digest, which identifies their content.

    `on_shown` is called whenever a model has new facts. `report` is called with a sentence for the operator, once per
    model and reason, if a model has to be sized by its download. `kept` keeps what was shown.
    """

    def __init__(
        self,
        server: ShowServer,
        patience_s: float,
        on_shown: Callable[[], None],
        report: Callable[[str], None],
        kept: ShownModels | None = None,
    ) -> None:
        self._server = server
        self._patience_s = patience_s
        self._on_shown = on_shown
        self._report = report
        self._facts = kept or ShownModels()
        self._news: dict[str, None] = {}  # digests that were shown since `taken_news`
        self._failed: LRUCache[str, tuple[str, float, float]] = LRUCache(_MAX_KEPT)  # reason, not before, pause
        self._asked_at_s: dict[str, float] = {}  # open ones that something waits for
        self._queue: dict[str, Row] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._began_at_s: dict[str, float] = {}
        self._ended = asyncio.Event()  # replaced whenever a show ends
        self._gathering: asyncio.TimerHandle | None = None
        self._now = asyncio.get_running_loop().time

    def facts(self, digest: str) -> ModelFacts | None:
        """Return the facts that the model was shown with, None if it was not shown yet."""
        return self._facts.get(digest)

    @property
    def leaving(self) -> Leaving:
        """What is forgotten, to be freed."""
        return self._facts.leaving

    def taken_news(self) -> list[str]:
        """Return the digests of the models that were shown since the last call."""
        news, self._news = self._news, {}
        return list(news)

    @property
    def is_reading(self) -> bool:
        """True while there is something to show."""
        return bool(self._queue or self._running)

    def is_awaited(self, digest: str, patience_s: float | None = None) -> bool:
        """Return whether the model's first show has not ended yet, and may still be waited for.

        That is until `patience_s` (default: the configured one) after something began to wait for it.
        """
        if digest in self._failed or not (digest in self._queue or digest in self._running):
            return False
        return self._now() < self._patient_until_s(digest, patience_s)

    def list_only(self, digests: Collection[str]) -> None:
        """Set which models are listed: those that are not are forgotten some time."""
        self._facts.list_only(digests)

    def want(self, rows: Mapping[str, Row]) -> None:
        """Set the models to show by digest; those that were shown already, or failed just now, are left out."""
        now_s = self._now()
        self._queue = {
            digest: row
            for digest, row in rows.items()
            if digest not in self._facts
            and digest not in self._running
            and (digest not in self._failed or self._may_try(digest, now_s))
        }
        kept = rows.keys() | set(self._running)  # those that wait for a model that is gone wait no longer than others
        self._asked_at_s = {digest: at_s for digest, at_s in self._asked_at_s.items() if digest in kept}
        self._pump()

    def _may_try(self, digest: str, now_s: float) -> bool:
        _, not_before_s, _ = self._failed[digest]
        return now_s >= not_before_s

    async def read_first(self, digests: Collection[str], patience_s: float | None = None) -> None:
        """Show these models ahead of all others, and wait until that has ended or their time is over."""
        for digest in digests:
            if self.is_awaited(digest, patience_s):
                self._asked_at_s.setdefault(digest, self._now())
        self._pump()
        while awaited := [digest for digest in digests if self.is_awaited(digest, patience_s)]:
            await self._wait(max(self._patient_until_s(digest, patience_s) for digest in awaited) - self._now())

    async def settle(self, timeout_s: float) -> None:
        """Wait until nothing is to be shown, at most `timeout_s`."""
        until_s = self._now() + timeout_s
        while (self._queue or self._running) and self._now() < until_s:
            await self._wait(until_s - self._now())

    async def aclose(self) -> None:
        """Cancel the shows under way."""
        self._queue.clear()
        self._cancel_gathering()
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _patient_until_s(self, digest: str, patience_s: float | None) -> float:
        patient_s = self._patience_s if patience_s is None else patience_s
        return self._asked_at_s.get(digest, self._now()) + patient_s

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return

    # --- which is next -----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start what may start: 1. what something waits for, 2. the others, while few of them are under way."""
        for digest in [digest for digest in self._asked_at_s if digest in self._queue]:
            if len(self._running) < AT_ONCE:
                self._start(digest)
        while self._queue and self._has_place():
            self._start(next(iter(self._queue)))

    def _has_place(self) -> bool:
        long_ago_s = self._now() - LONG_S
        quick = sum(began_at_s > long_ago_s for began_at_s in self._began_at_s.values())
        return quick < IN_BACKGROUND and len(self._running) < HANGING_IN_BACKGROUND

    def _start(self, digest: str) -> None:
        row = self._queue.pop(digest)
        self._began_at_s[digest] = self._now()
        task = self._running[digest] = asyncio.create_task(self._show(digest, row))
        task.add_done_callback(lambda _: self._end(digest))
        asyncio.get_running_loop().call_later(LONG_S + 0.01, self._pump)

    def _end(self, digest: str) -> None:
        del self._running[digest], self._began_at_s[digest]
        is_awaited = self._asked_at_s.pop(digest, None) is not None
        self._pump()
        if digest in self._facts:
            self._news[digest] = None
            self._note_shown(is_urgent=is_awaited or not self.is_reading)
        self._ended.set()
        self._ended = asyncio.Event()

    def _note_shown(self, *, is_urgent: bool) -> None:
        """Call `on_shown`, now or for all that are shown within `GATHER_S`: each call reads the whole catalog."""
        if is_urgent:
            self._cancel_gathering()
            self._on_shown()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._note_shown_at_last)

    def _note_shown_at_last(self) -> None:
        self._gathering = None
        self._on_shown()

    def _cancel_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    # --- one show ----------------------------------------------------------------------------------------------

    async def _show(self, digest: str, row: Row) -> None:
        name = row.name
        try:
            facts = await self._sized(row.fields(), await self._ask(name))
        except RouterError as error:
            self._fail(digest, name, error)
            return
        self._failed.pop(digest, None)
        facts = self._facts.keep(digest, facts)
        if facts.doubt:
            self._report(f"{name} is sized by its download: {facts.doubt}")

    async def _sized(self, row: Mapping[str, Any], show: Mapping[str, Any]) -> ModelFacts:
        tensors = show.get("tensors")
        if isinstance(tensors, list) and len(tensors) > _INLINE_TENSORS:  # tens of milliseconds
            return await asyncio.to_thread(sized, row, show)
        return sized(row, show)

    async def _ask(self, name: str) -> dict[str, Any]:
        try:
            return await self._server.show(name, verbose=True)
        except (ModelNotFound, Refused):
            await asyncio.sleep(AGAIN_S)
            return await self._server.show(name, verbose=True)

    def _fail(self, digest: str, name: str, error: RouterError) -> None:
        before, _, last_pause_s = self._failed.get(digest, ("", 0.0, 0.0))
        pause_s = min(max(PAUSE_S, 2 * last_pause_s), MAX_PAUSE_S) if isinstance(error, UpstreamTimeout) else 0.0
        self._failed[digest] = error.message, self._now() + pause_s, pause_s
        if error.message != before:
            self._report(f"{name} is sized by its download until Ollama shows it: {error.message}")


def sized(row: Mapping[str, Any], show: Mapping[str, Any]) -> ModelFacts:
    """Return the facts of a model, without its metadata if the formulas cannot work with it."""
    facts = ModelFacts.of_show(row, show)
    try:
        shape_of(facts)
    except Exception as error:  # whatever the metadata says, it costs this model alone
        return facts.doubted(f"its metadata cannot be used ({error!r})")
    return facts
