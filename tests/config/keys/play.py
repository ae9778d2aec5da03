"""Configurations in, behaviour out: the whole router in front of a simulated Ollama, observed from outside only.

A test plays one story under two or more values of its key. Every configuration that was in force is recorded, so that
`conftest.py` can hold each test to the key that it claims to prove.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.app import running
from router.config import load_config
from router.core.units import MIB
from router.planning.stage import stage
from tests.config.keys.page import metrics_page
from tests.fakes import RawClient, Reply

HUGE, HUGE_Q2 = "llama3.3:70b-instruct-q4_K_M", "llama3.3:70b-instruct-q2_K"
BIG, OTHER, MIDDLE, SMALL = "qwen3:32b", "qwen3:14b", "llama3.1:8b", "llama3.2:3b"
EMBEDDER = "nomic-embed-text:v1.5"
MODELS = (BIG, OTHER, MIDDLE, SMALL)
"""What is installed as a rule. On a card of 24 GB the first two do not fit beside each other."""

SPEEDS = Speeds(load_mib_per_s=10000, tokens_per_s=100, cpu_tokens_per_s=4)
ALONE = {"defaults.auto_chains": "off"}
CHAIN = {"chains": {BIG: [BIG, MIDDLE, SMALL]}}

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
"""When stories begin, so that no day ends within one unless it is told to."""

in_force: list[dict] = []
"""The effective configuration of every router that the running test has started."""


def play(story, config=ALONE, *, page=False, **sim):
    """What `story` returns for a router with `config`, on a virtual clock.

    With `page` the router reads the cards from a page of metrics, and the story gets that page as well.
    """

    async def run():
        if page:
            async with metrics_page() as metrics:
                probe = {"backends.local.probe.kind": "prometheus", "backends.local.probe.url": metrics.url}
                async with routed({**probe, **config}, has_probe=None, **sim) as one:
                    metrics.cards = one.sim.cards
                    return await story(one, metrics)
        async with routed(config, **sim) as one:
            return await story(one)

    return run_virtual(run())


def compare(story, key, values, config=ALONE, **sim):
    """What `story` returns under each of `values` of the dotted `key`, in their order."""
    return [play(story, {**config, key: value}, **sim) for value in values]


compare_small = partial(compare, models=(SMALL,))
"""The same where one small model is installed: starts sooner."""


@asynccontextmanager
async def routed(
    config=ALONE,
    *,
    cards=(24564,),
    models=MODELS,
    has_probe=True,
    free_lag_s=0.0,
    speeds=SPEEDS,
    begin=NOON,
    hooks=(),
    **sim,
):
    """A stage whose router runs with `config` from `begin` on; for the simulated machine see `SimConfig`."""
    specs = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(cards))
    machine = Machine(cards=specs, speeds=speeds, free_lag_s=free_lag_s)
    loop = asyncio.get_running_loop()
    sim.setdefault("now", lambda: begin + timedelta(seconds=loop.time()))
    async with stage(SimConfig(machine=machine, models=models, **sim), config, has_probe=has_probe, hooks=hooks) as one:
        await record(one.router.admin_url)
        yield one


@asynccontextmanager
async def in_front_of(url, config=None):
    """A router in front of any upstream, without a simulator and without a probe."""
    options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:", "backends.local.url": url}
    options |= {"backends.local.probe.kind": "none", **(config or {})}
    async with running(load_config(env={}, options=options)) as router:
        await record(router.admin_url)
        yield router


async def record(admin_url):
    """Note the configuration that a running router says is in force."""
    in_force.append((await get(admin_url, "/router/config")).json())


# --- clients -------------------------------------------------------------------------------------------------------


async def connect(url):
    """A raw connection to the listener at `url`."""
    where = urlsplit(url)
    return RawClient(*await asyncio.open_connection(where.hostname, where.port))


async def send(url, method, target, body=None, headers=(), host="127.0.0.1") -> Reply:
    """One request on a connection of its own, and its whole answer."""
    raw = await connect(url)
    try:
        return await raw.ask(method, target, json.dumps(body) if body is not None else None, headers, host=host)
    finally:
        raw.close()


async def get(url, target, headers=(), host="127.0.0.1") -> Reply:
    return await send(url, "GET", target, headers=headers, host=host)


def hello(model, tokens=4, **more):
    """A body for /api/generate whose answer has `tokens` tokens."""
    return {"model": model, "prompt": f"[[tokens={tokens}]] hi", **more}


def chat(model, tokens=4):
    """A body for /v1/chat/completions."""
    return {"model": model, "messages": [{"role": "user", "content": f"[[tokens={tokens}]] hi"}]}


async def decisions(one):
    """Recent decisions and switches, newest first."""
    return (await get(one.router.admin_url, "/router/decisions")).json()["decisions"]


async def explained(one, model):
    """The decision for `model` now, with a row per variant."""
    return (await get(one.router.admin_url, f"/router/explain?model={model}")).json()


async def state(one):
    """Cards and residents as the router sees them."""
    return (await get(one.router.admin_url, "/router/state")).json()


async def cards(one):
    """The cards that the router sees: their names, sizes and free memory in MiB; None where they are unknown."""
    gpus = (await state(one))["gpus"]
    if gpus is None:
        return None
    return [(gpu["name"], gpu["total_bytes"] // MIB, gpu["free_bytes"] // MIB) for gpu in gpus]


async def memory_mode(one):
    """How free memory is known: "probe", "verify" or that there is no GPU."""
    return (await get(one.router.admin_url, "/readyz")).json()["memory"]


# --- the server behind -----------------------------------------------------------------------------------------------


def residents(one):
    """The names of what Ollama has loaded."""
    return sorted(row.model.name for row in one.sim.engine.ps())


def contexts(one):
    """The context of each model that Ollama has loaded."""
    return [row.context_length for row in one.sim.engine.ps()]


def seen(one, path, method=None):
    """The requests that Ollama has had on `path`."""
    return [found for found in one.sim.seen if found.path == path and method in (None, found.method)]
