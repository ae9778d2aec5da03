"""Three routers in processes of their own that share limits in a store, which is killed under streams."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256

import pytest

from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, running_simulator
from router.core.ollama.options import ServerSettings
from tests import stores
from tests.config.keys.play import SMALL, get, hello, send
from tests.e2e.test_kill import ROOT

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

DEADLINE_S = 120.0
STREAMS = 50
KEY = {name: f"key-of-{name}" for name in ("minute", "streams")}
LIMITS = {"minute": "{ requests_per_minute: 100 }", "streams": "{ concurrent: 60, tokens_per_day: 100M }"}


@asynccontextmanager
async def router(folder, upstream, store):
    """Provide the URL of a router in a process of its own."""
    config = {
        "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store": {"path": ":memory:"}, "teams": f"{folder}/*.yaml",
        "backends": {"local": {"url": upstream, "probe": {"kind": "none"}, "server": {"num_parallel": 16}}},
        "defaults": {"auto_chains": "off"}, "shared": {"valkey": store.url, "connect_s": 5, "call_s": 1},
    }  # fmt: skip
    (folder / "router.json").write_text(json.dumps(config))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    argv = [sys.executable, "-m", "router", "serve", "--config", str(folder / "router.json")]
    process = await asyncio.create_subprocess_exec(*argv, env=env, stderr=asyncio.subprocess.PIPE, cwd=folder)
    try:
        while b"listens on" not in (line := await process.stderr.readline()):
            assert line, "the router ended before it listened"
        reading = asyncio.create_task(process.stderr.read())
        yield line.decode().split("listens on ")[1].split(",")[0]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await reading


@asynccontextmanager
async def routers(folder, store, count=3):
    """Provide the URLs of routers in front of one Ollama."""
    for name, key in KEY.items():
        keys = f"keys: [{{ id: k, sha256: {sha256(key.encode()).hexdigest()} }}]"
        (folder / f"{name}.yaml").write_text(f"team: {name}\n{keys}\nlimits: {LIMITS[name]}\n")
    speeds = Speeds(load_mib_per_s=100_000, tokens_per_s=30)
    machine = Machine(cards=(CardSpec(name="CUDA0", total_mib=24564),), speeds=speeds)
    config = SimConfig(machine=machine, models=(SMALL,), settings=ServerSettings(num_parallel=16))
    async with running_simulator(config) as sim:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(router(folder, sim.url, store)) for _ in range(count)]


async def ask(url, team, tokens=1):
    """Send a request; return its status, and whether its answer came to its end."""
    headers = [("Authorization", f"Bearer {KEY[team]}")]
    reply = await send(url, "POST", "/api/generate", hello(SMALL, tokens=tokens), headers)
    return reply.status, b'"done":true' in reply.body


async def has_all(urls, word):
    """Wait until all routers count limits in a way that begins with `word`."""
    for url in urls:
        while not (await get(url, "/readyz")).json()["limits"].startswith(word):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_requests_per_minute_over_three_processes_g9(tmp_path):
    """A hundred of three hundred are admitted, the others get a 429; a few may be lent and not used at that moment."""
    with stores.running("valkey", tmp_path) as store:
        async with asyncio.timeout(DEADLINE_S), routers(tmp_path, store) as urls:
            await has_all(urls, "shared")
            found = await asyncio.gather(*(ask(url, "minute") for url in urls for _ in range(100)))
    counts = Counter(status for status, _ in found)
    assert 95 <= counts[200] <= 100
    assert counts[200] + counts[429] == 300


async def test_a_store_that_is_killed_under_streams_breaks_none_of_them_i1(tmp_path):
    """Nor one that comes back; meanwhile requests are answered as before."""
    with stores.running("valkey", tmp_path) as store:
        async with asyncio.timeout(DEADLINE_S), routers(tmp_path, store) as urls:
            await has_all(urls, "shared")
            streams = [asyncio.create_task(ask(urls[n % 3], "streams", tokens=80)) for n in range(STREAMS)]
            await asyncio.sleep(3)  # until each knows of the others
            store.kill()
            await has_all(urls, "by this router alone")
            alone = await asyncio.gather(*(ask(url, "minute") for url in urls for _ in range(50)))
            store.start()
            await has_all(urls, "shared")
            assert await asyncio.gather(*streams) == [(200, True)] * STREAMS
            assert Counter(status for status, _ in alone) == {200: 100, 429: 50}
            with store.asked() as client:
                while client.exists("or1:{streams}:held"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                assert int(client.hget("or1:{streams}:day", "used")) > STREAMS * 80
            assert (await ask(urls[0], "streams"))[0] == 200


async def test_a_reload_of_the_section_refills_nothing_d3(tmp_path):
    """The next router in the process has the same store, or none: what was admitted before counts in both."""
    with stores.running("valkey", tmp_path) as store:
        async with asyncio.timeout(DEADLINE_S), routers(tmp_path, store, count=1) as (url,):
            await has_all([url], "shared")
            assert [(await ask(url, "minute"))[0] for _ in range(60)] == [200] * 60
            file = tmp_path / "router.json"
            config = json.loads(file.read_text())
            config["shared"]["routers"] = 7
            with store.asked() as client:
                (before,) = client.zrange("or1:{routers}:beat", 0, -1)
                file.write_text(json.dumps(config))
                while before in client.zrange("or1:{routers}:beat", 0, -1):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await has_all([url], "shared")
            assert Counter([(await ask(url, "minute"))[0] for _ in range(60)]) == {200: 40, 429: 20}
            del config["shared"]
            file.write_text(json.dumps(config))
            while "limits" in (await get(url, "/readyz")).json():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert (await ask(url, "minute"))[0] == 429
