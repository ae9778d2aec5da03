"""The dispatcher of several backends: a place is chosen for each request, whose own dispatcher carries it out.

While a request waits there, the places are ranked again every `LOOK_S`: it moves if another one can serve it sooner, or
by a bigger variant. It moves as well if its place fails it before a byte has gone to its client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from router.errors import NoVariantFits, RouterError
from router.http.client.response import Connection
from router.routing.answer import Answer
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.fleet.choosing import Choosing
from router.routing.fleet.failures import SERVER_ERROR, Failures
from router.routing.fleet.place import Place
from router.routing.outcomes import Blocked
from router.routing.underway import Reply, Underway
from router.routing.visit import Visit

LOOK_S = 1.0
"""How often the places are ranked again for a request that waits."""


async def _nothing() -> None:
    pass


NEXT = Blocked("variant", _nothing)
"""A request is to be decided again."""


class Fleet:
    """Dispatches to several places. It has the methods of `Dispatcher` that the edge uses."""

    def __init__(self, places: Sequence[Place], chains: Chains, choosing: Choosing, failures: Failures) -> None:
        self._places = {place.name: place for place in places}
        self._first = places[0]
        self._chains = chains
        self._choosing = choosing
        self._failures = failures
        self._now = places[0].backend.now
        failures.ask(choosing.has_others)

    def start(self, call: Call, reply: Reply) -> Underway | Blocked | RouterError:
        """Send the request now if nothing must be awaited; see `Dispatcher.start`."""
        try:
            place = self._enter(call)
            if isinstance(place, Blocked):
                return place
            return place.dispatcher.attempt(call, partial(self._replied, call, reply))
        except Exception as error:
            try:
                if self._moves_on(call, error):
                    return NEXT
                failure = self._explained(call, error)
            except Exception as fault:  # what ranks the other places must not keep what the request holds
                failure = fault
            return self._place_of(call).dispatcher.fail(call, failure)

    async def dispatch(self, call: Call, blocked: Blocked | None = None) -> Answer:
        """Return the answer to one inference request; see `Dispatcher.dispatch`."""
        try:
            try:
                # Not endless: each wait has its own deadline, and a request moves after failures `fleet.retries` times.
                while True:
                    found = await self._step(call, blocked)
                    if isinstance(found, Answer):
                        self._note(call, found)
                        return found
                    blocked = found
            except NoVariantFits as error:
                raise self._explained(call, error) from error
        except BaseException as error:  # also one of the explanation
            self._place_of(call).dispatcher.end(call, error)
            raise

    def abandon(self, call: Call) -> None:
        """Release what a request holds if its task was cancelled before it began."""
        self._place_of(call).dispatcher.abandon(call)

    def gone(self) -> Blocked:
        """Return what blocks a request that is to be attempted again."""
        return NEXT

    async def _step(self, call: Call, blocked: Blocked | None) -> Answer | Blocked:
        """Await what blocks the request, and attempt once. Raises the error that ends it."""
        try:
            place, connection = self._places.get(call.visit.place) if call.visit is not None else None, None
            if place is None:
                if blocked is not None:
                    await _away_from_places(call, blocked)
                entered = self._enter(call)
                if isinstance(entered, Blocked):
                    return entered
                place = entered
            elif blocked is not None:
                if blocked.why == "variant":  # it is not there any more
                    await place.dispatcher.gone().until()
                    return self._leave(place, call)
                came = await self._wait_at(place, call, blocked)
                if isinstance(came, Blocked):
                    return came
                connection = came
            found = await place.dispatcher.attempt_and_wait(call, connection)
        except RouterError as error:
            if self._moves_on(call, error):
                return NEXT
            raise
        has_moved = call.visit is None or not call.visit.place
        return NEXT if has_moved else found

    def _enter(self, call: Call) -> Place | Blocked:
        """Choose a place and put the request there; Blocked if something must be awaited before that."""
        visit = call.visit
        if visit is None:
            self._chains.begin(call)
            visit = Visit()
            call.go_to(visit)
            self._failures.budget.began(self._now())
        chosen = self._choosing.choose(call)
        if isinstance(chosen, Place):
            visit.enter(chosen.name, self._now())
        return chosen

    async def _wait_at(self, place: Place, call: Call, blocked: Blocked) -> Connection | Blocked | None:
        """Await what blocks a request at its place; return Blocked if it has moved meanwhile."""
        if blocked.why not in ("turn", "room", "upstream"):
            return await place.dispatcher.unblock(call, blocked)
        stay = asyncio.timeout(None)
        try:
            # Without a task of its own: a request must enter the resident in the same step in which its turn has come.
            async with stay:
                with self._looking(place, call, stay):
                    return await place.dispatcher.unblock(call, blocked)
        except TimeoutError:
            if not stay.expired():
                raise
        call.end_wait()
        await asyncio.sleep(0)  # the line that it has left notes that before it joins another one
        return self._leave(place, call)

    @contextmanager
    def _looking(self, place: Place, call: Call, stay: asyncio.Timeout) -> Iterator[None]:
        """End `stay` as soon as a request that waits at `place` should go elsewhere."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def again() -> None:
            nonlocal timer
            timer = loop.call_later(LOOK_S, look)

        def look() -> None:
            again()  # first, so that a fault below is not the last look
            if stay.when() is None and self._choosing.is_better_elsewhere(place, call):
                stay.reschedule(loop.time())

        again()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _leave(self, place: Place, call: Call) -> Blocked:
        """Take a request away from a place that has not failed it."""
        place.dispatcher.leave(call)
        assert call.visit is not None
        call.visit.leave()
        call.move()
        return NEXT

    # --- results -----------------------------------------------------------------------------------------------

    def _replied(self, call: Call, reply: Reply, came: Answer | RouterError | None) -> None:
        if isinstance(came, Answer):
            self._note(call, came)
        reply(came)

    def _note(self, call: Call, answer: Answer) -> None:
        if answer.status < SERVER_ERROR:
            self._failures.answered(call)

    def _moves_on(self, call: Call, error: Exception) -> bool:
        """Return True if an error before anything was sent moves the request to another place; leave that one then."""
        place = self._place_of(call)
        if not (isinstance(error, RouterError) and self._failures.moves(call, error)):
            return False
        place.dispatcher.leave(call)
        return True

    def _explained(self, call: Call, error: Exception) -> Exception:
        """Return the error with what the other places say, if nothing fits."""
        if not isinstance(error, NoVariantFits):
            return error
        return self._choosing.refused_by_all(call, self._place_of(call), error)

    def _place_of(self, call: Call) -> Place:
        """Return where a request is, or was last; the first place if it has not been anywhere."""
        visit = call.visit
        if visit is None:
            return self._first
        return self._places.get(visit.place or (visit.failed[-1] if visit.failed else ""), self._first)


async def _away_from_places(call: Call, blocked: Blocked) -> None:
    """Await what blocks a request that no place has."""
    call.begin_wait(is_queued=False)
    await blocked.until()
    call.end_wait()
