"""What clients see while the state of the backends is being read for the first time."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig, running_simulator
from router.app import running
from router.config import load_config
from tests.config.keys.play import BIG, MIDDLE, SMALL, get, send

MODELS = {"desk": (MIDDLE, SMALL), "tower": (BIG, MIDDLE)}
SLOW_S = 1.5


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def first_answer(url, method, path, body):
    """Ask until the router listens."""
    while True:
        try:
            return await (get(url, path) if method == "GET" else send(url, method, path, body))
        except OSError:
            await asyncio.sleep(0.01)


def asked_at_the_start(method, path, body=None, slow="/api/ps", config=None):
    """Return the answer to the first request that a router gets, one of whose two backends answers `slow` slowly."""

    async def run():
        options: dict[str, object] = {"listen": f"127.0.0.1:{free_port()}", "admin": "127.0.0.1:0"}
        options |= {"store.path": ":memory:", "defaults.auto_chains": "off"}
        options |= config or {}
        async with AsyncExitStack() as stack:
            for name, models in MODELS.items():
                machine = Machine(cards=(CardSpec(total_mib=24564),))
                sim = await stack.enter_async_context(running_simulator(SimConfig(machine=machine, models=models)))
                options |= {f"backends.{name}.url": sim.url, f"backends.{name}.probe.kind": "none"}
                if name == "tower":
                    sim.faults.add("slow", route=slow, delay_s=SLOW_S)
            asking = asyncio.create_task(first_answer(f"http://{options['listen']}", method, path, body))
            await stack.enter_async_context(running(load_config(env={}, options=options)))
            return await asking

    return run_virtual(run())


def test_lists_are_whole_while_a_backend_is_still_being_read():
    """They wait for it for a moment, as requests do."""
    names = sorted({name for models in MODELS.values() for name in models})
    assert sorted(row["name"] for row in asked_at_the_start("GET", "/api/tags").json()["models"]) == names
    assert sorted(row["id"] for row in asked_at_the_start("GET", "/v1/models").json()["data"]) == names


def test_show_version_and_deletions_wait_for_it_as_well():
    """None is answered as if the model were not there."""
    assert asked_at_the_start("POST", "/api/show", {"model": BIG}).status == 200
    assert asked_at_the_start("GET", "/api/version").status == 200
    assert asked_at_the_start("DELETE", "/api/delete", {"model": BIG}).status == 200


def test_the_first_request_waits_until_the_models_it_is_about_are_known_on_all_backends():
    """Before that a chain would be served by the smaller variant, on the backend that is quicker to tell of its own."""
    body, chains = {"model": "best", "prompt": "hi", "stream": False}, {"chains": {"best": [BIG, SMALL]}}
    reply = asked_at_the_start("POST", "/api/generate", body, "/api/show", chains)
    assert (reply.status, reply.headers["x-router-backend"], reply.headers["x-router-model"]) == (200, "tower", BIG)
