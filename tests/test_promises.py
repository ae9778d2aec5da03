"""Statements of docs/reliability.md about the whole router in front of a simulated Ollama."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from router.core.ollama.options import ServerSettings
from router.core.units import MIB
from tests.config.keys.play import ALONE, OTHER, SMALL, connect, get, hello, play, send

ROOT = Path(__file__).parent.parent
ADMIN_PATHS = (
    "/healthz", "/metrics", "/router", "/router/", "/router/state", "/router/config", "/router/decisions",
    f"/router/explain?model={SMALL}", "/router/dashboard", "/dashboard", "/main.js", "/router/main.js",
    "/router/board", "/router/events",
)  # fmt: skip


def test_nothing_of_the_admin_address_is_reached_through_the_clients_one_k1() -> None:
    """By no method, and under no Host; what the admin address has there is not passed on either."""

    async def story(one):
        admin_host = one.router.admin_url.removeprefix("http://")
        for path in ADMIN_PATHS:
            for host in ("127.0.0.1", admin_host):
                assert (await get(one.router.url, path, host=host)).status == 404
        for path in ("/router/forget", "/router/state"):
            assert (await send(one.router.url, "POST", path, {})).status == 404
        assert (await get(one.router.admin_url, "/router/state")).status == 200
        assert not [found for found in one.sim.seen if found.path.startswith(("/router", "/metrics", "/healthz"))]

    play(story)


@pytest.mark.parametrize("lag_s", [1.5, 60.0])
def test_a_probe_that_hangs_delays_no_request_for_a_resident_h2(lag_s: float) -> None:
    """From the moment at which it begins to hang; each answer is there at once."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        one.sim.cards.free_lag_s = 0.0
        probe = one.router.router.backend.cards.probe
        read = probe.read

        async def hanging(*, is_fresh: bool = False):
            await asyncio.sleep(lag_s)
            return await read(is_fresh=is_fresh)

        probe.read = hanging
        for _ in range(40):
            assert (await one.ask(hello(SMALL, tokens=1))).took_s < 0.1
            await asyncio.sleep(0.5)

    play(story)


def test_a_spill_is_remembered_at_that_level_of_free_memory_and_not_for_good_h5() -> None:
    """It never answers; with as much free memory it is not tried again, with much more it is, and runs."""

    async def story(one):
        one.sim.cards.set_foreign(0, 11000 * MIB)
        await asyncio.sleep(2)
        served = [(await one.ask(hello(OTHER, options={"num_ctx": 8192}))).served for _ in range(3)]
        tried = one.loads.count(OTHER)
        one.sim.cards.set_foreign(0, 0)
        await asyncio.sleep(120)
        later = (await one.ask(hello(OTHER, options={"num_ctx": 8192}))).served
        return served, tried, later, one.loads.count(OTHER)

    config = {"chains": {OTHER: [OTHER, SMALL]}}
    served, tried, later, loads = play(story, config, settings=ServerSettings(num_parallel=4))
    assert (served, tried) == ([SMALL] * 3, 1)
    assert (later, loads) == (OTHER, 2)


def test_connections_that_are_opened_and_dropped_leave_it_responsive_j8() -> None:
    """A thousand of them beside another client: silent ones, half a head, half a body, and resets."""

    async def story(one):
        beginnings = (
            b"",
            b"GET / HT",
            b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
            b"\x16\x03\x01",
        )
        statuses = []
        for number in range(1000):
            raw = await connect(one.router.url)
            await raw.send(beginnings[number % 4])
            raw.reset() if number % 2 else raw.close()
            if number % 20 == 0:
                statuses.append((await get(one.router.url, "/api/tags")).status)
        assert statuses == [200] * 50
        await asyncio.sleep(1)
        assert one.router.clients.open_connections == 0
        assert one.router.clients.tasks() == []

    play(story, ALONE)


@pytest.mark.real_time
def test_stories_pass_in_asyncios_debug_mode_with_warnings_as_errors_j6() -> None:
    """Nothing is awaited twice or never, called from another thread, or left unclosed."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    stories = ["tests/backend/test_line.py", "tests/routing/test_attempts.py", "tests/http/server/test_connection.py"]
    done = subprocess.run(
        [*command, *stories],
        cwd=ROOT,
        env={**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
