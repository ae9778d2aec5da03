"""What a team's file limits, seen by its clients through the whole router."""

from __future__ import annotations

import asyncio
from hashlib import sha256

from tests.config.keys.play import BIG, MIDDLE, NOON, OTHER, SMALL, chat, get, hello, play, send

KEY, OTHER_KEY = "key-of-coding", "key-of-chat"


def limited(folder, limits, more=""):
    """A configuration with a team of these limits and one without."""
    for name, key, text in (("coding", KEY, f"limits: {limits}\n{more}"), ("chat", OTHER_KEY, "")):
        keys = f"keys: [{{ id: k, sha256: {sha256(key.encode()).hexdigest()} }}]"
        (folder / f"{name}.yaml").write_text(f"team: {name}\n{keys}\n{text}")
    return {"teams": f"{folder}/*.yaml", "defaults.auto_chains": "off"}


async def ask(one, key=KEY, tokens=1, path="/api/generate", **more):
    body = hello(SMALL, tokens=tokens, **more)
    return await send(one.router.url, "POST", path, body, [("Authorization", f"Bearer {key}")])


async def rejected(one):
    """The refusals by limit, of one team."""
    page = (await get(one.router.admin_url, "/metrics")).body.decode()
    rows = [line for line in page.splitlines() if line.startswith("ollama_router_rejected_total{")]
    mine = [line for line in rows if 'team="coding"' in line]
    return {line.split('reason="')[1].split('"')[0]: float(line.split()[-1]) for line in mine}


def test_requests_per_minute_hold_in_any_60_seconds_g9(tmp_path):
    """Three requests a second for four minutes: 100 of them in any minute, or 99; the other team does not notice."""

    async def story(one):
        loop, served, tasks = asyncio.get_running_loop(), [], []
        await ask(one, OTHER_KEY)  # load it

        async def client():
            at_s = loop.time()
            reply = await ask(one, tokens=1)
            if reply.status == 200:
                served.append(at_s)
            else:
                assert reply.status == 429
                assert 1 <= int(reply.headers["retry-after"]) <= 60

        for number in range(720):
            tasks.append(asyncio.create_task(client()))
            if number % 30 == 0:
                assert (await ask(one, OTHER_KEY)).status == 200
            await asyncio.sleep(1 / 3)
        await asyncio.gather(*tasks)
        starts = [start for start in served if start + 60 < served[0] + 235]
        counts = [sum(start <= at_s < start + 60 for at_s in served) for start in starts]
        assert max(counts) <= 100
        assert min(counts) >= 99
        assert await rejected(one) == {"requests_per_minute": 720.0 - len(served)}

    play(story, limited(tmp_path, "{ requests_per_minute: 100 }"), models=(SMALL,))


def test_concurrent_counts_those_that_wait_as_well(tmp_path):
    """Two while the model loads; a client that leaves gives its place back."""

    async def story(one):
        first, second = (asyncio.create_task(ask(one, tokens=1000)) for _ in range(2))
        await asyncio.sleep(0.1)
        assert (await ask(one)).status == 429
        first.cancel()
        await asyncio.sleep(0.5)
        assert (await ask(one)).status == 200
        assert (await second).status == 200
        assert (await ask(one, OTHER_KEY)).status == 200
        assert await rejected(one) == {"concurrent": 1.0}

    play(story, limited(tmp_path, "{ concurrent: 2 }"), models=(SMALL,))


def test_tokens_per_day_count_what_answers_took(tmp_path):
    """Streamed or not; what is left is in a header, less what the request itself may take."""

    async def story(one):
        body = {"options": {"num_predict": 40}}
        await ask(one, tokens=40, **body)
        counted = (await ask(one, tokens=40, stream=False, **body)).json()
        took = counted["prompt_eval_count"] + counted["eval_count"]
        assert took > 40
        third = await ask(one, tokens=1, options={"num_predict": 1})
        reserved = len(hello(SMALL, tokens=1)["prompt"]) // 3 + 1
        assert int(third.headers["x-ratelimit-remaining-tokens"]) == 1000 - 2 * took - reserved
        while (reply := await ask(one, tokens=40, **body)).status == 200:
            pass
        assert (reply.status, reply.headers["x-should-retry"]) == (429, "false")
        assert await rejected(one) == {"tokens_per_day": 1.0}

    play(story, limited(tmp_path, "{ tokens_per_day: 1000 }"), models=(SMALL,))


def test_the_tokens_of_a_day_are_there_again_at_midnight(tmp_path):
    """Of UTC; until then the refusal says how long that is."""

    async def story(one):
        while (reply := await ask(one, tokens=40, options={"num_predict": 40})).status == 200:
            pass
        left_s = int(reply.headers["retry-after"])
        await asyncio.sleep(left_s - 5)
        early = (await ask(one)).status
        await asyncio.sleep(5)
        return left_s, early, (await ask(one)).status

    limits = limited(tmp_path, "{ tokens_per_day: 300 }")
    left_s, early, late = play(story, limits, models=(SMALL,), begin=NOON.replace(hour=23, minute=50))
    assert 590 < left_s < 600
    assert (early, late) == (429, 200)


def test_what_a_team_has_loaded_is_not_evicted_by_others_below_its_floor(tmp_path):
    """The other team gets its smaller variant; without a floor, or when it was not used for long, the best."""

    async def story(one):
        async def served(key, model):
            body = hello(model, stream=False, keep_alive="10m", options={"num_ctx": 4096})
            reply = await send(one.router.url, "POST", "/api/generate", body, [("Authorization", f"Bearer {key}")])
            return reply.json().get("model", reply.status)

        found = [await served(KEY, BIG), await served(OTHER_KEY, OTHER)]
        await asyncio.sleep(1)
        found.append(await served(KEY, BIG))
        await asyncio.sleep(700)
        return [*found, await served(OTHER_KEY, OTHER)]

    def played(more):
        config = {**limited(tmp_path, "{}", more), "chains": {OTHER: [OTHER, SMALL]}}
        return play(story, config, models=(BIG, OTHER, SMALL))

    assert played("vram: { floor: 90% }") == [BIG, SMALL, BIG, OTHER]
    assert played("") == [BIG, OTHER, BIG, OTHER]


def as_team(one, key, model, path="/api/generate", **more):
    """A request of the team with `key`, as a task."""
    head = [("Authorization", f"Bearer {key}")]
    body = hello(model, **more) if path.startswith("/api/") else {**chat(model), "max_tokens": 4}
    return asyncio.create_task(send(one.router.url, "POST", path, body, head))


def test_more_waiting_requests_of_a_team_than_its_limit_are_refused_in_the_dialect_of_the_route(tmp_path):
    """With when to come back and the place that it would have had; those of another team wait on."""

    async def story(one):
        load = [as_team(one, KEY, SMALL) for _ in range(2)]
        await asyncio.sleep(0.1)
        for path in ("/api/generate", "/v1/chat/completions", "/v1/messages"):
            reply = await as_team(one, KEY, SMALL, path)
            assert reply.status == 429, (path, reply.body)
            assert reply.headers["x-router-position"] == "3", (path, reply.headers)
            assert int(reply.headers["retry-after"]) >= 1
            assert "2 requests in the queue" in reply.body.decode()
        other = as_team(one, OTHER_KEY, SMALL)
        assert [(await task).status for task in (*load, other)] == [200, 200, 200]
        assert (await as_team(one, KEY, SMALL)).status == 200
        assert await rejected(one) == {"waiting": 3.0}

    play(story, limited(tmp_path, "{ waiting: 2 }"), models=(SMALL,))


def test_beyond_evictions_per_minute_a_team_waits_and_others_go_on(tmp_path):
    """The second model of others goes a minute after the first one; meanwhile the other team is served."""

    async def story(one):
        loop = asyncio.get_running_loop()
        await as_team(one, OTHER_KEY, OTHER)
        assert (await as_team(one, KEY, BIG)).status == 200
        evicted_s = loop.time()
        await as_team(one, OTHER_KEY, OTHER)
        mine = as_team(one, KEY, BIG)
        for _ in range(4):
            await asyncio.sleep(5)
            assert (await as_team(one, OTHER_KEY, OTHER)).status == 200
        assert not mine.done()
        assert (await mine).status == 200
        return loop.time() - evicted_s

    def played(limits):
        return play(story, {**limited(tmp_path, limits), "queue.wait_s": 300}, models=(BIG, OTHER))

    assert 50 < played("{ evictions_per_minute: 1 }") < 75


def test_what_a_team_evicts_of_its_own_does_not_count_as_evictions_of_others(tmp_path):
    """Five switches between its own models within a minute."""

    async def story(one):
        since_s = asyncio.get_running_loop().time()
        for _ in range(3):
            for model in (BIG, OTHER):
                assert (await as_team(one, KEY, model)).status == 200
        return asyncio.get_running_loop().time() - since_s

    assert play(story, limited(tmp_path, "{ evictions_per_minute: 1 }"), models=(BIG, OTHER)) < 55


def test_a_team_loads_nothing_beyond_its_cap_while_others_wait(tmp_path):
    """Who came first waits until the other team has its model; with nobody else it loads as it likes."""

    async def story(one, first, second):
        for key, tokens in ((first, 1), (second, 300), (second, 300)):  # so that the first one has had least
            assert (await as_team(one, key, BIG, tokens=tokens)).status == 200
        order = []

        async def noted(name, task):
            assert (await task).status == 200
            order.append(name)

        blocker = as_team(one, second, BIG, tokens=300)  # beside which neither of the two fits
        await asyncio.sleep(0.5)
        mine = asyncio.create_task(noted("big", as_team(one, first, OTHER)))
        await asyncio.sleep(0.5)
        other = asyncio.create_task(noted("small", as_team(one, second, MIDDLE)))
        await asyncio.gather(blocker, mine, other)
        return order

    def played(more, first=KEY, second=OTHER_KEY):
        config = {**limited(tmp_path, "{}", more), "queue.wait_s": 300}
        return play(lambda one: story(one, first, second), config, models=(BIG, OTHER, MIDDLE))

    assert played("vram: { cap: 20% }") == ["small", "big"]
    assert played("") == ["big", "small"]  # who came first
    assert played("vram: { cap: 90% }") == ["big", "small"]
    assert played("vram: { cap: 20% }", OTHER_KEY, KEY) == ["big", "small"]  # the one that asks for it has no cap


def test_two_teams_above_their_caps_do_not_wait_for_each_other(tmp_path):
    """Both are served, in turn."""

    async def story(one):
        tasks = [as_team(one, KEY, BIG), as_team(one, OTHER_KEY, OTHER)]
        return [(await task).status for task in tasks]

    config = limited(tmp_path, "{}", "vram: { cap: 10% }")
    (tmp_path / "chat.yaml").write_text((tmp_path / "chat.yaml").read_text() + "vram: { cap: 10% }\n")
    assert play(story, config, models=(BIG, OTHER)) == [200, 200]
