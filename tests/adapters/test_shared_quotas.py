"""Limits that routers share in a real Valkey or Redis (N10): what is counted, and what never is counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from router.adapters import limit_scripts
from router.adapters.limit_scripts import keys_of
from router.core.teams.quotas import Asking, Refused
from tests import stores
from tests.adapters.sharing import PATIENT, Member, member, members, new_member, settled, team_of

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@pytest.fixture(scope="module", params=stores.PROGRAMS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Server]:
    with stores.running(request.param, tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.fixture
def store(program: stores.Server) -> stores.Server:
    """Provide an empty server."""
    program.flush()
    return program


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let routers tell the store sooner than in a second what has ended: the tests wait for it."""
    monkeypatch.setattr("router.core.teams.loan.SETTLED_S", 0.2)


def field(store: stores.Server, key: str, name: str) -> str | None:
    with store.asked() as client:
        found: str | None = client.hget(key, name)
        return found


async def test_requests_per_minute_hold_over_three_routers_g9_n10(store: stores.Server) -> None:
    """Each is asked for all of them at once: in all as many as the limit are admitted; a refusal says for how long."""
    team = team_of(requests_per_minute=100)
    async with members(store.url, 3) as routers:
        found = await asyncio.gather(*(one.count(team, 100) for one in routers))
        assert 95 <= sum(found) <= 100  # a few may be lent and not used at that moment
        while isinstance(refused := await routers[0].begin(team), str):
            pass
        assert refused.why == "requests_per_minute"
        assert 40 < refused.retry_s <= 62
        left = refused.left.requests
        assert left is not None
        assert left.limit == 100
        assert left.remaining <= 5


async def test_a_minute_slides_g9_n10(store: stores.Server) -> None:
    """What was lent 62 s ago counts no more: a minute, the second that it was lent in, and the one to begin it."""
    team = team_of(requests_per_minute=100)
    with store.asked() as client:
        now = client.time()[0]
        client.hset(keys_of("coding")[0], mapping={now - 62: 50, now - 55: 30, now - 1: 10})
    async with members(store.url, 2) as (first, second):
        assert await first.count(team, 100) == 60
        refused = await second.begin(team)
        assert isinstance(refused, Refused)
        assert refused.retry_s <= 7  # the 30 are due next


async def test_most_requests_of_a_large_limit_do_not_ask(store: stores.Server) -> None:
    """A router borrows as much as it needs in a second; so the store is asked about once a second, not per request."""
    team = team_of(requests_per_minute=600_000, concurrent=100_000, tokens_per_day=10**12)
    async with members(store.url, 2) as (one, _):
        for _ in range(100):
            for _ in range(50):
                request = await one.begin(team, 100)
                assert isinstance(request, str)
                one.quotas.settle(request, 80)
            await asyncio.sleep(0.01)
        assert one.asked < 500
        await settled(one)
    assert field(store, keys_of("coding")[2], "used") == str(5000 * 80)


async def test_requests_that_were_lent_and_not_made_are_there_for_others(store: stores.Server) -> None:
    """They are given back when they are not begun within their second."""
    team = team_of(requests_per_minute=100)
    async with members(store.url, 2) as (one, other):
        requests = [*await asyncio.gather(*(one.begin(team) for _ in range(20))), await one.begin(team)]
        assert field(store, keys_of("coding")[0], str(one.quotas._loans["coding"]._lent_at)) not in (None, "21")
        for request in requests:
            one.quotas.settle(str(request), 0)
        await settled(one)
        assert await other.count(team, 100) == 100 - 21


async def test_requests_at_a_time_hold_over_routers_and_are_free_at_once_n10(store: stores.Server) -> None:
    """Also for another router, which is told in a tenth of a second that one has ended."""
    team = team_of(concurrent=3)
    async with members(store.url, 2) as (one, other):
        first = [await one.begin(team), await other.begin(team), await one.begin(team)]
        assert all(isinstance(request, str) for request in first)
        refused = await other.begin(team)
        assert isinstance(refused, Refused) and refused.why == "concurrent"
        one.quotas.settle(str(first[0]), 0)
        async with asyncio.timeout(10):
            while not isinstance(await other.begin(team), str):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert isinstance(await one.begin(team), Refused)


async def test_tokens_of_a_day_are_reserved_and_settled_once_n10(store: stores.Server) -> None:
    """For requests of all routers; a second settlement counts nothing."""
    team = team_of(tokens_per_day=1000)
    async with members(store.url, 2) as (one, other):
        first = str(await one.begin(team, 600))
        assert isinstance(await other.begin(team, 600), Refused)
        for _ in range(2):
            one.quotas.settle(first, 300)
        await settled(one)
        assert field(store, keys_of("coding")[2], "used") == "300"
        second = str(await other.begin(team, 600))
        other.quotas.settle(second, 700)
        await settled(other)
        refused = await one.begin(team, 1)
        assert isinstance(refused, Refused)
        assert (refused.why, refused.retry_s > 1) == ("tokens_per_day", True)
        left = refused.left.tokens
        assert left is not None and (left.limit, left.remaining) == (1000, 0)


async def test_what_is_left_of_a_day_is_for_a_request_that_expects_more_n10(store: stores.Server) -> None:
    """If nothing of the team is under way anywhere, as on one router."""
    team = team_of(tokens_per_day=1000)
    async with members(store.url, 2) as (one, other):
        first = str(await one.begin(team, 5000))
        assert isinstance(await other.begin(team, 5000), Refused)
        one.quotas.settle(first, 100)
        await settled(one)
        assert isinstance(await other.begin(team, 5000), str)


async def test_a_report_that_was_carried_out_but_not_answered_counts_once_n10(
    store: stores.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that were taken, and requests that were given back: it is sent again, with its number."""
    team = team_of(tokens_per_day=1000)
    async with members(store.url, 1) as (one,):
        real, lost = one.quotas._lender._store.run, []

        async def unanswered(scripts, timeout_s):  # type: ignore[no-untyped-def]
            found = await real(scripts, timeout_s)
            if any(script.text == limit_scripts.REPORT and script.arguments[4] for script in scripts) and not lost:
                lost.append(scripts)
                raise stores_lost()
            return found

        monkeypatch.setattr(one.quotas._lender._store, "run", unanswered)
        one.quotas.settle(str(await one.begin(team, 10)), 70)
        await one.until(lambda: bool(lost))
        await one.up()
        await settled(one)
        assert field(store, keys_of("coding")[2], "used") == "70"


def stores_lost() -> Exception:
    from router.adapters.valkey import StoreLost

    return StoreLost("no answer")


async def test_what_a_router_holds_dies_with_it_t5_n10(store: stores.Server) -> None:
    """A crash gives back nothing; after `hold_s` its places and tokens are free."""
    team, times = team_of(concurrent=2, tokens_per_day=1000), PATIENT._replace(hold_s=1.0)
    async with member(store.url, times) as one:
        dying = new_member(store.url, times)
        watching = asyncio.create_task(dying.quotas.watch())
        await dying.up()
        assert [type(await dying.begin(team, 400)) for _ in range(2)] == [str, str]
        assert isinstance(await one.begin(team, 400), Refused)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await dying.quotas._lender._store.drop()
        async with asyncio.timeout(20):
            while not isinstance(await one.begin(team, 400), str):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await one.knows(1)


async def test_a_request_that_is_not_settled_is_released_after_its_lease(
    store: stores.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has become of it: nothing is lost for good."""
    team = team_of(concurrent=1)
    async with members(store.url, 1) as (one,):
        assert isinstance(await one.begin(team), str)
        await asyncio.sleep(0.2)
        assert isinstance(await one.begin(team), Refused)
        monkeypatch.setattr("router.adapters.shared_quotas.LEASE_S", 0.1)
        await settled(one)
        assert isinstance(await one.begin(team), str)


async def test_a_client_that_leaves_while_its_limits_are_asked_holds_nothing(store: stores.Server) -> None:
    """Also if the store has just admitted it."""
    team = team_of(concurrent=5)
    async with members(store.url, 1) as (one,):
        for pauses in range(40):
            found = one.quotas.admit(team, f"r{pauses}", 0)
            if isinstance(found, Asking):
                asking = asyncio.ensure_future(found.answer())
                for _ in range(pauses):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                one.quotas.settle(f"r{pauses}", 0)  # for one that was answered before
            else:
                one.quotas.settle(f"r{pauses}", 0)
        await settled(one)
        assert one.quotas.under_way(team) == 0
        assert await one.count(team, 9) == 5


async def test_a_day_begins_at_midnight_of_the_server_i5_n10(store: stores.Server) -> None:
    """Yesterday's tokens count no more; what a router has told is remembered for a day, and so is not told twice."""
    team, key = team_of(tokens_per_day=1000), keys_of("coding")[2]
    with store.asked() as client:
        today = client.time()[0] // 86400
        mapping = {"day": today - 1, "used": 990, "seq:old": f"7|{today - 3}", "seq:last": f"9|{today - 1}"}
        client.hset(key, mapping=mapping)
    async with members(store.url, 1) as (one,):
        one.quotas.settle(str(await one.begin(team, 500)), 400)
        await settled(one)
    with store.asked() as client:
        found = client.hgetall(key)
    assert (found["day"], found["used"], found["seq:last"]) == (str(today), "400", f"9|{today - 1}")
    assert "seq:old" not in found


async def test_clocks_that_differ_by_30_s_free_nothing_early_i5_n10(store: stores.Server) -> None:
    """Only the server's time counts."""
    team = team_of(concurrent=1, requests_per_minute=10, tokens_per_day=100)
    async with member(store.url, skew_s=30.0) as early, member(store.url, skew_s=-30.0) as late:
        assert isinstance(await late.begin(team, 10), str)
        assert isinstance(await early.begin(team, 10), Refused)
        await asyncio.sleep(1.0)
        assert isinstance(await early.begin(team, 10), Refused)


async def test_every_key_expires_and_has_the_prefix_i3_n10(store: stores.Server) -> None:
    """Three for a team, and one: however many models, routers and requests there are."""
    teams = [team_of(f"t{number}", concurrent=9, requests_per_minute=900, tokens_per_day=10**6) for number in range(20)]
    async with members(store.url, 3) as routers:
        for one in routers:
            for team in teams:
                for _ in range(5):
                    one.quotas.settle(str(await one.begin(team, 10)), 5)
                assert isinstance(await one.begin(team, 10), str)
        with store.asked() as client:
            keys = list(client.scan_iter())
            assert 20 < len(keys) <= 3 * 20 + 2
            assert all(key.startswith("or1:") for key in keys)
            assert all(0 < client.ttl(key) <= 2 * 86400 for key in keys)


HOSTILE = ["x", "-5", "nan", "inf", "1e999", "{}", "9" * 400, "5|5", "||", "1|2|99999999999999", "\x00\xff" * 9, ""]


@pytest.mark.parametrize("way", ["types", "fields", "huge"])
async def test_values_that_no_router_writes_are_removed_and_said_i4_n10(store: stores.Server, way: str) -> None:
    """Limits hold as if they were not there."""
    team = team_of(concurrent=3, requests_per_minute=100, tokens_per_day=1000)
    keys = [*keys_of("coding"), f"{limit_scripts.PREFIX}:{{routers}}:beat"]
    with store.asked() as client:
        for key in keys:
            if way == "types":
                client.rpush(key, *HOSTILE)
            elif way == "huge":
                client.set(key, "x" * 10_000_000)
            elif key.endswith("beat"):
                client.zadd(key, {f"other{number}": 9e15 for number in range(9)})
            else:
                client.hset(key, mapping={f"f{number}": value for number, value in enumerate(HOSTILE)})
                client.hset(key, mapping=dict.fromkeys(("used", "day", "5", "1e400"), "rubbish"))
    async with member(store.url) as one:
        await one.up()
        assert await one.count(team, 9, 10) == 3
        assert one.quotas.place == (1, 0)
        assert one.quotas.error == ""
        assert len(one.said) == 1
        assert "values that no router writes" in one.said[0]


EDGE = [str(value) for value in (2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**400)]
ODD = ["0.5", "0.0", "0e0", "0x0", " 0", "+0", "0 "]


@pytest.mark.parametrize("value", EDGE, ids=lambda value: value[:20])
async def test_a_count_that_has_become_as_large_as_numbers_may_be_lets_nobody_exceed_a_limit_i4(
    store: stores.Server, value: str
) -> None:
    """Or larger: it is not forgotten."""
    team, key = team_of(requests_per_minute=5), keys_of("coding")[0]
    async with members(store.url, 2) as both:
        assert await both[0].count(team, 1) == 1
        with store.asked() as client:
            client.hset(key, mapping=dict.fromkeys(client.hkeys(key), value))
        await asyncio.sleep(0.3)  # what was lent is over, and a router says that it has not used it
        assert [await one.count(team, 9) for one in both] == [0, 0]
        assert [one.quotas.error for one in both] == ["", ""]


@pytest.mark.parametrize("value", ODD, ids=repr)
async def test_what_not_all_of_the_store_reads_as_a_number_is_no_fault_of_it_i4(
    store: stores.Server, value: str
) -> None:
    """It is removed, and the limit holds over the routers; with a fault each would have admitted its part."""
    team, key = team_of(requests_per_minute=5), keys_of("coding")[0]
    async with members(store.url, 2) as both:
        assert await both[0].count(team, 1) == 1
        with store.asked() as client:
            second = max(map(int, client.hkeys(key)))
            client.hset(key, mapping={str(second + later): value for later in range(1, 8)})
            while client.time()[0] <= second:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert 1 + sum([await one.count(team, 9) for one in both]) == 5
        said = [text for one in both for text in one.said]
        assert all("values that no router writes" in text for text in said)
        assert said


@pytest.mark.parametrize("value", EDGE, ids=lambda value: value[:20])
async def test_the_tokens_of_a_day_stay_counted_at_the_edge_of_numbers_i4(store: stores.Server, value: str) -> None:
    """Whatever is added to them; the store has no error, and a router's report is still counted."""
    team = team_of(tokens_per_day=5)
    async with member(store.url) as one:
        await one.up()
        first = str(await one.begin(team, 2))
        day = keys_of("coding")[2]
        with store.asked() as client:
            client.hset(day, "used", value)
            for name in client.hkeys(day):
                if name.startswith("seq:"):
                    client.hset(day, name, f"{value}|{client.hget(day, 'day')}")
        one.quotas.settle(first, 2)
        await settled(one)
        assert await one.count(team, 9, 1) == 0
        assert int(field(store, day, "used") or 0) == 2**53 - 1
        assert one.quotas.error == ""


async def test_another_version_of_the_router_shares_the_store_i6_n10(
    store: stores.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that writes more, and gets a longer answer."""
    team = team_of(concurrent=4, requests_per_minute=100, tokens_per_day=1000)
    newer = limit_scripts.REPORT.replace("'%.0f|%.0f|%.0f'", "'%.0f|%.0f|%.0f|more'").replace(
        "is_rest, bad}", "is_rest, bad, 7}"
    )
    assert newer.count("more'") == 1 and newer.count("bad, 7}") == 1
    async with members(store.url, 2) as (old, new):
        for _ in range(2):
            monkeypatch.setattr(limit_scripts, "REPORT", newer)
            first = await new.begin(team, 10)
            second = await new.begin(team, 10)
            monkeypatch.undo()
            third = await old.begin(team, 10)
            fourth = await old.begin(team, 10)
            assert all(isinstance(one, str) for one in (first, second, third, fourth))
            assert isinstance(await old.begin(team, 10), Refused)
            for one, requests in ((new, (first, second)), (old, (third, fourth))):
                for request in requests:
                    one.quotas.settle(str(request), 5)
                await settled(one)
        assert old.said == new.said == []
    assert field(store, keys_of("coding")[2], "used") == "40"


async def test_a_reload_tells_nothing_twice_that_the_router_before_it_has_told(store: stores.Server) -> None:
    """Both count in the same memory; the tokens of the day are told by the one that has counted them."""
    team = team_of(tokens_per_day=1000)
    async with members(store.url, 1) as (one,):
        one.quotas.settle(str(await one.begin(team, 10)), 100)
        assert one.local.used(team) == 100
        async with member(store.url, after=one) as next_one:
            next_one.quotas.settle(str(await next_one.begin(team, 10)), 7)
            await settled(next_one)
            await settled(one)
    assert field(store, keys_of("coding")[2], "used") == "107"


async def test_a_store_that_has_lost_everything_learns_the_day_from_the_routers_n10(store: stores.Server) -> None:
    """As after its restart: what they know of the day, and what is under way."""
    team = team_of(tokens_per_day=1000, concurrent=2)
    async with members(store.url, 2) as (one, other):
        for router in (one, other):
            router.quotas.settle(str(await router.begin(team, 10)), 300)
            await settled(router)
        assert isinstance(await one.begin(team, 10), str)
        store.flush()
        await asyncio.sleep(PATIENT.hold_s / 3 + 0.5)
        assert isinstance(await other.begin(team, 500), Refused)
        assert isinstance(await other.begin(team, 100), str)
        assert isinstance(await other.begin(team, 100), Refused)  # two at a time


async def test_the_first_router_tells_what_the_team_has_used_today(store: stores.Server) -> None:
    """From its accounts: the store may be new."""
    team = team_of(tokens_per_day=1000)
    async with member(store.url) as one:
        one.local.restore("coding", 950)
        assert isinstance(await one.begin(team, 100), str)
        assert isinstance(await one.begin(team, 100), Refused)
    assert field(store, keys_of("coding")[2], "used") == "950"


async def test_the_end_of_a_router_gives_back_what_it_holds(store: stores.Server) -> None:
    """At once, and it does not count as a router any more."""
    team = team_of(concurrent=40, tokens_per_day=1000)
    async with members(store.url, 2) as (one, other):
        async with member(store.url) as third:
            await one.knows(3)
            requests = await asyncio.gather(*(third.begin(team, 10) for _ in range(20)))
            for request in requests:
                third.quotas.settle(str(request), 1)
        await one.knows(2)
        assert await other.count(team, 50, 1) == 40
    assert field(store, keys_of("coding")[2], "used") == "20"


@asynccontextmanager
async def flood(routers: list[Member], **limits: int) -> AsyncIterator[list[int]]:
    """Keep all of them busy; yield how many requests were admitted."""
    team, admitted = team_of(**limits), [0]
    stop = asyncio.Event()

    async def client(one: Member) -> None:
        while not stop.is_set():
            request = await one.begin(team, 5)
            if isinstance(request, str):
                admitted[0] += 1
                await asyncio.sleep(0.001)
                one.quotas.settle(request, 3)
            await asyncio.sleep(0.001)

    clients = [asyncio.create_task(client(one)) for one in routers for _ in range(10)]
    try:
        yield admitted
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def test_tokens_under_load_are_counted_to_the_token_n10(store: stores.Server) -> None:
    """By three routers with ten clients each."""
    async with members(store.url, 3) as routers:
        async with flood(routers, tokens_per_day=10**9, concurrent=12) as admitted:
            await routers[0].until(lambda: admitted[0] > 100)
        for one in routers:
            await settled(one)
    assert field(store, keys_of("coding")[2], "used") == str(3 * admitted[0])


async def test_a_reload_changes_limits_and_forgets_teams_without_losing_what_is_under_way(store: stores.Server) -> None:
    """What is left is told by the store's figures, or while it is away by this router's part of the limits."""
    before, after = team_of(concurrent=1, requests_per_minute=100), team_of(concurrent=2, requests_per_minute=100)
    async with members(store.url, 1) as (one,):
        first = await one.begin(before)
        second = await one.begin(after)
        assert isinstance(first, str) and isinstance(second, str)
        left = one.quotas.left(after).requests
        assert left is not None
        assert (left.limit, left.remaining) == (100, 98)
        one.quotas.keep_teams([])
        assert "coding" in one.quotas._loans
        one.quotas.settle(first, 0)
        one.quotas.settle(second, 0)
        await settled(one)
        one.quotas.keep_teams([])
        assert "coding" not in one.quotas._loans
    alone = new_member("valkey://127.0.0.1:1/0", routers=2)
    assert isinstance(await alone.begin(after), str)
    left = alone.quotas.left(after).requests
    assert left is not None
    assert (left.limit, left.remaining) == (50, 49)
