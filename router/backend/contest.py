"""A contest for the card: somebody else (a second router, a direct client) loads and unloads as the router does.

| sign                                                                    | a contest            |
| ----------------------------------------------------------------------- | -------------------- |
| a switch was upset (`SwitchResult.is_upset`)                            | by the second in row |
| a resident in use left `/api/ps`, and the router had not unloaded it    | by the second        |
| the expiry of a busy resident moved closer: somebody asked to unload it | at once              |
| a model of others was unloaded, and its memory, or what was loaded in   | at once              |
| its place, was taken at once                                            |                      |

It lasts for `switch.contest_s` after its last sign. Meanwhile:

* The router does not make room itself, because the other side would take it at once. It loads by a request that Ollama
  queues like everybody's, and that goes on until a client's own request uses the runner: so the model cannot be
  unloaded in between. It names no keep_alive: that would save a runner which Ollama has marked to go, and everybody who
  waits for its memory would wait until it expires.
* A resident gives way after its turn: it takes no new requests until it has been idle for `GIVE_S`. Ollama serves
  requests for what is loaded first, so without that the one who comes second waits as long as the first is busy.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus

from router.adapters.load_bodies import held_load_body, load_error
from router.adapters.ollama import PsRow
from router.backend.residents import Residents
from router.backend.switches import SwitchResult
from router.backend.tracked import Tracked
from router.config import Config
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import LoadOptions
from router.http.client.response import Relay, UpstreamRequest, UpstreamResponse
from router.telemetry import Notified, Telemetry

SIGNS = 2
"""Upset switches in a row, or lost residents, after which it is a contest: one may be an accident."""

HURRIED_S = 5.0
"""An expiry that moves closer by more than this shows a request to unload."""

EXPECTED_S = 60.0
"""For this long after a request that was passed on, a lost resident is no sign."""

GIVE_S = 0.5
"""How long a resident that gives way stays idle: Ollama unloads it at once if somebody waits for its memory."""

HELD_S, USED_S, LOOK_S = 2.0, 0.3, 0.02
"""A load is held for at most this long after it was verified, and for this long after a request has entered it; how
often that is looked at."""

CONTESTED = (
    "somebody else unloads what is loaded through this router: another router or client uses the same Ollama directly. "
    "From now on the models take turns"
)


class Contest:
    """Whether there is one, whose turn it is, and loads that are held until they are used.

    A resident's turn lasts `queue.age_bound_s`; one that was idle for `switch.contest_s` is no loss.
    """

    def __init__(self, relay: Relay, residents: Residents, config: Config, telemetry: Telemetry) -> None:
        self._relay = relay
        self._residents = residents
        self._turn_s, self._contest_s = config.queue.age_bound_s, config.switch.contest_s
        self._telemetry = telemetry
        self.upsets = 0  # switches in a row that were upset
        self._lost_at_s = self._expected_until_s = -math.inf
        self._until_s = -math.inf
        self._given_at_s: dict[str, float] = {}  # weights → when they last gave way, and nobody came
        self._held: set[asyncio.Task[None]] = set()
        self._now = asyncio.get_running_loop().time

    # --- signs -------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """True while somebody else takes what is loaded."""
        return self._now() < self._until_s

    def count(self, result: SwitchResult) -> None:
        """Count how a switch ended."""
        if result is SwitchResult.DONE:
            self.upsets = 0
        if result.is_upset:
            self.upsets += 1
            self.note(is_clear=self.upsets >= SIGNS)

    def note_gone(self, gone: Iterable[Tracked]) -> None:
        """Note residents that have left ps while no switch was under way; several at once are one sign."""
        now_s = self._now()
        if now_s < self._expected_until_s:
            return
        lost = [tracked for tracked in gone if self._is_lost(tracked, now_s)]
        if lost:
            self.note(is_clear=now_s - self._lost_at_s < self._contest_s)
            self._lost_at_s = now_s

    def _is_lost(self, tracked: Tracked, now_s: float) -> bool:
        self._given_at_s.pop(tracked.weights, None)
        is_in_use = tracked.in_flight or now_s - tracked.idle_since_s < self._contest_s
        is_ours = self._residents.is_ours(tracked) and not (tracked.is_spilled or tracked.going_until_s)
        return bool(is_in_use and is_ours)

    def expect_loads(self) -> None:
        """Note that a request was passed on, for which Ollama itself may load a model and evict others."""
        self._expected_until_s = self._now() + EXPECTED_S

    def note_rows(self, rows: Mapping[str, PsRow]) -> None:
        """Note the rows of ps by weights, before the residents take them over."""
        for weights, row in rows.items():
            known = self._residents.get(weights)
            if known is not None and known.in_flight and not known.going_until_s and _is_hurried(known.row, row):
                self.note(is_clear=True)

    def note(self, *, is_clear: bool) -> None:
        """Note a sign: with `is_clear` it is a contest, else it prolongs one."""
        if not (is_clear or self.is_on):
            return
        if not self.is_on:
            self._telemetry.emit(Notified(CONTESTED, level="warning"))
        self._until_s = self._now() + self._contest_s

    @property
    def in_flux_s(self) -> float:
        """The seconds that a request waits for memory that nothing explains: a load takes it before ps lists it."""
        return self._contest_s if self.is_on else 0.0

    def notes(self) -> list[str]:
        """Return what an operator should know while there is a contest, as sentences."""
        return [CONTESTED] if self.is_on else []

    # --- turns -------------------------------------------------------------------------------------------------

    def gives_way(self, weights: str) -> bool:
        """Return True if the resident takes no new requests for now, so that others have their turn."""
        if self._now() >= self._until_s:  # common case: nobody else loads models
            return False
        tracked = self._residents.get(weights)
        if tracked is None:
            return False
        now_s = self._now()
        if now_s - max(tracked.loaded_at_s, self._given_at_s.get(weights, -math.inf)) < self._turn_s:
            return False
        if tracked.in_flight or now_s - tracked.idle_since_s < GIVE_S:
            return True
        self._given_at_s[weights] = now_s
        return False

    def giving_way(self) -> frozenset[str]:
        """Return the residents that take no new requests for now."""
        return frozenset(filter(self.gives_way, self._residents)) if self.is_on else frozenset()

    # --- loads -------------------------------------------------------------------------------------------------

    async def load(self, facts: ModelFacts, options: LoadOptions) -> UpstreamResponse:
        """Load a model by a request that goes on; the caller closes it. Raises LoadFailed or ModelNotFound."""
        headers = [(b"content-type", b"application/json")]
        body = held_load_body(facts.name, options)
        response = await self._relay.open(
            UpstreamRequest(b"POST", b"/api/generate", headers, body, safe_to_resend=True)
        )
        if response.status == HTTPStatus.OK:
            return response
        try:
            text = await response.read()
        finally:
            response.close()
        raise load_error(response.status, text)

    def hold(self, tracked: Tracked, response: UpstreamResponse) -> None:
        """Close `response` once a request uses the resident, or when none comes."""
        task = asyncio.create_task(self._until_used(tracked, response.close))
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _until_used(self, tracked: Tracked, close: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(HELD_S):
                while not tracked.in_flight:  # noqa: ASYNC110 (an event per resident would cost every request)
                    await asyncio.sleep(LOOK_S)
                await asyncio.sleep(USED_S)
        except TimeoutError:
            pass
        finally:
            close()

    async def aclose(self) -> None:
        """Let go of what is held."""
        for task in tuple(self._held):
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)


def _is_hurried(before: PsRow, after: PsRow) -> bool:
    return (before.expires_at - after.expires_at).total_seconds() > HURRIED_S
