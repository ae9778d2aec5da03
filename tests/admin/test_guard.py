"""Under which names the admin pages answer, whatever server runs them."""

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from router.admin.guard import AdminGuard
from router.admin.lock import AdminLock
from router.core.teams.keys import digest_of
from router.core.teams.team import Key


async def asked(*hosts, kind="http", allowed=()):
    """Return what is sent for a request with these Host headers, and the scopes that reached the application."""
    sent, reached = [], []

    async def app(scope, _receive, send):
        reached.append(scope["type"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(b"host", host) for host in hosts]}
    await AdminGuard(app, allowed)(scope, None, send)
    return sent, reached


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"LOCALHOST:80",
        b"127.0.0.1:11436",
        b"[::1]:11436",
        b"[::1]",
        b"10.0.0.7",
        b"gpu.lan:1",
        b"a.corp.example",
        b"router.ai.svc:11436",
        b"router",
        b"localhost.",
    ],
)
async def test_local_names_addresses_and_configured_names_are_answered(host):
    """An address cannot be rebound; every answer has the security headers."""
    sent, reached = await asked(host, allowed=["GPU.lan", "*.corp.example"])
    assert reached == ["http"]
    headers = dict(sent[0]["headers"])
    assert (headers[b"x"], headers[b"x-frame-options"]) == (b"y", b"DENY")


@pytest.mark.parametrize(
    "hosts",
    [(), (b"evil.example",), (b"[::1].evil.example",), (b"localhost.evil.example",), (b"localhost", b"localhost")],
)
async def test_other_names_no_name_and_two_names_are_refused(hosts):
    """With the security headers as well."""
    sent, reached = await asked(*hosts)
    assert (reached, sent[0]["status"]) == ([], 403)
    assert dict(sent[0]["headers"])[b"x-content-type-options"] == b"nosniff"


async def test_what_is_not_a_request_is_left_to_the_application():
    """The messages of a server's life have no host."""
    assert await asked(kind="lifespan") == ([], ["lifespan"])


def streamed(*, expires_s, until_s, jump=(0.0, 0.0), first_s=0.0, method="GET"):
    """Return what a stream of an event each second sends under a key that expires, and when it ended.

    `jump` is when the clock is set, and by how much.
    """

    async def run():
        now_s, sent = asyncio.get_running_loop().time, []
        begun_s = now_s()

        async def app(_scope, _receive, send):
            await asyncio.sleep(first_s)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while now_s() - begun_s < until_s:
                await asyncio.sleep(1)
                await send({"type": "http.response.body", "body": b"event", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def send(message):
            sent.append(message)

        def clock():
            elapsed_s = now_s() - begun_s
            return elapsed_s + (jump[1] if elapsed_s >= jump[0] else 0.0)

        lock = AdminLock([Key("ops", digest_of(b"sk-ops"), expires_s)], is_loopback=False, clock=clock)
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer sk-ops")]
        scope = {"type": "http", "method": method, "path": "/router/events", "headers": headers}
        await AdminGuard(app, lock=lock)(scope, None, send)
        return sent, round(now_s() - begun_s)

    return run_virtual(run())


@pytest.mark.parametrize(
    ("facts", "end_s"),
    [
        ({"expires_s": 10.5, "until_s": 100}, 10),
        ({"expires_s": None, "until_s": 100}, 100),
        ({"expires_s": 500.0, "until_s": 100}, 100),
        ({"expires_s": 50.5, "until_s": 200, "jump": (20.0, 1e9)}, 30),
        ({"expires_s": 50.5, "until_s": 200, "jump": (20.0, -100.0)}, 150),
        ({"expires_s": 10.5, "until_s": 100, "method": "POST"}, 100),
    ],
)
def test_a_stream_ends_when_the_key_that_opened_it_expires_k4(facts, end_s):
    """Properly, and by the wall clock, which may be set meanwhile; what changes something is not interrupted."""
    sent, ended_s = streamed(**facts)
    assert abs(ended_s - end_s) <= 1
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert sum(not message.get("more_body", True) for message in sent) == 1


def test_an_answer_that_has_not_begun_when_its_key_expires_is_refused():
    """As if it came then."""
    sent, ended_s = streamed(expires_s=10.5, until_s=100, first_s=20.0)
    assert (ended_s, sent[0]["status"]) == (10, 401)
