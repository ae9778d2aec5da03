"""Shared limits while their store fails: no request waits longer than a call, and at most one limit is added."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from router.adapters.lender import Times
from router.core.teams.quotas import Refused
from tests import stores
from tests.adapters.sharing import LONGEST_S, Member, Proxy, member, members, team_of

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

QUICK = Times(connect_s=1.0, call_s=0.25, hold_s=5.0, pause_s=0.1)
"""As by default, for a machine that is five times slower."""

SLOW_S = 0.4


@pytest.fixture(params=stores.PROGRAMS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[stores.Server]:
    with stores.running(request.param, tmp_path) as found:
        yield found


class Scene(NamedTuple):
    """A server, and a way to it that can be made worse."""

    server: stores.Server
    proxy: Proxy

    def say(self, *words: str) -> None:
        with self.server.asked() as client:
            client.execute_command(*words)


@asynccontextmanager
async def behind(server: stores.Server) -> AsyncIterator[Scene]:
    proxy = Proxy(server.port)
    await proxy.open()
    try:
        yield Scene(server, proxy)
    finally:
        await proxy.cut()


Fault = tuple[Callable[[Scene], None], Callable[[Scene], None]]
FAULTS: dict[str, Fault] = {
    "killed": (lambda scene: scene.server.kill(), lambda scene: scene.server.start()),
    "frozen": (lambda scene: scene.server.freeze(), lambda scene: scene.server.thaw()),
    "slow": (
        lambda scene: scene.proxy.slow_down(SLOW_S),
        lambda scene: scene.proxy.slow_down(0.0),
    ),
    "read-only": (
        lambda scene: scene.say("REPLICAOF", "127.0.0.1", "1"),
        lambda scene: scene.say("REPLICAOF", "NO", "ONE"),
    ),
    "paused": (
        lambda scene: scene.say("CLIENT", "PAUSE", "60000", "ALL"),
        lambda scene: (scene.server.kill(), scene.server.start())[0],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_store_that_fails_costs_no_request_and_is_used_again_i1_n10(store: stores.Server, fault: str) -> None:
    """Each router admits its part meanwhile. Requests wait for a call at most, and soon for none."""
    team, other = team_of(requests_per_minute=40), team_of("other", concurrent=2)
    begin, end = FAULTS[fault]
    async with behind(store) as scene, members(scene.proxy.url, 2, QUICK) as (one, two):
        assert await one.count(team, 3) == 3
        begin(scene)
        waits_s = [await waited(one, other) for _ in range(3)]
        assert max(waits_s) < 2 * QUICK.call_s + SLOW_S
        await one.down()
        asked = one.asked
        found = [await one.begin(team) for _ in range(30)]
        assert sum(isinstance(request, str) for request in found) == 20 - 3
        assert one.asked == asked
        await two.down()
        assert await two.count(team, 30) == 20
        assert max(len(router.said) for router in (one, two)) <= 2
        assert "cannot be used" in one.said[-1]
        end(scene)
        for router in (one, two):
            await router.up()
            assert router.said[-1] == "the store of shared limits can be used again"


async def waited(one: Member, team: object) -> float:
    """Return how long the limits of a request took, in seconds; it ends at once."""
    now = asyncio.get_running_loop().time
    began_s = now()
    request = await one.begin(team)  # type: ignore[arg-type]
    if isinstance(request, str):
        one.quotas.settle(request, 1)
    return now() - began_s


async def test_a_full_store_counts_what_it_has_room_for_i1_n10(store: stores.Server) -> None:
    """For a new team it has none: each router admits its part, and the operator is told. None of it waits."""
    team, new = team_of(requests_per_minute=40), team_of("new", requests_per_minute=40)
    async with behind(store) as scene, members(store.url, 2, QUICK) as (one, two):
        assert await one.count(team, 3) == 3
        scene.say("CONFIG", "SET", "maxmemory", "1")
        assert 20 <= await one.count(new, 50) + await two.count(new, 50) <= 40
        assert await one.count(team, 50) + await two.count(team, 50) <= 40
        assert "maxmemory" in one.said[0]
        scene.say("CONFIG", "SET", "maxmemory", "0")
        for router in (one, two):
            await router.up()
        assert await one.count(team_of("newer", concurrent=3), 5) == 3


@pytest.mark.parametrize("kind", ["nobody", "silent", "http", "tls", "password", "a name that nobody has"])
async def test_a_store_that_cannot_be_used_from_the_beginning_delays_nothing_i1(tmp_path: Path, kind: str) -> None:
    """The start waits for one attempt, requests for none."""
    team, options = team_of(requests_per_minute=40), []
    async with AsyncExitStack() as stack:
        if kind == "password":
            options = ["--requirepass", "secret-word"]
        server = stack.enter_context(stores.running("valkey", tmp_path, *options))
        url = server.url
        if kind == "nobody":
            server.kill()
        elif kind == "silent":
            server.freeze()
        elif kind == "tls":
            url = url.replace("valkey:", "valkeys:")
        elif kind == "a name that nobody has":
            url = "valkey://nobody.invalid:6379/0"
        elif kind == "http":
            http = await asyncio.start_server(_http, "127.0.0.1", 0)
            stack.push_async_callback(_closed, http)
            url = f"valkey://127.0.0.1:{http.sockets[0].getsockname()[1]}"
        one = await stack.enter_async_context(member(url, QUICK))
        assert one.quotas.error
        assert await one.count(team, 30) == 20
        assert one.asked == 0
        assert len(one.said) == 1
        assert "secret-word" not in one.said[0]


async def _http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    writer.close()


async def _closed(server: asyncio.Server) -> None:
    server.close()
    await asyncio.sleep(0.05)  # for the ends of its connections


async def test_routers_that_are_cut_off_add_at_most_one_limit_i2_n10(store: stores.Server) -> None:
    """One of three cannot reach the store. After it can again, the limit is one again."""
    team, slots = team_of(requests_per_minute=60), team_of("slots", concurrent=9)
    async with behind(store) as scene, members(store.url, 2, QUICK) as (two, three):
        one = await (stack := AsyncExitStack()).enter_async_context(member(scene.proxy.url, QUICK))
        async with stack:
            for router in (one, two, three):
                await router.knows(3)
            await scene.proxy.cut()
            await one.down()
            alone = await one.count(team, 100), await one.count(slots, 20)
            shared = await asyncio.gather(*(router.count(team, 100) for router in (two, three)))
            assert alone == (20, 3)
            assert 50 <= sum(shared) <= 60
            held = [request for _ in range(12) if isinstance(request := await two.begin(slots), str)]
            assert len(held) == 9
            await scene.proxy.open()
            await one.up()
            assert await one.count(slots, 5) == 0
            for request in held:
                two.quotas.settle(request, 0)
            async with asyncio.timeout(LONGEST_S):
                while not isinstance(await one.begin(slots), str):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


async def test_a_limit_smaller_than_the_number_of_routers_is_not_multiplied_i2(tmp_path: Path) -> None:
    """Two of three have nothing of a limit of one."""
    team = team_of(requests_per_minute=1)
    with stores.running("valkey", tmp_path) as server:
        async with members(server.url, 3, QUICK) as routers:
            server.kill()
            for one in routers:
                await one.down()
            assert sorted([await one.count(team, 5) for one in routers]) == [0, 0, 1]
            refused = [found for one in routers if isinstance(found := await one.begin(team), Refused)]
            assert {found.why for found in refused} == {"requests_per_minute"}


async def test_tokens_of_a_day_are_divided_as_far_as_they_are_left_i2(tmp_path: Path) -> None:
    """What all routers together have taken before the store was lost is known."""
    team = team_of(tokens_per_day=1000)
    with stores.running("valkey", tmp_path) as server:
        async with members(server.url, 2, QUICK) as (one, two):
            for router, tokens in ((one, 300), (two, 200), (one, 0)):
                router.quotas.settle(str(await router.begin(team, 100)), tokens)
                await router.until(lambda found=router: found.quotas._loans["coding"].is_idle)  # type: ignore[misc]
            server.kill()
            await one.down()
            assert await one.count(team, 10, tokens=100) == 2  # a half of the 500 that were left, and not three


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_under_load_every_request_is_answered_while_the_store_dies_and_comes_back_i1_n10(
    store: stores.Server, fault: str
) -> None:
    """By three routers with many clients: nothing raises or hangs, and no place is lost."""
    team = team_of(requests_per_minute=500, concurrent=20, tokens_per_day=10**6)
    counts = {"granted": 0, "refused": 0}
    stop = asyncio.Event()

    async def client(one: Member) -> None:
        while not stop.is_set():
            request = await one.begin(team, 5)
            counts["granted" if isinstance(request, str) else "refused"] += 1
            await asyncio.sleep(0.002)
            if isinstance(request, str):
                one.quotas.settle(request, 3)

    async with members(store.url, 3, QUICK) as routers:
        clients = [asyncio.create_task(client(one)) for one in routers for _ in range(15)]
        begin, end = FAULTS[fault]
        await asyncio.sleep(0.3)
        begin(Scene(store, Proxy(store.port)))
        for one in routers:
            await one.down()
        await asyncio.sleep(0.3)
        end(Scene(store, Proxy(store.port)))
        for one in routers:
            await one.up()
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*clients)
        assert counts["refused"] > 0
        assert counts["granted"] <= 2 * 500
        assert [one.quotas.under_way(team) for one in routers] == [0, 0, 0]
        assert [len(one.said) for one in routers] == [2, 2, 2]
        more = team_of("more", concurrent=20)
        assert sum([await one.count(more, 20) for one in routers]) == 20


async def test_a_team_that_is_closed_on_loss_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    closed, team = team_of(requests_per_minute=40, on_loss="closed"), team_of("other", requests_per_minute=40)
    with stores.running("valkey", tmp_path) as server:
        async with members(server.url, 1, QUICK) as (one,):
            assert isinstance(await one.begin(closed), str)
            server.kill()
            await one.down()
            refused = await one.begin(closed)
            assert isinstance(refused, Refused)
            assert (refused.why, refused.retry_s) == ("on_loss", 5.0)
            assert isinstance(await one.begin(team), str)
            server.start()
            await one.up()
            assert isinstance(await one.begin(closed), str)


async def test_scripts_that_the_server_has_forgotten_are_sent_again_n10(store: stores.Server) -> None:
    """As after SCRIPT FLUSH: within the same call, and never by SCRIPT LOAD, which proxies refuse."""
    team = team_of(concurrent=50)
    async with members(store.url, 1, QUICK) as (one,):
        for _ in range(3):
            with store.asked() as client:
                client.script_flush()
            assert isinstance(await one.begin(team), str)
            await asyncio.sleep(0.1)
        assert one.said == []
        with store.asked() as client:
            commands = client.info("commandstats")
    assert commands["cmdstat_eval"]["calls"] >= 3
    assert commands["cmdstat_evalsha"]["calls"] >= 3
    assert "cmdstat_script|load" not in commands


async def test_the_keys_of_a_call_are_in_one_slot_of_a_cluster_n10(tmp_path: Path) -> None:
    """A node in cluster mode refuses a script whose keys are not."""
    with stores.running("valkey", tmp_path, "--cluster-enabled", "yes", "--cluster-config-file", "nodes") as server:
        with server.asked() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with members(server.url, 1, QUICK) as (one,):
            for number in range(20):
                team = team_of(f"team-{number}", concurrent=5, requests_per_minute=50, tokens_per_day=500)
                one.quotas.settle(str(await one.begin(team, 10)), 5)
            assert (one.quotas.error, one.said) == ("", [])
            assert one.asked >= 20
