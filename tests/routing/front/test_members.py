"""Nodes that come, go, cannot be heard, and cannot be used."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from router.telemetry import TaskFailed, UpstreamDown, UpstreamGone, UpstreamUp
from tests.config.keys.play import get, send
from tests.routing.front.stage import BIG, MIDDLE, SMALL, FakeNode, fronted, play, run_virtual


def proxied(story, nodes, tmp_path, name, only=b"", config=None):
    """Play a story in which the node `name` is behind a proxy that can fail."""

    async def run():
        async with AsyncExitStack() as stack:
            by_name = {node.name: node for node in nodes}
            one = await stack.enter_async_context(fronted(by_name, tmp_path, config, through={name: only}))
            return await story(one, one.proxies[name])

    return run_virtual(run())


async def reach(one, name, within_s=2.0, every_s=0.1):
    """Return after how many seconds the front can use a node."""
    for count in range(int(within_s / every_s) + 1):
        if any(node.name == name for node in one.front.router.routes.members.usable()):
            return count * every_s
        await asyncio.sleep(every_s)
    return None


def test_faults_of_what_listens_to_nodes_are_counted_together_and_logged_apart(tmp_path, monkeypatch):
    """Addresses of nodes come and go, and are no labels."""

    async def faulty(*_):
        raise ValueError("a fault of ours")

    monkeypatch.setattr("router.routing.front.members.read_catalog", faulty)
    nodes = [FakeNode(name) for name in "ab"]

    async def story(one):
        await asyncio.sleep(1)
        text = (await get(one.front.admin_url, "/metrics")).body.decode()
        rows = [line for line in text.splitlines() if line.startswith("ollama_router_task_restarts_total{")]
        return [row.split('task="')[1].split('"')[0] for row in rows], {event.about for event in one.of(TaskFailed)}

    tasks, addresses = play(story, nodes, tmp_path)
    assert tasks == ["models_of_nodes"]
    assert addresses == {urlsplit(node.url).netloc for node in nodes}


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_nothing_is_loaded_on_a_node_whose_stream_is_cut_n4(tmp_path, fault):
    """For 20 s, though its requests would arrive; it is back within 2 s."""
    nodes = [FakeNode(name) for name in "ab"]

    async def story(one, proxy):
        wanted = {(await one.ask(MIDDLE, front=0))[1] for _ in range(3)}
        proxy.break_(fault)
        await asyncio.sleep(3.2)
        cut, during = nodes[0], set()
        before = len(cut.calls)
        for _ in range(16):
            during.add((await one.ask(MIDDLE))[1])
            await asyncio.sleep(1)
        assert len(cut.calls) == before
        proxy.heal()
        back_s = await reach(one, "a")
        return wanted, during, back_s

    wanted, during, back_s = proxied(story, nodes, tmp_path, "a", only=b"/router/node/events")
    assert len(wanted) == 1
    assert during == {"b"}
    assert back_s is not None and back_s <= 2.0


def test_what_a_node_holds_is_used_for_ten_seconds_after_its_last_word(tmp_path):
    """Then it is out."""
    nodes = [FakeNode("a"), FakeNode("b")]
    nodes[0].hold(SMALL)

    async def story(one, proxy):
        proxy.break_("hang")
        found = []
        for pause_s in (2, 3, 4, 3):
            await asyncio.sleep(pause_s)
            found.append((await one.ask(SMALL))[1])
        return found

    assert proxied(story, nodes, tmp_path, "a", only=b"/router/node/events") == ["a", "a", "a", "b"]


def test_a_node_that_dies_costs_no_request_that_was_not_answered(tmp_path):
    """The next one gets it within 50 ms, and nothing goes to the dead one until it says something again (N3)."""
    nodes = [FakeNode("a"), FakeNode("b")]
    for node in nodes:
        node.hold(SMALL)

    async def story(one, proxy):
        proxy.break_("refuse")
        began_s = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(one.ask(SMALL) for _ in range(6)))
        took_s = asyncio.get_running_loop().time() - began_s
        return {status for status, _, _ in found}, {node for _, node, _ in found}, took_s

    statuses, names, took_s = proxied(story, nodes, tmp_path, "a")
    assert (statuses, names) == ({200}, {"b"})
    assert took_s <= 0.05


def test_a_front_that_is_cut_off_says_so(tmp_path):
    """With the last views for 10 s, then with 503 and the reason of each node."""
    a = FakeNode("a")
    a.hold(SMALL)

    async def story(one, proxy):
        first = (await one.ask(SMALL))[0]
        proxy.break_("hang")
        await asyncio.sleep(12)
        status, _, reply = await one.ask(SMALL)
        ready = (await one.admin("/readyz"))["ready"]
        proxy.heal()
        back_s = await reach(one, "a")
        return first, status, reply.json()["error"], "retry-after" in reply.headers, ready, back_s

    first, status, error, has_retry, ready, back_s = proxied(story, (a,), tmp_path, "a", only=b"/router/node/events")
    assert (first, status, has_retry, ready) == (200, 503, True, False)
    assert "a: not heard of for 10 s" in error
    assert back_s is not None


def told(one):
    """Return what operators were told of nodes: the kind of each event, whose it is, and why."""
    kinds = {UpstreamUp: "up", UpstreamDown: "down", UpstreamGone: "gone"}
    one.front.router.telemetry.flush()
    events = [event for event in one.events if type(event) in kinds]
    return [(kinds[type(event)], event.backend, getattr(event, "error", "")) for event in events]


def test_operators_are_told_of_a_node_that_could_never_be_used(tmp_path):
    """Once, with the reason: without that the log of a front with a wrong key says nothing."""
    a = FakeNode("a", key="another-key-0123456789")

    async def story(one):
        await asyncio.sleep(5)
        return told(one), (await one.up_by_metrics()), urlsplit(a.url).netloc

    found, up, address = play(story, (a,), tmp_path)
    assert found == [("down", address, "it does not accept the key of this front (401)")]
    assert up == {address: 0}


def test_operators_are_told_when_the_ollama_of_a_node_does_not_answer(tmp_path):
    """A node that is heard of is not up by that; one that drains is."""
    a = FakeNode("a")

    async def story(one):
        for change in ({"is_up": False}, {"is_up": True}, {"draining": True}, {"draining": False}):
            a.tell(**change)
            await asyncio.sleep(0.3)
        return told(one), await one.up_by_metrics()

    found, up = play(story, (a,), tmp_path)
    assert found == [("up", "a", ""), ("down", "a", "its Ollama does not answer"), ("up", "a", "")]
    assert up == {"a": 1}


def test_a_node_that_is_taken_away_is_gone_and_not_down(tmp_path):
    """So is the name of one that has another name now. An alert on what is down would never end."""
    a, b = FakeNode("a"), FakeNode("b")

    async def story(one):
        b.tell(name="c")
        await asyncio.sleep(0.3)
        one.front.router.routes.members.take({b.url: b.url})
        await asyncio.sleep(0.3)
        return told(one)[2:], await one.up_by_metrics()

    found, up = play(story, (a, b), tmp_path)
    assert found == [("gone", "b", ""), ("up", "c", ""), ("gone", "a", "")]
    assert up == {"c": 1}


def test_two_nodes_with_one_name_are_told_apart_and_noted(tmp_path):
    """Both serve; who has set them up learns of it."""
    a, b = FakeNode("a"), FakeNode("b", boot="boot-2")

    async def story(one):
        b.tell(name="a")
        await asyncio.sleep(0.3)
        return (await one.admin("/router/state"))["notes"], urlsplit(b.url).netloc

    notes, address = play(story, (a, b), tmp_path)
    assert notes == [f"node a@{address}: another one has its node.name, too"]


@pytest.mark.parametrize("why", ["it is draining", "its Ollama does not answer"])
def test_what_only_a_node_has_that_is_away_is_not_not_installed(tmp_path, why):
    """A client that is told 404 may delete or pull it. What nobody has is a 404 as ever, and others serve chains."""
    a, b = FakeNode("a", models=(BIG, SMALL)), FakeNode("b", models=(SMALL,))
    config = {"insecure_no_auth": True, "chains": {"best": [BIG, SMALL], "big": [BIG]}}

    async def story(one):
        a.tell(**({"draining": True} if "draining" in why else {"is_up": False}))
        await asyncio.sleep(3)
        found = [await one.ask(model) for model in (BIG, "big", "best", "nobody:1b")]
        shown = await send(one.front.url, "POST", "/api/show", {"model": BIG})
        deleted = await send(one.front.url, "DELETE", "/api/delete", {"model": BIG})
        return found, (shown, deleted)

    found, others = play(story, (a, b), tmp_path, config=config)
    replies = [reply for *_, reply in found]
    assert [reply.status for reply in (*replies[:3], *others)] == [502, 502, 200, 502, 502]
    assert replies[0].json()["error"] == f"a: {why}"
    assert "retry-after" in replies[0].headers
    assert a.calls == []


def test_a_wrong_key_is_a_fault_of_the_fleet(tmp_path):
    """No client is told that it is unauthorized."""
    a, b = FakeNode("a", key="another-key-0123456789"), FakeNode("b")

    async def story(one):
        found = [(await one.ask(SMALL))[:2] for _ in range(4)]
        return set(found), (await one.admin("/router/state"))["notes"]

    found, notes = play(story, (a, b), tmp_path)
    assert found == {(200, "b")}
    assert any("does not accept the key" in note for note in notes)


def test_nodes_of_one_name_are_told_apart(tmp_path):
    """By their addresses, and both are used."""
    one, other = FakeNode("twin"), FakeNode("twin")
    one.models, other.models, other.boot = (SMALL,), (MIDDLE,), "boot-2"

    async def run():
        async with fronted({"one": one, "other": other}, tmp_path) as stage:
            return {(await stage.ask(SMALL))[1], (await stage.ask(MIDDLE))[1]}

    names = run_virtual(run())
    assert len(names) == 2
    assert "twin" in names


def test_a_view_of_another_version_is_not_read_n8(tmp_path):
    """The node is out with that reason; the others go on, and it is back with a version that is known."""
    a, b = FakeNode("a"), FakeNode("b")
    a.hold(SMALL)
    a.tell(v=2)

    async def story(one):
        before = (await one.ask(SMALL))[1]
        notes = (await one.admin("/router/state"))["notes"]
        a.tell(v=1)
        await reach(one, "a")
        await asyncio.sleep(0.2)
        return before, notes, (await one.ask(SMALL))[1]

    before, notes, after = play(story, (a, b), tmp_path)
    assert (before, after) == ("b", "a")
    assert any("v: 2 is not known here" in note for note in notes)


def test_a_fallback_says_what_all_nodes_say_of_the_first_variant(tmp_path):
    """Not only the one that serves: it is on a node that is away, or too big on every one that has it."""
    a, b = FakeNode("a", models=(SMALL,)), FakeNode("b")
    chain = {"chains": {"chat": [BIG, SMALL]}}

    async def story(one, proxy):
        first = (await one.ask("chat"))[2].headers["x-router-model"]
        proxy.break_("refuse")
        await asyncio.sleep(1)
        away = (await one.ask("chat"))[2].headers["x-router-reason"]
        proxy.heal()
        await reach(one, "b")
        b.gib = 12
        b.tell()
        await asyncio.sleep(1.2)
        return first, away, (await one.ask("chat"))[2].headers["x-router-reason"]

    first, away, too_big = proxied(story, (a, b), tmp_path, "b", config=chain)
    assert first == BIG
    assert away == f"fallback: {BIG} is on b, which is away"
    assert too_big == f"fallback: {BIG} too big on b"


def test_a_node_at_two_addresses_is_one_node(tmp_path):
    """The second address is used when the first one cannot be."""
    a = FakeNode("a")
    a.hold(SMALL)

    async def run():
        async with fronted({"a": a, "again": a}, tmp_path, through={"a": b"", "again": b""}) as one:
            both = len(one.front.router.routes.members.usable())
            loaded = (await one.get("/api/ps")).json()["models"]
            used = one.front.router.routes.members.named("a").url
            next(proxy for proxy in one.proxies.values() if proxy.url == used).break_("refuse")
            await asyncio.sleep(2)
            return both, len(loaded), await one.ask(SMALL)

    both, loaded, (status, node, _) = run_virtual(run())
    assert (both, loaded, status, node) == (1, 1, 200, "a")
