"""A reload that adds, changes or removes a backend starts a next router; what is under way ends on the one before."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, running_simulator
from router.cli.generations import Generations
from router.config import load_config, way_of
from router.telemetry import LogHook
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, connect, get, hello, send

MODELS = {"old": (SMALL,), "kept": (MIDDLE,), "changed": (OTHER,), "moved": (OTHER,), "added": (BIG,)}
TOKENS = 1000
"""So many take 10 s, within which the next router starts."""


def test_a_change_of_the_backends_needs_a_next_router():
    """Nothing of a backend is changed in place, nor how requests are divided."""
    keys = ("backends.tower", "backends.tower.url", "backends.desk.gpus", "fleet.retries", "fleet.load_factor")
    assert {way_of(key) for key in keys} == {"next router"}


class Reloading:
    """Generations in front of simulated Ollamas, one per entry of MODELS; `urls` are the backends of the next one."""

    def __init__(self, sims):
        self.sims, self.started, self.urls = sims, [], {}
        self.them = Generations(self.load, lambda _: LogHook("warning", sink=lambda _line: None), self.started.append)

    def load(self):
        options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}
        options |= {"defaults.auto_chains": "off"}
        for name, sim in self.urls.items():
            options |= {f"backends.{name}.url": self.sims[sim].url, f"backends.{name}.probe.kind": "none"}
        return load_config(env={}, options=options)

    async def ask(self, model):
        reply = await send(self.started[-1].url, "POST", "/api/generate", hello(model))
        return reply.status, reply.headers.get("x-router-backend", "")

    async def stream(self, model):
        raw = await connect(self.started[-1].url)
        reply = await raw.ask("POST", "/api/generate", json.dumps(hello(model, tokens=TOKENS)))
        raw.close()
        return reply

    async def settled(self):
        """Wait until no router but the last one is left."""
        while len(self.them._alive) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.real_time
async def test_a_reload_that_removes_adds_and_changes_backends_cuts_no_stream():
    """Streams end on what was removed and on the old address of what was changed; what is new is used at once."""
    async with AsyncExitStack() as stack:
        card = Machine(cards=(CardSpec(total_mib=24564),), speeds=Speeds(load_mib_per_s=20000, tokens_per_s=100))
        sims = {
            name: await stack.enter_async_context(running_simulator(SimConfig(machine=card, models=models)))
            for name, models in MODELS.items()
        }
        one = Reloading(sims)
        one.urls = {"gone": "old", "stays": "kept", "other": "changed"}
        task = asyncio.create_task(one.them.run(one.load()))
        async with asyncio.timeout(120):
            while not one.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for model in (SMALL, MIDDLE, OTHER):
                assert (await one.ask(model))[0] == 200
            streams = [asyncio.create_task(one.stream(model)) for model in (SMALL, MIDDLE, OTHER)]
            await asyncio.sleep(0.5)
            one.urls = {"stays": "kept", "other": "moved", "new": "added"}
            assert (await one.them.reload())["by"] == "next router"
            assert len(one.started) == 2
            assert not any(stream.done() for stream in streams)
            assert await one.ask(OTHER) == (200, "other")
            assert await one.ask(BIG) == (200, "new")
            assert await one.ask(MIDDLE) == (200, "stays")
            assert (await one.ask(SMALL))[0] == 404
            rows = (await get(one.started[-1].url, "/readyz")).json()["backends"]
            assert set(rows) == {"stays", "other", "new"}
            ended = await asyncio.gather(*streams)
            assert [b'"done":true' in reply.body and not reply.is_cut for reply in ended] == [True] * 3
            assert [reply.headers["x-router-backend"] for reply in ended] == ["gone", "stays", "other"]
            await one.settled()
            for name in ("old", "changed"):
                sims[name].seen.clear()
            await asyncio.sleep(3)
            assert [sims[name].seen for name in ("old", "changed")] == [[], []]  # nobody asks them any more
            assert [seen.path for seen in sims["moved"].seen].count("/api/generate") >= 1
        one.them.stop()
        await task
