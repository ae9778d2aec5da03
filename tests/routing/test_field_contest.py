"""Somebody else on the same Ollama: a direct client, or a second router."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.app import running
from router.backend.contest import CONTESTED
from router.config import load_config
from router.planning.stage import stage
from router.telemetry import Notified
from tests.config.keys.play import ALONE, SPEEDS, chat, play, send

OURS, LARGE, THEIRS, MIDDLE = "qwen3:14b", "qwen3:32b", "gpt-oss:20b", "gemma3:27b"
STORY_S = 100.0


async def ask(url, model, ends):
    """Ask for `model` again and again, and note the status of each answer."""
    clock = asyncio.get_running_loop().time
    until_s = clock() + STORY_S
    while clock() < until_s:
        ends.append((await send(url, "POST", "/api/chat", {**chat(model, tokens=100), "stream": False})).status)


@asynccontextmanager
async def another(kind, one):
    """Give the address of the other side."""
    if kind == "client":
        yield one.sim.url
        return
    options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:", **ALONE}
    config = load_config(env={}, options={**options, "backends.local.url": one.sim.url})
    async with running(config, probe=one.sim.probe(), is_probed=True) as router:
        yield router.url


@pytest.mark.parametrize(("kind", "clients"), [("client", 1), ("router", 1), ("router", 3)])
@pytest.mark.parametrize("model", [OURS, LARGE])
def test_neither_side_starves_where_two_models_that_do_not_fit_together_are_wanted(kind, clients, model):
    """Each gets at least a third of its fair half; nobody is refused once the sides have met."""

    async def story(one):
        ours, theirs = [], []
        async with another(kind, one) as url:
            both = [ask(one.router.url, model, ours), ask(url, THEIRS, theirs)]
            more = [ask(one.router.url, model, ours) for _ in range(clients - 1)]
            more += [ask(url, THEIRS, theirs) for _ in range(clients - 1)]
            await asyncio.gather(*both, *more)
        assert set(ours) == set(theirs) == {200}
        assert min(len(ours), len(theirs)) >= (len(ours) + len(theirs)) / 2 / 3

    play(story, ALONE, models=(model, THEIRS))


@pytest.mark.parametrize("kind", ["client", "router"])
@pytest.mark.parametrize("after_s", [0.3, 0.6, 1.0])
def test_nobody_is_refused_while_somebody_else_loads(kind, after_s):
    """Its memory is taken before ps lists it. With "router" ours has just started, and does not know what was free."""

    async def story(one):
        await asyncio.sleep(100)
        first = asyncio.create_task(send(one.sim.url, "POST", "/api/chat", {**chat(THEIRS, tokens=4), "stream": False}))
        await asyncio.sleep(after_s)
        assert one.sim.engine.ps() == []
        async with another(kind, one) as url:
            asked = one.router.url if kind == "client" else url
            body = {**chat(OURS, tokens=4), "stream": False, "options": {"num_ctx": 16384}}
            reply = await send(asked, "POST", "/api/chat", body)
        return reply.status, (await first).status, one.loads

    assert play(story, ALONE, models=(OURS, THEIRS)) == (200, 200, [THEIRS, OURS])


def test_a_clients_model_that_goes_while_the_order_of_the_cards_is_open_is_no_contest():
    """Beside it the load might go to the wrong card. Nobody else moved memory."""
    texts = []

    class Notes:
        def on(self, event):
            texts.append(event.message if isinstance(event, Notified) else "")

    async def story():
        cards = (CardSpec(name="CUDA0", total_mib=24564), CardSpec(name="CUDA1", total_mib=12288))
        config = SimConfig(machine=Machine(cards=cards, bus=(1, 0), speeds=SPEEDS), models=(THEIRS, MIDDLE))
        async with stage(config, ALONE, hooks=(Notes(),)) as one:
            await send(one.sim.url, "POST", "/api/chat", {**chat(THEIRS, tokens=4), "stream": False})
            await asyncio.sleep(3)
            reply = await one.ask({"model": MIDDLE, "prompt": "[[tokens=4]] hi", "options": {"num_ctx": 16384}})
            return reply.status, one.loads

    assert run_virtual(story()) == (200, [THEIRS, MIDDLE])
    assert not any(text == CONTESTED for text in texts)
