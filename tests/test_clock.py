"""A wall clock that is set while the router runs, or that stands still: nothing ends, is lost, or counts twice."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from datetime import datetime, timedelta
from hashlib import sha256

import pytest

from router.telemetry import Finished, TaskFailed
from tests.config.keys.play import NOON, SMALL, connect, get, hello, play, residents, send

KEY = "key-of-coding"
HEADERS = [("Authorization", f"Bearer {KEY}")]
YEARS = timedelta(days=3650)
JUMPS = {
    "an hour ahead": timedelta(hours=1),
    "an hour back": timedelta(hours=-1),
    "ten years ahead": YEARS,
    "ten years back": -YEARS,
    "stands still": None,
}


class WallClock:
    """Goes with the loop, from noon on, until it is set."""

    def __init__(self) -> None:
        self._ahead, self._stands_at_s = timedelta(), None

    def __call__(self):
        loop_s = asyncio.get_running_loop().time() if self._stands_at_s is None else self._stands_at_s
        return NOON + self._ahead + timedelta(seconds=loop_s)

    def jump(self, by) -> None:
        """Set it ahead by `by`; None stops it."""
        if by is None:
            self._stands_at_s = asyncio.get_running_loop().time()
        else:
            self._ahead += by


class Heard(list):
    """A hook that keeps what happens."""

    on = list.append


def configured(folder, key=""):
    """Return a configuration with a team; `key` says until when its key counts. Usage and audit are in files."""
    keys = f"[{{ id: k, sha256: {sha256(KEY.encode()).hexdigest()}{key} }}]"
    limits = "{ requests_per_minute: 60, tokens_per_day: 100000, concurrent: 5 }"
    (folder / "coding.yaml").write_text(f"team: coding\nkeys: {keys}\nlimits: {limits}\n")
    files = {"usage.path": str(folder / "usage.db"), "audit.path": str(folder / "audit.jsonl"), "usage.every_s": 1}
    return {"teams": f"{folder}/*.yaml", "defaults.auto_chains": "off", **files}


async def ask(one, tokens=4, **more):
    body = hello(SMALL, tokens=tokens, **more)
    return await send(one.router.url, "POST", "/api/generate", body, HEADERS)


async def asked_over_a_jump(one, clock, jump):
    """Ask once before it, once over it for ten seconds, and three times after it."""
    assert (await ask(one)).status == 200
    long = asyncio.create_task(ask(one, 1000))
    await asyncio.sleep(2)
    clock.jump(jump)
    await asyncio.sleep(1)
    assert [(await ask(one, keep_alive="30s")).status for _ in range(3)] == [200] * 3
    reply = await long
    assert (reply.status, len(reply.body.splitlines()) > 1000) == (200, True)


async def is_unloaded_by_keep_alive(one, clock):
    """Check that it is shown and done 30 s after the last request."""
    (row,) = (await get(one.router.url, "/api/ps", HEADERS)).json()["models"]
    assert abs(datetime.fromisoformat(row["expires_at"]) - clock() - timedelta(seconds=30)) < timedelta(seconds=2)
    await asyncio.sleep(25)
    assert residents(one) == [SMALL]
    await asyncio.sleep(10)
    assert residents(one) == []


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_a_router_goes_on_whatever_its_clock_is_set_to_j10(jump, tmp_path):
    """Requests, limits, usage, audit, keep-alive and pages."""
    clock, heard = WallClock(), Heard()

    async def story(one):
        await asked_over_a_jump(one, clock, jump)
        await is_unloaded_by_keep_alive(one, clock)
        admin = one.router.admin_url
        pages = [(await get(admin, path)).json() for path in ("/router/board", "/router/usage?by=team")]
        return *pages, (await get(admin, "/metrics")).body.decode()

    board, usage, page = play(story, configured(tmp_path), models=(SMALL,), now=clock, hooks=[heard])
    assert not [event for event in heard if isinstance(event, TaskFailed)]
    assert "ollama_router_task_restarts_total{" not in page
    ends = [event for event in heard if isinstance(event, Finished) and event.team == "coding"]
    assert [round(event.duration_s) for event in ends if event.tokens_out > 900] == [10]
    assert all(event.duration_s >= 0 and event.queue_s >= 0 for event in ends)
    assert [row["requests"] for row in usage["usage"]] == [5]
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["route"] == "/api/generate"]) == 5
    minutes = [(minute["at"], minute["requests"]) for minute in board["minutes"] if minute["requests"]]
    assert sum(count for _, count in minutes) == 5
    assert [at for at, _ in minutes] == sorted({at for at, _ in minutes})
    assert all(0 < span["to"] - span["from"] < 100 for span in board["timeline"]["spans"])


@pytest.mark.parametrize("jump", [timedelta(hours=-1), -YEARS], ids=["an hour back", "ten years back"])
def test_the_dashboard_shows_the_usage_of_today_after_the_clock_was_set_back_j10(jump, tmp_path):
    """Not that of before until the clock has come there again."""
    clock = WallClock()

    async def story(one):
        with closing(await connect(one.router.admin_url)) as raw:
            await raw.send(b"GET /router/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert (await ask(one)).status == 200
            await seen(raw, b'"requests":1,')
            clock.jump(jump)
            assert (await ask(one, tokens=7)).status == 200
            await seen(raw, b'"tokens_out":8,' if jump == -YEARS else b'"tokens_out":13,')

    play(story, configured(tmp_path), models=(SMALL,), now=clock)


async def seen(raw, text):
    """Read a stream of events until the teams are shown with `text`."""
    said = b""
    for _ in range(200):
        said = said[-100_000:] + await raw.reader.read(1 << 16)
        if text in said.rpartition(b"event: teams")[2]:
            return
    pytest.fail("it is not shown")


def test_a_key_counts_by_the_clock_as_it_is_set_j10(tmp_path):
    """One that has expired by a clock that was ahead is valid again when the clock is."""
    clock = WallClock()

    async def story(one):
        statuses = []
        for jump in (0, 1, -1):
            clock.jump(timedelta(hours=jump))
            statuses.append((await send(one.router.url, "GET", "/api/tags", None, HEADERS)).status)
        return statuses

    until = (NOON + timedelta(minutes=30)).isoformat()
    assert play(story, configured(tmp_path, f", expires: {until}"), models=(SMALL,), now=clock) == [200, 403, 200]
