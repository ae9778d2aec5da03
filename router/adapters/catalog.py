"""The catalog: facts about the installed models, read with `/api/tags` and one verbose `/api/show` per manifest digest.

A digest identifies its content, so each digest is shown once. A name that moves to another digest is shown again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

from router.adapters.control import Refused
from router.adapters.shown_models import ShownModels
from router.adapters.shows import Row, Shows
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.errors import BadRequest

_Named = tuple[str, str, bool]
"""The name of a model, its digest, and whether it was shown."""

ROWS_AT_ONCE = 100
"""Of thousands; others get their turn in between. The facts of one may take 40 µs."""

SHOWN_AT_ONCE = 1000
"""Rows whose models were shown; the facts of one exist already, perhaps under another name."""

SETTLE_S = 1.0
"""A reading waits at most this long for the shows of new models; they usually take less."""


class _Server(Protocol):
    """The part of a ModelServer that the catalog uses."""

    async def tags(self) -> list[dict[str, Any]]: ...

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]: ...


class CatalogReader:
    """Reads the facts of all installed models. Concurrent calls of `refresh` share one reading.

    `patience_s` is how long one model's show may be waited for, `report` receives sentences for the operator, `kept`
    keeps what was shown.
    """

    def __init__(
        self,
        server: _Server,
        *,
        patience_s: float = 10.0,
        report: Callable[[str], None] = lambda _: None,
        kept: ShownModels | None = None,
    ) -> None:
        self._server = server
        self._shows = Shows(server, patience_s, lambda: self._on_shown(), report, kept)
        self._report = report
        self._last_refusal = ""
        self._on_shown: Callable[[], None] = lambda: None
        self._rows: dict[str, Row] = {}
        self._named: dict[_Named, ModelFacts] = {}  # of the models that are listed
        self._catalog: Mapping[str, ModelFacts] = MappingProxyType({})
        self._unshown = Unshown()
        self._better: deque[str] = deque()  # those of them whose models were shown
        self._reading: asyncio.Task[Mapping[str, ModelFacts]] | None = None
        self._freeing: asyncio.TimerHandle | None = None

    def notify(self, on_shown: Callable[[], None]) -> None:
        """Call `on_shown` whenever `catalog` has better facts of a model than before."""
        self._on_shown = on_shown

    async def refresh(self, *, is_fresh: bool = False) -> Mapping[str, ModelFacts]:
        """Return the facts by canonical name (`names.key_of`). Raises UpstreamError when `/api/tags` cannot be read.

        A model that was not shown within `SETTLE_S` has coarse facts from its row, and is shown in the background. One
        whose show failed is shown again at the next refresh. The facts of an unchanged model are the same object as
        before.
        """
        if is_fresh and self._reading is not None:  # it may have listed before what its caller knows of
            await asyncio.wait([self._reading])
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            # Retrieve the exception even if all callers were cancelled: asyncio logs one that nobody retrieved.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._reading)

    def catalog(self) -> Mapping[str, ModelFacts]:
        """Return what is known now of the models that were listed last.

        If very many are known better, because they have one digest, the rest of them are told a moment later.
        """
        for digest in self._shows.taken_news():
            self._better.extendleft(self._unshown.pop(digest))  # what was shown last may be waited for
        better: dict[str, ModelFacts] = {}
        while self._better and len(better) < SHOWN_AT_ONCE:
            key = self._better.popleft()
            if (row := self._rows.get(key)) and (shown := self._shows.facts(_digest(key, row))):
                better[key] = _under_name(row, shown)
                self._named[row.name, _digest(key, row), True] = better[key]
        if better:
            self._catalog = MappingProxyType({**self._catalog, **better})
        if self._better:
            asyncio.get_running_loop().call_soon(self._on_shown)
        return self._catalog

    @property
    def is_reading(self) -> bool:
        """True while models are being shown."""
        return self._shows.is_reading

    def awaited(self, keys: Iterable[str], patience_s: float | None = None) -> list[str]:
        """Return the keys of those models that are not shown yet, and worth waiting for (`Shows.is_awaited`)."""
        listed = [key for key in keys if key in self._rows]
        return [key for key in listed if self._shows.is_awaited(_digest(key, self._rows[key]), patience_s)]

    async def read_first(self, keys: Iterable[str], patience_s: float | None = None) -> None:
        """Show these models ahead of all others; return when that has ended, or is not worth waiting for any more."""
        await self._shows.read_first([_digest(key, self._rows[key]) for key in keys if key in self._rows], patience_s)

    async def aclose(self) -> None:
        """Cancel what is being read."""
        if self._reading is not None:
            self._reading.cancel()
        if self._freeing is not None:
            self._freeing.cancel()
        await self._shows.aclose()

    async def _read(self) -> Mapping[str, ModelFacts]:
        rows: dict[str, Row] = {}
        for number, fields in enumerate(await self._tags(), 1):
            row = Row.of(fields)
            if key := _key(row):
                rows[key] = row
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        wanted = {_digest(key, row): row for key, row in rows.items()}
        await asyncio.sleep(0)
        self._shows.list_only(wanted.keys())
        await asyncio.sleep(0)
        self._rows = rows
        self._shows.want(wanted)
        await asyncio.sleep(0)
        await self._make_catalog(rows)
        self._free()
        await self._shows.settle(SETTLE_S)
        return self.catalog()

    async def _make_catalog(self, rows: Mapping[str, Row]) -> None:
        """Set the facts of the models in `rows`; in steps, too."""
        catalog: dict[str, ModelFacts] = {}
        named: dict[_Named, ModelFacts] = {}
        unshown = Unshown()
        for number, (key, row) in enumerate(rows.items(), 1):
            known, catalog[key] = self._facts(key, row)
            named[known] = catalog[key]
            if not known[2]:
                unshown.add(known[1], key)
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._shows.leaving.add([facts for known, facts in self._named.items() if known not in named])
        self._catalog, self._named, self._unshown = MappingProxyType(catalog), named, unshown
        self._better.clear()
        shown_meanwhile = [digest for digest in unshown.digests() if self._shows.facts(digest) is not None]
        for digest in shown_meanwhile:
            self._better.extend(unshown.pop(digest))

    def _free(self) -> None:
        """Free what is gone, in steps."""
        if self._freeing is not None:
            self._freeing.cancel()
        pause_s = self._shows.leaving.let_go()
        self._freeing = asyncio.get_running_loop().call_later(pause_s, self._free) if pause_s else None

    async def _tags(self) -> list[dict[str, Any]]:
        try:
            return await self._server.tags()
        except Refused as error:
            if error.message != self._last_refusal:
                self._last_refusal = error.message
                self._report(f"the list of models cannot be read: {error.message}")
            raise

    def _facts(self, key: str, row: Row) -> tuple[_Named, ModelFacts]:
        """Return the facts of a listed model, the same object as before unless something is new."""
        digest = _digest(key, row)
        shown = self._shows.facts(digest)
        known = row.name, digest, shown is not None
        if (facts := self._named.get(known)) is not None:
            return known, facts
        return known, ModelFacts.of_show(row.fields(), {}) if shown is None else _under_name(row, shown)


class Unshown:
    """The keys of models that were not shown yet, by their digests.

    A list for each of ten thousand digests would be as many objects for the garbage collector to look at.
    """

    def __init__(self) -> None:
        self._last: dict[str, str] = {}  # digest → its last key
        self._before: dict[str, str] = {}  # key → the one before it of the same digest

    def add(self, digest: str, key: str) -> None:
        if (before := self._last.get(digest)) is not None:
            self._before[key] = before
        self._last[digest] = key

    def digests(self) -> Iterable[str]:
        return self._last

    def pop(self, digest: str) -> Iterator[str]:
        """Remove a digest; yield its keys."""
        key = self._last.pop(digest, None)
        while key is not None:
            yield key
            key = self._before.pop(key, None)


def _under_name(row: Row, shown: ModelFacts) -> ModelFacts:
    """Return what was shown of a model under the name of its row: several may have the same digest."""
    return shown if shown.name == row.name else replace(shown, name=row.name)


def _digest(key: str, row: Row) -> str:
    return row.digest or key


def _key(row: Row) -> str:
    try:
        return key_of(row.name)
    except BadRequest:
        return ""
