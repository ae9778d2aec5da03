"""Requests that do not reach the dispatcher are reported once: refusals, and what manages models."""

from __future__ import annotations

from hashlib import sha256
from ipaddress import ip_network
from typing import cast

import pytest

from router.api.door import NO_TEAMS, Rules
from router.api.edge import Edge
from router.api.settings import EdgeSettings
from router.core.teams.identity import Identities
from router.core.teams.keys import make_key
from router.core.teams.team import Key, Team
from router.http.client.pool import HttpRelay
from router.http.server.limits import WireLimits
from router.http.server.listener import Listener
from router.http.server.proxies import Proxies
from router.routing.directory import Directory
from router.routing.dispatch import Dispatcher
from router.telemetry import Answered
from tests.fakes import FakeDispatcher, RawClient, Reply, warm
from tests.http.raw_upstream import answer, raw_upstream

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}]}'


async def asked(
    method: str,
    target: str,
    body: str | None = None,
    settings: EdgeSettings | None = None,
    said: bytes = b"{}",
    headers: tuple[tuple[str, str], ...] = (),
    rules: Rules = NO_TEAMS,
) -> tuple[Reply, list[Answered]]:
    """Return the answer to one request, and what was reported of it."""
    events: list[Answered] = []
    async with raw_upstream(answer(said)) as upstream:
        fake = FakeDispatcher(HttpRelay(upstream.url))
        edge = Edge(cast("Dispatcher", fake), cast("Directory", fake), settings, emit=events.append, rules=rules)
        async with Listener(edge) as listener:
            if fake.takes_at_once:
                await warm(cast("HttpRelay", fake.relay))
            raw = await RawClient.to(listener.port)
            reply = await raw.ask(method, target, body, headers)
            raw.close()
        await fake.relay.aclose()
    return reply, events


@pytest.mark.parametrize(
    ("method", "target", "body", "route", "requested", "status"),
    [
        ("POST", "/api/pull", '{"model":"a"}', "/api/pull", "a", 200),
        ("DELETE", "/api/delete", '{"name":"a"}', "/api/delete", "a", 200),
        ("POST", "/api/copy", '{"source":"a","destination":"b"}', "/api/copy", "a, b", 200),
        ("POST", "/api/create", '{"model":"a","from":"b"}', "/api/create", "a, b", 200),
        ("POST", "/api/push", '{"model":"a"}', "/api/push", "a", 200),
        ("POST", "/api/push", "{", "/api/push", "", 400),
        ("POST", "/api/chat", "{", "/api/chat", "", 400),
        ("POST", "/api/chat", '{"model":"a\\u0000"}', "/api/chat", "", 400),
        ("POST", "/nope/%1B", None, "/nope/%1B", "", 404),
        ("GET", "/api/chat", None, "/api/chat", "", 405),
    ],
)
async def test_management_and_refusals_are_reported_once(
    method: str, target: str, body: str | None, route: str, requested: str, status: int
) -> None:
    """With the names, the address and the reason."""
    reply, (event,) = await asked(method, target, body)
    assert (reply.status, event.status) == (status, status)
    assert (event.method, event.route, event.requested, event.client) == (method, route, requested, "127.0.0.1")
    assert event.outcome == ("completed" if status == 200 else "refused")
    assert event.request_id == reply.headers["x-request-id"]
    if status == 400:
        assert event.error


class OneTeam:
    """The rules of a router with one team, which may not use a model."""

    key = make_key("coding", "s" * 32)
    team = Team("coding", (Key("ci", sha256(key.encode()).digest()),), deny=("secret:*",))
    identities = Identities((team,), team)


@pytest.mark.parametrize(("target", "status"), [("/api/chat", 403), ("/api/pull", 403), ("/nope", 404)])
async def test_a_refusal_names_team_key_and_trace(target: str, status: int) -> None:
    """Where the identity is known by then: a path that is in no table is nobody's."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = (("Authorization", f"Bearer {OneTeam.key}"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))
    body = '{"model":"secret:1b","messages":[{"role":"user","content":"x"}]}'
    reply, (event,) = await asked("POST", target, body, headers=headers, rules=OneTeam())
    assert (reply.status, event.status, event.trace_id) == (status, status, trace)
    assert (event.team, event.key_id) == (("coding", "ci") if status == 403 else ("anonymous", ""))


@pytest.mark.parametrize(("host", "origin"), [("http://evil.example", "Origin"), ("x", "X-Router-Strict")])
async def test_a_refused_origin_and_a_wrong_header_are_reported(host: str, origin: str) -> None:
    """A web page that tries is worth a line."""
    reply, (event,) = await asked("POST", "/api/chat", CHAT, headers=((origin, host),))
    assert event.status == reply.status >= 400


@pytest.mark.parametrize(
    "settings", [EdgeSettings(is_loopback=False), EdgeSettings(proxies=Proxies((ip_network("127.0.0.1"),)))]
)
async def test_beyond_loopback_and_behind_proxies_what_is_forbidden_is_reported(settings: EdgeSettings) -> None:
    """Who tried it is in the log. What a proxy on this machine passes on comes from elsewhere."""
    reply, (event,) = await asked("POST", "/api/pull", '{"model":"a"}', settings)
    assert (reply.status, event.status, event.route) == (403, 403, "/api/pull")
    assert "without a key" in event.error


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [("GET", "/api/version", None), ("POST", "/api/show", '{"model":"a"}'), ("POST", "/api/chat", CHAT)],
)
async def test_what_reads_and_what_the_dispatcher_reports_is_not(method: str, target: str, body: str | None) -> None:
    """Dashboards poll; and each request to a model has its own report already."""
    reply, events = await asked(method, target, body)
    assert (reply.status, events) == (200, [])


@pytest.mark.parametrize(
    ("sent", "status", "why"),
    [
        (b"GARBAGE\r\n\r\n", 400, "Bad Request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "missing required Host header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "too many Host headers"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "unsupported transfer encoding"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431, "Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417, "Expectation Failed"),
        (b"GET / HT", 408, "Request Timeout"),
    ],
)
async def test_what_is_no_request_is_reported_with_the_clients_address(sent: bytes, status: int, why: str) -> None:
    """Once; nothing else of it is known."""
    events: list[Answered] = []
    fake = FakeDispatcher(HttpRelay("http://127.0.0.1:9"))
    edge = Edge(cast("Dispatcher", fake), cast("Directory", fake), emit=events.append)
    limits = WireLimits(header_s=0.2)
    async with Listener(edge, limits=limits, on_refused=edge.reports.refused_early) as listener:
        raw = await RawClient.to(listener.port)
        await raw.send(sent)
        assert (await raw.reply()).status == status
        raw.close()
    assert [(event.status, event.outcome, event.client, event.error) for event in events] == [
        (status, "refused", "127.0.0.1", why)
    ]
    await fake.relay.aclose()


async def test_a_connection_that_is_one_too_many_is_reported() -> None:
    """With the address that it came from."""
    events: list[Answered] = []
    fake = FakeDispatcher(HttpRelay("http://127.0.0.1:9"))
    edge = Edge(cast("Dispatcher", fake), cast("Directory", fake), emit=events.append)
    async with Listener(edge, limits=WireLimits(connections=1), on_refused=edge.reports.refused_early) as listener:
        first, second = await RawClient.to(listener.port), await RawClient.to(listener.port)
        await first.send(b"GET / HT")
        assert (await second.reply()).status == 503
        first.close()
        second.close()
    assert [(event.status, event.client) for event in events] == [(503, "127.0.0.1")]
    await fake.relay.aclose()


@pytest.mark.parametrize("target", ["/api/chat", "/v1/chat/completions", "/api/show"])
async def test_a_refusal_of_a_model_is_reported_with_its_name(target: str) -> None:
    """So that the audit says what a team has tried."""

    class Strict:
        identities = Identities((), Team("strict", allow=("other",)))

    _, events = await asked("POST", target, CHAT, rules=Strict())
    assert [(event.team, event.status, event.requested) for event in events] == [("strict", 403, "m")]
