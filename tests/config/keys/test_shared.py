"""The section `shared`, with real servers: where limits are counted together, and how long anything waits for that."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest

from router.config import effective, load_config
from router.core.teams.memory_quotas import MemoryQuotas
from router.errors import ConfigError
from router.wiring import build_shared
from tests import stores
from tests.adapters.sharing import Proxy, team_of, using
from tests.certificates import certificate, needs_openssl
from tests.config.keys.play import SMALL, get, hello, in_force, play, routed, send
from tests.config.keys.test_team_limits import ask, limited, rejected

pytestmark = pytest.mark.real_time
NOWHERE = "unix:///nowhere/valkey.sock"
SLOW = {"shared.connect_s": 5, "shared.call_s": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.running("valkey", tmp_path_factory.mktemp("store")) as found:
        yield found


@asynccontextmanager
async def counting(options):
    """What counts limits by a configuration, after it has tried its store."""
    config = load_config(env={}, options={**SLOW, **options})
    in_force.append(effective(config))
    local = MemoryQuotas(asyncio.get_running_loop().time, time.time)
    shared = build_shared(config.shared, local, lambda _text: None, time.time, is_first=True)
    async with using(shared, local) as one:
        yield one


async def is_shared(options):
    async with counting(options) as one:
        return one.quotas.note == "shared"


@pytest.mark.key("shared.valkey")
def test_routers_that_name_the_same_store_share_the_limits(tmp_path, store):
    """Without it each has all of them; `/readyz` and the metrics say how they are counted."""
    store.flush()
    limits = limited(tmp_path, "{ requests_per_minute: 3 }")

    async def story(options):
        async with routed({**limits, **options}, models=(SMALL,)) as one:
            found = [(await ask(one)).status for _ in range(3)]
            ready = (await get(one.router.url, "/readyz")).json(), (await get(one.router.admin_url, "/readyz")).json()
            metrics = (await get(one.router.admin_url, "/metrics")).body.decode()
            return found, [one.get("limits") for one in ready], 'store_up{store="limits"} 1.0' in metrics

    alone = [asyncio.run(story({"shared.valkey": None})) for _ in range(2)]
    assert alone == [([200] * 3, [None] * 2, False)] * 2
    together = [asyncio.run(story({"shared.valkey": store.url, **SLOW})) for _ in range(2)]
    assert together == [([200] * 3, ["shared"] * 2, True), ([429] * 3, ["shared"] * 2, True)]


@pytest.mark.parametrize("program", stores.PROGRAMS)
@pytest.mark.key("shared.user", "shared.password_file")
def test_user_and_password_are_those_of_the_store(tmp_path, program):
    """Without a user it is the default one; a wrong password is said, and not shown."""
    file = tmp_path / "password"
    file.write_text("secret-word\n")
    with stores.running(program, tmp_path, "--requirepass", "secret-word") as server:
        with server.asked(password="secret-word") as client:
            client.execute_command("ACL", "SETUSER", "routers", "on", ">other-word", "~or1:*", "+@all")
        options = {"shared.valkey": server.url, "shared.password_file": str(file)}
        assert asyncio.run(is_shared(options))
        assert not asyncio.run(is_shared({**options, "shared.password_file": None}))
        assert not asyncio.run(is_shared({**options, "shared.user": "routers"}))
        file.write_text("other-word")
        assert asyncio.run(is_shared({**options, "shared.user": "routers"}))

        async def story():
            async with counting(options) as one:
                return one.quotas.error

        assert "other-word" not in (error := asyncio.run(story()))
        assert error


@needs_openssl
@pytest.mark.skipif(stores.REDIS is None, reason="Redis is not installed, and this Valkey knows no TLS")
@pytest.mark.key("shared.ca")
def test_ca_is_the_authority_of_the_certificate(tmp_path):
    """Another one is not trusted, nor is a server without TLS."""
    one, other = certificate(tmp_path), certificate(tmp_path, "other")
    server = stores.Server("redis", tmp_path, "--tls-auth-clients", "no")
    options = "--port", "0", "--tls-port", str(server.port), "--tls-cert-file", str(one.cert)
    server.start(*options, "--tls-key-file", str(one.key))
    try:
        url = server.url.replace("valkey:", "valkeys:")
        assert asyncio.run(is_shared({"shared.valkey": url, "shared.ca": str(one.cert)}))
        assert not asyncio.run(is_shared({"shared.valkey": url, "shared.ca": str(other.cert)}))
        assert not asyncio.run(is_shared({"shared.valkey": url, "shared.ca": None}))
    finally:
        server.kill()


@pytest.mark.key("shared.routers")
def test_until_the_store_has_answered_there_are_as_many_routers_as_routers_says():
    """Each admits its part."""

    async def story(routers):
        async with counting({"shared.valkey": NOWHERE, "shared.routers": routers}) as one:
            return await one.count(team_of(requests_per_minute=6), 10)

    assert [asyncio.run(story(routers)) for routers in (1, 2, 3)] == [6, 3, 2]


@asynccontextmanager
async def slowed(store, delay_s):
    """A way to the store on which each answer takes longer."""
    proxy = Proxy(store.port)
    proxy.delay_s = delay_s
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.cut()


@pytest.mark.key("shared.connect_s", "shared.call_s")
def test_a_store_that_answers_later_than_connect_s_or_call_s_is_not_used(store):
    """A connection takes an answer or two, and a call one."""

    async def story(options):
        async with slowed(store, 0.3) as proxy:
            return await is_shared({"shared.valkey": proxy.url, **options})

    assert asyncio.run(story({}))
    assert not asyncio.run(story({"shared.connect_s": 0.1}))
    assert not asyncio.run(story({"shared.call_s": 0.1}))


@pytest.mark.key("shared.hold_s")
def test_the_store_forgets_a_router_after_hold_s(store):
    """That it is there, and what it holds."""

    async def story(hold_s):
        store.flush()
        async with counting({"shared.valkey": store.url, "shared.hold_s": hold_s}) as one:
            assert isinstance(await one.begin(team_of(concurrent=9)), str)
            with store.asked() as client:
                return [client.pttl(key) / 1000 for key in ("or1:{routers}:beat", "or1:{coding}:held")]

    short, long = asyncio.run(story(5)), asyncio.run(story(500))
    assert max(short) <= 5
    assert min(long) > 400
    assert max(long) <= 500


@pytest.mark.key("shared.pause_s")
def test_a_store_that_fails_is_left_alone_for_pause_s():
    """From the third failure on."""

    async def story(pause_s):
        connections = []
        enough = asyncio.Event()

        async def refuse(_reader, writer):
            connections.append(writer)
            writer.close()
            if len(connections) >= 6:
                enough.set()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with counting({"shared.valkey": f"valkey://127.0.0.1:{port}", "shared.pause_s": pause_s}):
                try:
                    async with asyncio.timeout(20 if pause_s < 1 else 1.5):
                        await enough.wait()
                except TimeoutError:
                    pass
        return len(connections)

    assert asyncio.run(story(0.05)) >= 6
    assert 1 <= asyncio.run(story(60)) <= 3


@pytest.mark.parametrize(
    "url",
    [
        "valkey",
        "http://h:6379",
        "valkey://",
        "valkey://user:secret-word@h:6379",
        "valkey://h:6379/0?db=1",
        "valkey://h:6379/zero",
        "valkey://h:0",
        "valkey://h:99999",
        "unix://h/path",
        "unix:",
        "valkey://h h",
        7,
    ],
)
def test_what_is_no_url_of_a_store_is_refused_and_credentials_are_not_shown(url):
    with pytest.raises(ConfigError) as refused:
        load_config(env={}, options={"shared.valkey": url})
    assert "shared.valkey" in str(refused.value)
    assert "valkeys://HOST:6379/0" in str(refused.value)


@pytest.mark.parametrize("url", ["valkey://h", "redis://h:1/5", "rediss://[::1]:6379", "unix:///run/valkey.sock"])
def test_urls_of_stores(url):
    assert load_config(env={}, options={"shared.valkey": url}).shared.valkey == url


def test_on_loss_says_what_holds_without_the_store(tmp_path):
    """part: as many as this router's part of the limit; closed: a 429 that says why. Ready it is all the same."""

    async def story(one):
        found = [(await ask(one)).status for _ in range(4)]
        reply = await ask(one)
        other = await send(one.router.url, "POST", "/api/generate", hello(SMALL))
        ready = await get(one.router.url, "/readyz")
        page = (await get(one.router.admin_url, "/metrics")).body.decode()
        assert 'ollama_router_store_up{store="limits"} 0.0' in page
        assert (other.status, ready.status) == (200, 200)
        assert ready.json()["limits"].startswith("by this router alone, as one of 2: ")
        return found, reply, await rejected(one)

    shared = partial(play, story, models=(SMALL,))
    options = {"shared.valkey": NOWHERE}
    found, reply, counts = shared({**limited(tmp_path, "{ requests_per_minute: 4 }"), **options})
    assert (found, counts) == ([200, 200, 429, 429], {"requests_per_minute": 3.0})
    found, reply, counts = shared({**limited(tmp_path, "{ requests_per_minute: 4, on_loss: closed }"), **options})
    assert (found, counts) == ([429] * 4, {"on_loss": 5.0})
    assert "limits of the team coding cannot be counted now" in reply.json()["error"]
    assert int(reply.headers["retry-after"]) == 5
