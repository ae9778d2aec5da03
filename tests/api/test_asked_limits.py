"""Requests whose limits are asked elsewhere before it is known whether they are admitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.api.limits import Limits
from router.api.settings import EdgeSettings
from router.core.teams.identity import Identities
from router.core.teams.keys import digest_of
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.quotas import Asking, Granted, Refused
from router.core.teams.team import ANYONE, Key, Team, TeamLimits
from router.http.client.response import UpstreamResponse
from router.telemetry import Answered, Rejected
from tests.fakes import FakeDispatcher, RawClient, Reply, client, running_edge
from tests.http.scripted_relay import ScriptedRelay

BODY = '{"model":"m","prompt":"x","stream":false}'
DONE = b'{"response":"x","done":true,"prompt_eval_count":30,"eval_count":20}'
WAYS = pytest.mark.parametrize("headers", [(), (("X-Request-Id", "mine"),)], ids=["fast path", "general path"])


class Elsewhere(MemoryQuotas):
    """Counts that are asked: each answer waits for `may_answer`."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0, lambda: 0.0)
        self.may_answer, self.is_asked = asyncio.Event(), asyncio.Event()
        self.settled: list[tuple[str, int]] = []

    def admit(self, team: Team, request: str, tokens: int) -> Asking:  # type: ignore[override]
        async def answer() -> Granted | Refused:
            self.is_asked.set()
            await self.may_answer.wait()
            return super(Elsewhere, self).admit(team, request, tokens)

        return Asking(answer)

    def settle(self, request: str, tokens: int) -> None:
        self.settled.append((request, tokens))
        super().settle(request, tokens)


class Scene:
    def __init__(self, quotas: Elsewhere, team: Team, events: list[object]) -> None:
        self.quotas, self.team, self.events = quotas, team, events

    def connected(self, dispatcher: FakeDispatcher, raw: RawClient, port: int) -> Scene:
        self.dispatcher, self.raw, self.port = dispatcher, raw, port
        return self

    async def ask(self, headers: tuple[tuple[str, str], ...]) -> Reply:
        return await self.raw.ask("POST", "/api/generate", BODY, [("Authorization", "Bearer key-of-coding"), *headers])

    def asked(self, kind: type) -> list[object]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def asking(**limits: int) -> AsyncIterator[Scene]:
    team = Team("coding", keys=(Key("k", digest_of(b"key-of-coding")),), limits=TeamLimits(**limits))
    identities, quotas, events = Identities((team,), ANYONE.team), Elsewhere(), list[object]()

    class Rules:
        def __init__(self) -> None:
            self.identities = identities

    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, (), DONE)))
    more = {"rules": Rules(), "emit": events.append, "team_limits": Limits(quotas, events.append)}
    async with (
        running_edge(dispatcher, EdgeSettings(is_loopback=False), **more) as running,
        client(running.port) as raw,
    ):
        yield Scene(quotas, team, events).connected(dispatcher, raw, running.port)


@WAYS
async def test_a_request_waits_until_it_is_known_and_is_then_answered_as_ever(
    headers: tuple[tuple[str, str], ...],
) -> None:
    """It counts, with what is left and what it took."""
    async with asking(requests_per_minute=5, tokens_per_day=1000) as one:
        reply = asyncio.create_task(one.ask(headers))
        await one.quotas.is_asked.wait()
        assert one.dispatcher.calls == []
        one.quotas.may_answer.set()
        assert (await reply).status == 200
        assert (await reply).headers["x-ratelimit-remaining-requests"] == "4"
        assert [tokens for _, tokens in one.quotas.settled] == [50]
        assert one.quotas.under_way(one.team) == 0


@WAYS
async def test_one_that_is_refused_is_a_429_and_reported_once_g9(headers: tuple[tuple[str, str], ...]) -> None:
    """As if it had been known at once."""
    async with asking(requests_per_minute=1) as one:
        one.quotas.may_answer.set()
        assert (await one.ask(headers)).status == 200
        refused = await one.ask(headers)
        assert refused.status == 429
        assert refused.json() == {"error": "the team coding may use at most 1 request per minute; try again in 60 s"}
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        await asyncio.sleep(0)
        assert one.asked(Rejected) == [Rejected("coding", "requests_per_minute")]
        (reported,) = one.asked(Answered)
        assert isinstance(reported, Answered)
        assert (reported.status, reported.team, reported.route) == (429, "coding", "/api/generate")
        assert len(one.dispatcher.calls) == 1


@WAYS
async def test_a_client_that_leaves_meanwhile_reaches_nothing_a4(headers: tuple[tuple[str, str], ...]) -> None:
    """Whether the answer comes or not."""
    async with asking(concurrent=1) as one:
        leaving = asyncio.create_task(one.ask(headers))
        await one.quotas.is_asked.wait()
        one.raw.close()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.sleep(0.05)
        one.quotas.may_answer.set()
        async with client(one.port) as other:
            one.raw = other
            assert (await one.ask(headers)).status == 200
        assert len(one.dispatcher.calls) == 1
        assert one.quotas.under_way(one.team) == 0
