"""On which of several backends or nodes models are managed, unless a request says so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from router.routing.directory import Managed

MOST_BLOBS = 4096
"""Uploads of which is remembered where they went."""

EVERYWHERE = frozenset(("delete", "copy"))
"""What is done on each that has the model."""

OF_WHAT_IS_THERE = EVERYWHERE | {"push"}
"""What needs a model that is there."""


class Managing(Protocol):
    """A backend or a node that is up."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def total_bytes(self) -> int:
        """The memory of its cards."""

    def has_model(self, name: str) -> bool:
        """Return whether it has a model of that name."""


M = TypeVar("M", bound=Managing)


class Uploads:
    """Remembers where blobs were uploaded, for the creation that follows."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, str] = OrderedDict()  # digest → name

    def targets(self, what: Managed, asked: M | None, up: Sequence[M], absent: Callable[[str], None]) -> Sequence[M]:
        """Return where models are managed: on the one that is `asked` for, else where they belong; see `_belonging`."""
        found = [asked] if asked is not None else self._belonging(what, up, absent)
        if what.kind == "blob_put":
            self._remember(what.blobs, found[0].name)
        return found

    def _remember(self, digests: frozenset[str], place: str) -> None:
        for digest in digests:
            self._places[digest] = place
            self._places.move_to_end(digest)
            if len(self._places) > MOST_BLOBS:
                self._places.popitem(last=False)

    def _belonging(self, what: Managed, up: Sequence[M], absent: Callable[[str], None]) -> Sequence[M]:
        """Return those of `up` on which models are managed: where they belong.

        A deletion or copy goes to each that has the model; a model is pulled, pushed and created where it is, a new one
        where the biggest cards are; and a creation goes where its blobs went. `absent` may raise for a model that none
        of them has although it has to be there.
        """
        biggest = max(up, key=lambda one: one.total_bytes)
        uploaded = {self._places.get(digest) for digest in what.blobs}
        if sent := [one for one in up if one.name in uploaded]:
            return sent[:1]
        name = next((what.names[role] for role in ("source", "from", "model") if role in what.names), "")
        having = [one for one in up if one.has_model(name)]
        if not having and what.kind in OF_WHAT_IS_THERE:
            absent(name)
        if what.kind in EVERYWHERE:
            return having or [biggest]
        return [biggest] if biggest in having or not having else having[:1]
