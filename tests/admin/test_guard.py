"""Under which names the admin pages answer, whatever server runs them."""

import pytest

from router.admin.guard import AdminGuard


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
