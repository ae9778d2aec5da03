"""Limits of teams at the edge: what is refused, in which form, what answers say is left, and what counts at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from router.api.limits import ANSWER_TOKENS, STREAMED_BYTES, Limits
from router.api.settings import EdgeSettings
from router.core.ollama.routes import TARGETS
from router.core.payload.read import InferenceRequest
from router.core.teams.identity import Identities
from router.core.teams.keys import digest_of
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.team import ANYONE, Identity, Key, Team, TeamLimits
from router.errors import LimitReached
from router.http.client.response import UpstreamResponse
from router.routing.answer import Released
from router.routing.call import Call
from router.telemetry import Answered, Rejected
from tests.fakes import FakeDispatcher, RawClient, Reply, client, running_edge
from tests.http.scripted_relay import ScriptedRelay

KEYS = ("Authorization", "Bearer key-of-coding"), ("Authorization", "Bearer key-of-chat")
DONE = b'{"response":"x","done":true,"prompt_eval_count":30,"eval_count":20}'
ROUTE = TARGETS["POST", b"/api/generate"]
NOON_S = 20_000 * 86400.0 + 43200
BODIES = {
    "/api/generate": '{"model":"m","prompt":"x","stream":false}',
    "/v1/chat/completions": '{"model":"m","messages":[{"role":"user","content":"x"}]}',
    "/v1/messages": '{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}]}',
}


@dataclass
class Limited:
    """An edge whose team `coding` has limits, a connection to it, the time, and what it has reported."""

    identities: Identities
    coding: Team
    events: list[object] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.quotas = MemoryQuotas(lambda: self.now_s, lambda: NOON_S + self.now_s)

    def connected(self, dispatcher: FakeDispatcher, port: int, raw: RawClient) -> Limited:
        self.dispatcher, self.port, self.raw = dispatcher, port, raw
        return self

    async def ask(self, target: str = "/api/generate", body: str = "", *, who: int = 0) -> Reply:
        return await self.raw.ask("POST", target, body or BODIES[target], [KEYS[who]])

    def remaining(self) -> int:
        left = self.quotas.left(self.coding).tokens
        assert left is not None
        return left.remaining


@asynccontextmanager
async def limited(body: bytes = DONE, **limits: int) -> AsyncIterator[Limited]:
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, (), body)))
    coding = Team("coding", keys=(Key("k", digest_of(b"key-of-coding")),), limits=TeamLimits(**limits))
    chat = Team("chat", keys=(Key("k", digest_of(b"key-of-chat")),))
    one = Limited(Identities((coding, chat), ANYONE.team), coding)
    more = {"rules": one, "emit": one.events.append, "team_limits": Limits(one.quotas, one.events.append)}
    async with (
        running_edge(dispatcher, EdgeSettings(is_loopback=False), **more) as running,
        client(running.port) as raw,
    ):
        yield one.connected(dispatcher, running.port, raw)


@pytest.mark.parametrize("target", BODIES)
async def test_a_request_above_a_limit_of_its_team_is_a_429_in_the_shape_of_its_route_g9(target: str) -> None:
    """With Retry-After and what is left; it does not reach the dispatcher, and other teams go on."""
    async with limited(requests_per_minute=2) as one:
        for _ in range(2):
            assert (await one.ask(target)).status == 200
            one.now_s += 10
        refused = await one.ask(target)
        assert refused.status == 429
        shown = {name: value for name, value in refused.headers.items() if name.startswith(("retry", "x-rate"))}
        assert shown == {
            "retry-after": "40",
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "50s",
        }
        assert "x-should-retry" not in refused.headers
        text = "the team coding may use at most 2 requests per minute; try again in 40 s"
        error = refused.json()
        if target.startswith("/api/"):
            assert error == {"error": text}
        elif target == "/v1/messages":
            assert (error["type"], error["error"]) == ("error", {"type": "rate_limit_error", "message": text})
        else:
            kind = {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
            assert error["error"] == {"message": text, **kind}
        assert len(one.dispatcher.calls) == 2
        assert (await one.ask(target, who=1)).status == 200
        one.now_s += 40
        assert (await one.ask(target)).status == 200


async def test_refusals_are_counted_and_reported_once() -> None:
    """As an event for the metric, and as a request that was refused."""
    async with limited(requests_per_minute=1) as one:
        assert [(await one.ask()).status for _ in range(3)] == [200, 429, 429]
        await asyncio.sleep(0)
        assert [event for event in one.events if isinstance(event, Rejected)] == [
            Rejected("coding", "requests_per_minute")
        ] * 2
        answered = [event for event in one.events if isinstance(event, Answered)]
        assert [(event.status, bool(event.requested)) for event in answered] == [(429, True)] * 2


async def test_answers_say_what_is_left_of_the_limits_that_the_team_has() -> None:
    """In the form that SDKs of OpenAI read; a team without limits sees nothing."""
    async with limited(requests_per_minute=3, tokens_per_day=10_000) as one:
        await one.ask()
        one.now_s = 20.0
        shown = {name: value for name, value in (await one.ask()).headers.items() if name.startswith("x-rate")}
        assert shown == {
            "x-ratelimit-limit-requests": "3",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "10000",
            "x-ratelimit-remaining-tokens": str(10_000 - 50 - ANSWER_TOKENS),
            "x-ratelimit-reset-tokens": "11h59m40s",
        }
        assert not [name for name in (await one.ask(who=1)).headers if name.startswith("x-rate")]


async def test_tokens_of_an_answer_count_at_its_end() -> None:
    """What it says itself, in place of what was reserved for it."""
    async with limited(tokens_per_day=1000) as one:
        await one.ask()
        assert one.remaining() == 950
        await one.ask("/v1/chat/completions", who=1)
        assert one.remaining() == 950


@pytest.mark.parametrize(
    ("target", "body", "reserved"),
    [
        ("/api/generate", {"prompt": "x" * 300}, 100 + ANSWER_TOKENS),
        ("/api/generate", {"prompt": "x" * 300, "options": {"num_predict": 40}}, 140),
        ("/api/generate", {"prompt": "x" * 300, "options": {"num_predict": -1}}, 100 + ANSWER_TOKENS),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x" * 300}], "max_tokens": 7}, 107),
        ("/api/embed", {"input": "x" * 300}, 100),
        ("/api/generate", {}, 0),
    ],
    ids=["open end", "num_predict", "endless", "max_tokens", "embedding", "load only"],
)
async def test_a_request_reserves_what_it_may_take(target: str, body: dict[str, object], reserved: int) -> None:
    """By its prompt, and by the length of an answer that it allows."""
    left: list[int] = []
    async with limited(tokens_per_day=10_000) as one:

        async def before(_call: object) -> None:
            left.append(one.remaining())

        one.dispatcher.before = before
        await one.ask(target, json.dumps({"model": "m", **body}))
        assert left == [10_000 - reserved]


async def test_a_limit_that_ends_hours_later_tells_sdks_not_to_try_again() -> None:
    """They take a Retry-After of more than a minute for none."""
    async with limited(tokens_per_day=40) as one:
        assert (await one.ask()).status == 200
        refused = await one.ask()
        assert (refused.status, refused.headers["retry-after"]) == (429, "43200")
        assert refused.headers["x-should-retry"] == "false"
        assert "40 tokens per day" in refused.json()["error"]


async def test_only_so_many_requests_at_a_time_and_a_place_is_free_at_the_end() -> None:
    """Whether it waits in the queue or is being answered."""
    async with limited(concurrent=1) as one:
        again: list[Reply] = []

        async def before(_call: object) -> None:
            if not again:
                again.append(Reply(0, {}, b""))
                async with client(one.port) as other:
                    again[0] = await other.ask("POST", "/api/generate", BODIES["/api/generate"], [KEYS[0]])

        one.dispatcher.before = before
        assert (await one.ask()).status == 200
        assert again[0].status == 429
        assert "1 request at a time" in again[0].json()["error"]
        assert (await one.ask()).status == 200


async def test_what_is_sent_before_a_client_leaves_counts_by_its_size() -> None:
    """Nobody else says how many tokens it was, and to leave early must not make answers free."""
    line = b'{"response":"x","done":false}\n'
    stream = line * (40 * STREAMED_BYTES // len(line))
    async with limited(stream, tokens_per_day=1000) as one:
        body = json.dumps({"model": "m", "prompt": "x" * 30})
        await one.ask(body=body)  # a stream without its last line
        assert 1000 - one.remaining() == pytest.approx(10 + 40, abs=2)


async def test_two_routers_that_share_the_counts_after_a_reload_do_not_settle_each_others_requests() -> None:
    """Each counts its own requests from 1; those of the one before are still under way."""
    async with limited(concurrent=2, tokens_per_day=10_000) as one:
        before, after = (Limits(one.quotas, one.events.append) for _ in range(2))
        calls = [Call(ROUTE, InferenceRequest("m"), b"", identity=Identity(one.coding)) for _ in range(3)]
        before.admit(calls[0])
        after.admit(calls[1])
        with pytest.raises(LimitReached):
            after.admit(calls[2])
        for call in calls[:2]:
            assert call.on_end is not None
            call.on_end(call, Released("completed", tokens_in=5, tokens_out=5), 200)
        assert one.remaining() == 10_000 - 20
