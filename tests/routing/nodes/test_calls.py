"""What a node does with the requests that fronts send."""

from __future__ import annotations

import asyncio

import pytest

from router.api.fronts import MOST_KEPT, Fronts
from router.config import load_config, rulebook_of
from router.core.nodes.call import CallRules
from router.core.teams.keys import digest_of
from router.core.units import MIB
from router.errors import ConfigError
from router.http.server.heads import Head
from tests.config.keys.play import ALONE, BIG, HUGE, MIDDLE, OTHER, SMALL, chat, get, hello, send
from tests.routing.nodes.stage import KEY, call_for, declined, headers_of, play, told_again

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(("path", "body"), [("/api/generate", hello("best")), (CHAT, chat("best"))])
def test_a_call_is_served_by_its_own_chain(path, body):
    """The node has no chain of that name; of the front's it takes the biggest that fits now."""

    async def story(node):
        reply = await node.ask(call_for(HUGE, BIG, SMALL, name="best"), body, path)
        return reply.status, reply.headers["x-router-model"], node.residents()

    assert play(story, models=(HUGE, BIG, SMALL)) == (200, BIG, [BIG])


def test_a_bigger_variant_than_the_chosen_one_serves_if_it_fits_now():
    """The front's view was a moment old."""

    async def story(node):
        reply = await node.ask(call_for(MIDDLE, SMALL, name="best"), hello("best"))
        return reply.headers["x-router-model"]

    assert play(story) == MIDDLE


def test_a_call_counts_for_the_team_that_it_names():
    """That team is in no file of the node; its share is the call's."""

    async def story(node):
        call = call_for(SMALL, team="Forschung", key_id="ci", share=3.0, client="10.1.2.3")
        assert (await node.ask(call, hello(SMALL))).status == 200
        (ended,) = node.ended()
        (row,) = await usage(node)
        assert (row["team"], row["key_id"], row["requests"]) == ("Forschung", "ci", 1)
        return ended.team, ended.key_id, ended.client, ended.outcome, ended.card_s > 0

    assert play(story) == ("Forschung", "ci", "10.1.2.3", "completed", True)


def test_a_call_by_a_long_chain_of_long_names_is_taken():
    """It is longer than the head of a client's request may be."""

    async def story(node):
        names = [f"{'h' * 350}/{'n' * 80}/{number:02}{'m' * 78}:{'t' * 80}" for number in range(63)]
        call = call_for(*names, SMALL, name="best")
        assert len(call.to_header()) > 50_000
        return (await node.ask(call, hello("best"))).status

    assert play(story, ALONE | {"limits.header_bytes": 4096}) == 200


def test_what_does_not_fit_is_declined_with_the_verdicts_and_nothing_is_touched():
    """What is loaded stays loaded, and serves on."""

    async def story(node):
        assert (await node.ask(call_for(SMALL), hello(SMALL))).status == 200
        said = declined(await node.ask(call_for(HUGE), hello(HUGE)))
        assert [(one.model, one.kind) for one in said.verdicts] == [(HUGE, "too_big")]
        assert said.verdicts[0].need_bytes > said.verdicts[0].have_bytes > 0
        view = await node.view()
        assert (said.node, said.boot_id, said.seq) == (view.name, view.boot_id, view.seq)
        assert HUGE in said.error
        return node.residents(), node.one.loads

    assert play(story, models=(HUGE, SMALL)) == ([SMALL], [SMALL])


def test_a_declined_call_is_no_use_of_its_team():
    """It counts where it is served."""

    async def story(node):
        declined(await node.ask(call_for(HUGE), hello(HUGE)))
        (ended,) = node.ended()
        return ended.outcome, ended.status, await usage(node)

    assert play(story, models=(HUGE, SMALL)) == ("declined", 421, [])


async def usage(node):
    """Return the rows of usage, by team and key."""
    reply = await get(node.router.admin_url, "/router/usage?by=team,key_id")
    return reply.json()["usage"]


def test_memory_that_was_taken_a_moment_ago_is_seen_before_a_load_is_begun():
    """Neither the front nor the node has read it since; nothing is loaded, and nothing spills."""

    async def story(node):
        assert (await node.ask(call_for(SMALL), hello(SMALL))).status == 200
        await asyncio.sleep(3)
        node.one.sim.cards.set_foreign(0, 12000 * MIB)
        said = declined(await node.ask(call_for(BIG), hello(BIG)))
        smaller = await node.ask(call_for(BIG, MIDDLE), hello(BIG))
        assert [load for load in node.one.loaded if load.is_spilled] == []
        return said.verdicts[0].kind, smaller.headers["x-router-model"], node.one.loads

    assert play(story, {**ALONE, "snapshot.probe_interval_s": 30, "snapshot.ps_interval_s": 30}) == (
        "too_big",
        MIDDLE,
        [SMALL, MIDDLE],
    )


def test_a_model_that_is_not_installed_is_declined():
    """The front's catalog was a moment old."""

    async def story(node):
        said = declined(await node.ask(call_for("phi4:14b"), hello("phi4:14b")))
        return [one.kind for one in said.verdicts]

    assert play(story) == ["missing"]


def busy(node, model=BIG, tokens=800):
    """Keep a model busy for some seconds."""
    return asyncio.create_task(node.ask(call_for(model), hello(model, tokens=tokens)))


def test_a_call_that_may_not_wait_is_declined_where_it_would():
    """The models in use do not fit beside it."""

    async def story(node):
        working = busy(node)
        await asyncio.sleep(4)
        said = declined(await node.ask(call_for(OTHER, may_wait=False), hello(OTHER)))
        assert [one.kind for one in said.verdicts] == ["waits"]
        assert node.residents() == [BIG]
        reply = await node.ask(call_for(OTHER), hello(OTHER))
        return (await working).status, reply.status, node.residents()

    assert play(story) == (200, 200, [OTHER])


def test_a_call_that_has_waited_is_never_declined():
    """Nothing fits any more when its turn comes: it has held others up by then, so that it fails here."""

    async def story(node):
        working = busy(node)
        await asyncio.sleep(4)
        waiting = asyncio.create_task(node.ask(call_for(OTHER), hello(OTHER)))
        await asyncio.sleep(0.1)
        node.one.sim.cards.set_foreign(0, 23000 * MIB)
        await working
        reply = await waiting
        return reply.status, node.one.loads

    assert play(story) == (503, [BIG])


def test_a_call_waits_until_its_deadline_and_others_for_longer():
    """What its front has left of the time, if that is less than the node's own."""

    async def story(node):
        working = busy(node)
        await asyncio.sleep(4)
        long = asyncio.create_task(node.ask(call_for(OTHER, deadline_s=100.0), hello(OTHER)))
        began_s = asyncio.get_running_loop().time()
        short = await node.ask(call_for(OTHER, deadline_s=2.0), hello(OTHER))
        took_s = asyncio.get_running_loop().time() - began_s
        assert "queued for 2 s" in short.json()["error"]
        return short.status, round(took_s, 1), (await long).status, (await working).status

    assert play(story) == (503, 2.0, 200, 200)


def test_a_call_for_memory_waits_until_its_deadline():
    """With `nothing_fits: wait` as well."""

    async def story(node):
        began_s = asyncio.get_running_loop().time()
        rules = CallRules("wait", "never", "balanced", 60.0)
        node.one.sim.cards.set_foreign(0, 23000 * MIB)
        await asyncio.sleep(3)
        call = call_for(BIG, rules=rules, deadline_s=3.0, is_final=True)
        reply = await node.ask(call, hello(BIG))
        return reply.status, 2 < asyncio.get_running_loop().time() - began_s - 3 < 5

    assert play(story) == (503, True)


def test_a_final_call_is_served_by_the_rules_of_its_chain():
    """It is refused, or spills if its chain allows that: never declined."""

    async def story(node):
        refused = await node.ask(call_for(HUGE, is_final=True), hello(HUGE))
        spills = call_for(HUGE, is_final=True, rules=CallRules("allow_partial", "never", "balanced", 60.0))
        spilled = await node.ask(spills, hello(HUGE))
        return refused.status, spilled.status

    assert play(story, models=(HUGE, SMALL)) == (503, 200)


def test_a_call_that_is_not_final_never_spills():
    """What its chain allows is for the last try: a smaller variant may fit elsewhere."""

    async def story(node):
        rules = CallRules("allow_partial", "never", "balanced", 60.0)
        declined(await node.ask(call_for(HUGE, rules=rules), hello(HUGE)))
        return node.residents()

    assert play(story, models=(HUGE, SMALL)) == []


def test_a_full_queue_declines():
    """Nothing was done for the request yet."""

    async def story(node):
        working = busy(node)
        await asyncio.sleep(4)
        waiting = asyncio.create_task(node.ask(call_for(OTHER), hello(OTHER)))
        await asyncio.sleep(0.1)
        said = declined(await node.ask(call_for(MIDDLE), hello(MIDDLE)))
        final = await node.ask(call_for(MIDDLE, is_final=True), hello(MIDDLE))
        working.cancel()
        waiting.cancel()
        return "server busy" in said.error, final.status

    assert play(story, {**ALONE, "queue.max_waiting": 1}) == (True, 503)


def test_an_ollama_that_is_away_declines():
    """With a reason; the last try gets the error."""

    async def story(node):
        node.one.sim.faults.add("status", status=500, route="/api/ps", times=-1)
        await asyncio.sleep(10)
        said = declined(await node.ask(call_for(SMALL), hello(SMALL)))
        final = await node.ask(call_for(SMALL, is_final=True), hello(SMALL))
        return "cannot reach Ollama" in said.error, final.status, (await node.view()).is_up

    assert play(story) == (True, 502, False)


@pytest.mark.parametrize("key", [None, "another-key", "ollama"])
@pytest.mark.parametrize(("path", "body"), [("/api/generate", hello(SMALL)), (CHAT, chat(SMALL))])
def test_a_call_without_the_key_is_a_401_at_a_node_n6(key, path, body):
    """On every route, and nothing is loaded."""

    async def story(node):
        reply = await node.ask(call_for(SMALL, team="admin"), body, path, key=key)
        return reply.status, node.one.loads, node.ended()

    assert play(story) == (401, [], [])


def test_a_call_means_nothing_on_a_router_that_is_not_a_node_n6():
    """It is served as what its client may have, and the header goes no further."""

    async def story(node):
        reply = await node.ask(call_for(OTHER, name=SMALL, team="other"), hello(SMALL), key=None)
        await node.ask(b"garbage", hello(SMALL), key=None)
        sent = node.upstream("/api/generate")
        assert sent
        assert not any("x-router-call" in one.headers for one in sent)
        return reply.status, reply.headers["x-router-model"], {one.team for one in node.ended()}

    assert play(story, is_node=False) == (200, SMALL, {"anonymous"})


def test_a_node_passes_on_neither_call_nor_key_n7():
    """Its Ollama gets the request alone: a call makes one hop."""

    async def story(node):
        assert (await node.ask(call_for(SMALL), hello(SMALL))).status == 200
        sent = node.upstream("/api/generate")
        assert sent
        return {name for one in sent for name in one.headers} & {"x-router-call", "authorization"}

    assert play(story) == set()


def test_a_second_hop_is_refused_n7():
    async def story(node):
        return (await node.ask(told_again(call_for(SMALL), hop=2), hello(SMALL))).status, node.one.loads

    assert play(story) == (400, [])


def test_a_node_has_one_backend_and_no_nodes_behind_it_n7(tmp_path):
    """So that nothing can be passed on a second time."""
    file = tmp_path / "sha"
    file.write_text("ab" * 32)
    options = {"node.name": "a", "node.key_sha256_file": str(file)}
    load_config(env={}, options=options)
    with pytest.raises(ConfigError, match=r"node.name.*one backend"):
        load_config(env={}, options={**options, "backends": {"x": {"url": "http://a"}, "y": {"url": "http://b"}}})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"deadline_s": "soon"}, "deadline_s"),
        ({"chain": []}, "chain"),
        ({"rules": {}}, "rules"),
        ({"name": "a b"}, ""),
        ({"chain": [{"model": "a b"}]}, "invalid model name"),
    ],
)
def test_a_call_that_cannot_be_read_is_a_400(changes, named):
    async def story(node):
        reply = await node.ask(told_again(call_for(SMALL), **changes), hello(SMALL))
        assert named in reply.json()["error"]
        return reply.status

    assert play(story) == 400


def test_a_call_of_another_version_is_declined():
    """A newer front finds an older node, or goes on without it."""

    async def story(node):
        return "v: 2" in declined(await node.ask(told_again(call_for(SMALL), v=2), hello(SMALL))).error

    assert play(story)


def test_a_call_is_for_the_model_of_its_request():
    async def story(node):
        other = await node.ask(call_for(SMALL), hello(MIDDLE))
        same = await node.ask(call_for(SMALL), hello(SMALL.upper()))
        return other.status, same.status

    assert play(story) == (400, 200)


def test_what_a_client_may_not_ask_for_was_checked_by_the_front():
    """Neither the node's own rules for clients nor headers of the client count."""

    async def story(node):
        reply = await node.ask(call_for(SMALL), hello(SMALL, keep_alive=-1))
        return reply.status

    assert play(story, {**ALONE, "clients.keep_alive_forever": "refuse"}) == 200


def test_the_same_call_is_read_once():
    """Requests that say the same share their rules, so that decisions are remembered."""
    fronts = Fronts((digest_of(KEY.encode()),), Quiet(), lambda: BOOK)
    first = fronts.call_of(head_of(call_for(SMALL)))
    assert first is fronts.call_of(head_of(call_for(SMALL)))
    assert first is not fronts.call_of(head_of(call_for(SMALL, team="other")))


def test_a_head_that_repeats_is_known_by_each_nodes_own_keys():
    """What it shows is found out once, for the node that asks."""
    one, other = (Fronts((digest_of(key.encode()),), Quiet(), lambda: BOOK) for key in (KEY, "another-key"))
    head = head_of(call_for(SMALL))
    assert [one.knows(head), one.knows(head)] == [True, True]
    assert [other.knows(head), other.knows(head), one.knows(head)] == [False, False, True]


def test_a_head_without_the_key_stays_unknown_when_it_repeats():
    fronts, head = Fronts((digest_of(b"another-key"),), Quiet(), lambda: BOOK), head_of(call_for(SMALL))
    assert [fronts.knows(head), fronts.knows(head)] == [False, False]


def test_as_many_calls_are_remembered_as_fronts_send_and_no_more():
    fronts = Fronts((digest_of(KEY.encode()),), Quiet(), lambda: BOOK)
    first = fronts.call_of(head_of(call_for(SMALL)))
    for number in range(MOST_KEPT):
        fronts.call_of(head_of(call_for(SMALL, team=f"team-{number}")))
    assert fronts.call_of(head_of(call_for(SMALL))) is not first


BOOK = rulebook_of(load_config(env={}))


class Quiet:
    """A node that takes calls."""

    is_draining = False

    def declined(self, why, verdicts=()):
        return f"{why}{[*verdicts]}".encode()


def head_of(call):
    """Return the head of a front's request."""
    headers = [(name.lower().encode(), value.encode()) for name, value in headers_of(call)]
    return Head("POST", b"/api/chat", b"/api/chat", headers, dict(headers))


def test_the_key_of_the_fronts_opens_the_rest_of_the_api():
    """Lists, pulls and deletions, beyond loopback too: the front has checked who asks."""

    async def story(node):
        deletion = {"model": SMALL}
        refused = await send(node.url, "DELETE", "/api/delete", deletion)
        done = await send(node.url, "DELETE", "/api/delete", deletion, headers_of(None))
        return refused.status, done.status, len((await node.get("/api/tags")).json()["models"])

    assert play(story, {**ALONE, "listen": "0.0.0.0:0"}) == (403, 200, 3)


def test_a_front_is_told_what_served_whatever_clients_are_told():
    """`telemetry.headers` is for clients; a front passes on what its own setting says."""

    async def story(node):
        whole = await node.ask(call_for(BIG, SMALL), hello(BIG, stream=False))
        again = await node.ask(call_for(BIG, SMALL), hello(BIG, stream=False))
        streamed = await node.ask(call_for(BIG, SMALL), hello(BIG))
        client = await send(node.url, "POST", "/api/generate", hello(BIG))
        return [reply.headers.get("x-router-model") for reply in (whole, again, streamed, client)]

    assert play(story, {**ALONE, "telemetry.headers": False}) == [BIG, BIG, BIG, None]


def test_a_front_may_come_by_any_name():
    """A node has one in the DNS; clients need it in `hosts`, because web pages could come by it."""

    async def story(node):
        body = hello(SMALL)
        there = [
            await send(node.url, "POST", "/api/generate", body, headers_of(call, key), host="gpu-a.example.com")
            for call, key in ((call_for(SMALL), KEY), (None, KEY), (None, None), (call_for(SMALL), "another"))
        ]
        view = await send(node.url, "GET", "/router/node", None, headers_of(None), host="gpu-a.example.com")
        return [reply.status for reply in there], view.status

    assert play(story) == ([200, 200, 403, 403], 200)


def test_a_request_with_two_keys_is_not_one_of_a_front_n6():
    """Of a client it is answered as on any router without teams, which looks at no keys; a call is refused."""

    async def story(node):
        two = [("Authorization", f"Bearer {KEY}"), ("x-api-key", "another")]
        as_client = await send(node.url, "POST", "/api/generate", hello(SMALL), two)
        by_name = await send(node.url, "POST", "/api/generate", hello(SMALL), two, host="gpu-a.example.com")
        call = [*two, *headers_of(call_for(SMALL), None)]
        as_front = await send(node.url, "POST", "/api/generate", hello(SMALL), call)
        return as_client.status, by_name.status, as_front.status

    assert play(story) == (200, 403, 401)


def test_a_node_that_drains_declines_every_call_and_says_so():
    """Also the last try of a request: it is about to end."""

    async def story(node):
        async def drain(value):
            path, headers = f"/router/drain?on={value}", [("X-Router-Admin", "1")]
            assert (await send(node.router.admin_url, "POST", path, {}, headers)).status == 200
            return await node.view()

        before, drained = await node.view(), await drain("true")
        said = [declined(await node.ask(call_for(SMALL, is_final=last), hello(SMALL))) for last in (False, True)]
        assert all("about to stop" in one.error for one in said)
        after = await drain("false")
        assert (before.draining, drained.draining, after.draining) == (False, True, False)
        assert before.seq < drained.seq < after.seq
        return (await node.ask(call_for(SMALL), hello(SMALL))).status

    assert play(story) == 200


def test_a_team_with_a_file_on_the_node_has_its_limits_of_the_line_there(tmp_path):
    """How many may wait; what a front counts, as requests per minute, does not count again."""
    text = "team: research\nrights: [infer]\nlimits: { waiting: 1, requests_per_minute: 1 }\n"
    (tmp_path / "research.yaml").write_text(text)

    async def story(node):
        found = await asyncio.gather(*(node.ask(call_for(BIG), hello(BIG)) for _ in range(4)))
        later = await node.ask(call_for(BIG), hello(BIG))
        return sorted(reply.status for reply in found), later.status

    assert play(story, {**ALONE, "teams": str(tmp_path / "*.yaml")}) == ([200, 429, 429, 429], 200)
