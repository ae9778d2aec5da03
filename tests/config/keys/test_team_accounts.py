"""What two teams have used, seen by an operator through the whole router."""

from __future__ import annotations

import asyncio
import json

from tests.config.keys.play import BIG, OTHER, SMALL, connect, get, hello, play, send
from tests.config.keys.test_accounts import lines, usage
from tests.config.keys.test_team_limits import KEY, OTHER_KEY, ask, limited


async def teams(one):
    """The page of the teams, by their names."""
    page = (await get(one.router.admin_url, "/router/teams")).json()
    return {row["team"]: row for row in page["teams"]}


def test_usage_audit_and_teams_say_who_has_used_what(tmp_path):
    """By team and key; a load is charged to the team that waited for it; the key itself is nowhere."""
    audit = tmp_path / "audit.jsonl"

    async def story(one):
        assert (await ask(one, KEY, tokens=9)).status == 200
        assert (await ask(one, OTHER_KEY, tokens=19)).status == 200
        assert (await ask(one, OTHER_KEY, tokens=19, path=f"/t/{OTHER_KEY}/api/generate")).status == 200
        await asyncio.sleep(0.1)
        return await usage(one, "by=team,key_id"), await teams(one)

    config = {**limited(tmp_path, "{ tokens_per_day: 1M }"), "audit.path": str(audit)}
    rows, page = play(story, config, models=(SMALL,))
    assert [(row["team"], row["key_id"], row["requests"], row["tokens_out"]) for row in rows] == [
        ("chat", "k", 2, 40),
        ("coding", "k", 1, 10),
    ]
    assert [row["load_ms"] > 0 for row in rows] == [False, True]
    assert [(line["team"], line["tokens_out"]) for line in lines(audit)] == [("coding", 10), ("chat", 20), ("chat", 20)]
    for row in rows:
        mine = [line for line in lines(audit) if line["team"] == row["team"]]
        for name in ("tokens_in", "tokens_out", "card_ms", "load_ms", "queue_ms"):
            assert sum(line[name] for line in mine) == row[name]
    coding, chat = page["coding"], page["chat"]
    assert (coding["today"]["tokens_out"], chat["today"]["tokens_out"]) == (10, 40)
    used = coding["today"]["tokens_in"] + coding["today"]["tokens_out"]
    assert coding["left"]["tokens"]["remaining"] == 1_000_000 - used
    assert coding["used"] == {"tokens_per_day": used}
    assert (chat["left"], coding["limits"]) == ({"requests": None, "tokens": None}, {"tokens_per_day": 1_000_000})
    assert not any(key in text for key in (KEY, OTHER_KEY) for text in (audit.read_text(), json.dumps(page)))


def test_the_tokens_of_the_day_count_after_a_restart(tmp_path):
    """As far as the usage is in a file."""

    async def story(one):
        statuses = [(await ask(one, tokens=60)).status for _ in range(3)]
        return statuses, (await teams(one))["coding"]["left"]["tokens"]["remaining"]

    def twice(path):
        config = {**limited(tmp_path, "{ tokens_per_day: 300 }"), "usage.path": path}
        return [play(story, config, models=(SMALL,)) for _ in range(2)]

    (first, left), (second, _) = twice(str(tmp_path / "usage.sqlite"))
    assert (first, left < 300 - 3 * 61) == ([200, 200, 200], True)
    assert second[-1] == 429
    assert [statuses for statuses, _ in twice(None)] == [[200, 200, 200]] * 2


def test_the_depth_of_the_queue_is_by_team(tmp_path):
    """In the metrics, and on the page of the teams; a team that has waited before has a 0 then."""

    async def depths(one):
        page = (await get(one.router.admin_url, "/metrics")).body.decode()
        found = [line for line in page.splitlines() if line.startswith("ollama_router_queue_depth{")]
        return {line.split('team="')[1].split('"')[0]: float(line.split()[-1]) for line in found}

    async def story(one):
        assert (await depths(one)) == {"": 0.0}
        headers = [("Authorization", f"Bearer {KEY}")]
        asking = [
            asyncio.create_task(send(one.router.url, "POST", "/api/generate", hello(model), headers))
            for model in (BIG, OTHER)
        ]
        await asyncio.sleep(0.5)
        assert (await depths(one), (await teams(one))["coding"]["waiting"]) == ({"coding": 2.0}, 2)
        await asyncio.gather(*asking)
        assert await depths(one) == {"coding": 0.0}

    play(story, limited(tmp_path, "{}"), models=(BIG, OTHER))


def test_what_is_used_of_each_limit_is_shown_while_it_is_used(tmp_path):
    """Requests under way and waiting ones, too; the dashboard's stream says the same."""
    limits = "{ concurrent: 4, requests_per_minute: 10, tokens_per_day: 1M, waiting: 5, evictions_per_minute: 3 }"

    async def story(one):
        asked = [asyncio.create_task(ask(one, tokens=200)) for _ in range(3)]
        await asyncio.sleep(0.3)  # they wait for the load
        before = (await teams(one))["coding"]
        events = await send_for_events(one)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200, 200]
        return before, events, (await teams(one))["coding"]

    before, streamed, after = play(story, limited(tmp_path, limits), models=(SMALL,))
    assert before["used"].keys() == {"concurrent", "requests_per_minute", "tokens_per_day", "waiting"}
    assert (before["used"]["concurrent"], before["used"]["requests_per_minute"], before["used"]["waiting"]) == (3, 3, 3)
    assert {row["team"]: row for row in streamed["teams"]}["coding"]["limits"] == before["limits"]
    assert (after["used"]["concurrent"], after["used"]["waiting"], after["waiting"]) == (0, 0, 0)
    assert after["limits"]["evictions_per_minute"] == 3


async def send_for_events(one):
    """The first event `teams` of the dashboard's stream."""
    raw = await connect(one.router.admin_url)
    try:
        raw.writer.write(b"GET /router/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while not (line := await raw.reader.readline()).startswith(b"event: teams"):
            assert line
        return json.loads((await raw.reader.readline()).removeprefix(b"data: "))
    finally:
        raw.close()
