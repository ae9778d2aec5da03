"""Somebody else on the same Ollama: a direct client, or a second router."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from router.app import running
from router.config import load_config
from tests.config.keys.play import ALONE, chat, play, send

OURS, THEIRS = "qwen3:14b", "gpt-oss:20b"
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


@pytest.mark.parametrize("kind", ["client", "router"])
def test_neither_side_starves_where_two_models_that_do_not_fit_together_are_wanted(kind):
    """Each gets at least a third of its fair half; nobody is refused."""

    async def story(one):
        ours, theirs = [], []
        async with another(kind, one) as url:
            await asyncio.gather(ask(one.router.url, OURS, ours), ask(url, THEIRS, theirs))
        assert set(ours) == set(theirs) == {200}
        assert min(len(ours), len(theirs)) >= (len(ours) + len(theirs)) / 2 / 3

    play(story, ALONE, models=(OURS, THEIRS))
