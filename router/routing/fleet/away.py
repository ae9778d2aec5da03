"""Places that do not answer: how long requests wait for them, and what is said of what only they have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from router.core.decision.chain import Chain
from router.errors import UpstreamAway
from router.routing.directory import START_S
from router.routing.fleet.place import Place

RETRY_S = 5.0
"""When a client may try again after none that could serve it answered; the state of each is read that often."""


class Away:
    """Knows which places answer, and what was installed on the others when they last did."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)
        self._now = places[0].backend.now
        self._began_s = self._now()

    def is_starting(self) -> bool:
        """Return True shortly after the start, while the state of a place is being read."""
        is_early = self._now() < self._began_s + START_S
        return is_early and any(place.backend.is_starting for place in self._places)

    async def settled(self) -> None:
        """Wait shortly after the start until it is known which places answer."""
        if self.is_starting():
            await until_done((one.backend.started() for one in self._places if one.backend.is_starting), START_S)

    async def reach(self) -> None:
        """Wait until a place is up. Raises UpstreamAway if none answers."""
        if self.is_starting():
            await self.settled()
            if _is_any_up(self._places):
                return
        await _look_again(self._places)

    def having(self, chain: Chain) -> tuple[Place, ...]:
        """Return the places that are away and may serve a chain: those that had a variant when they last answered.

        If no place is known to have one, also those of which nothing is known yet.
        """
        if any(place.variants_of(chain) for place in self._places if place.is_up):
            return ()
        away = [place for place in self._places if not place.is_up]
        having = tuple(place for place in away if place.variants_of(chain))
        return having or tuple(place for place in away if not place.backend.installed.is_known)

    def having_model(self, name: str) -> tuple[Place, ...]:
        """Return the places that are away and had a model when they last answered, if no other one has it."""
        having = [place for place in self._places if place.has_model(name)]
        return () if any(place.is_up for place in having) else tuple(having)

    async def reach_one_of(self, places: Sequence[Place]) -> None:
        """Look once more whether one of these answers. Raises UpstreamAway if none does."""
        await _look_again([place for place in places if not place.backend.is_starting])
        if not _is_any_up(places):
            raise not_answering(places)


def not_answering(places: Iterable[Place]) -> UpstreamAway:
    """Return the error that says why each of these places cannot be used."""
    return UpstreamAway("; ".join(f"{one.name}: {one.why_away()}" for one in places), retry_after_s=RETRY_S)


async def _look_again(places: Sequence[Place]) -> None:
    works = [one.backend.started() if one.backend.is_starting else one.backend.world.look_again() for one in places]
    await until_done(works, None, is_enough=lambda: _is_any_up(places))
    if places and not _is_any_up(places):
        raise not_answering(places)


def _is_any_up(places: Iterable[Place]) -> bool:
    return any(place.is_up for place in places)


async def until_done(
    works: Iterable[Awaitable[object]], timeout_s: float | None, *, is_enough: Callable[[], bool] = lambda: False
) -> None:
    """Wait for several things at once; those that are not done by the end are cancelled, and errors are ignored."""
    tasks = [asyncio.ensure_future(work) for work in works]
    pending: set[asyncio.Future[object]] = set(tasks)
    try:
        async with asyncio.timeout(timeout_s):
            while pending and not is_enough():
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
