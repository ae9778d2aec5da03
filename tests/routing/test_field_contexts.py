"""An Ollama that chooses another context than the router expects (OLLAMA_CONTEXT_LENGTH, which no API shows)."""

import asyncio

import pytest

from router.core.ollama.options import ServerSettings
from tests.routing.test_dispatch import ALONE, MIDDLE, chat, hello, play

EMBEDDER = "nomic-embed-text:v1.5"
WITHOUT_TAGS = {**ALONE, "defaults.derived_tags": False}


@pytest.mark.parametrize(
    ("body", "path", "config"),
    [(chat(MIDDLE), "/v1/chat/completions", WITHOUT_TAGS), ({"model": EMBEDDER, "input": "hi"}, "/api/embed", ALONE)],
)
@pytest.mark.parametrize("num_ctx", [1024, 65536])
def test_what_ollama_loads_with_its_own_context_serves_whatever_was_expected(body, path, config, num_ctx):
    """A reload would get the same context, again and again."""

    async def story(one):
        for _ in range(2):
            async with asyncio.timeout(30):
                assert (await one.ask(body, path)).status == 200
        assert len(one.loads) == 1

    play(story, config, settings=ServerSettings(context_length=num_ctx))


def test_a_load_with_a_smaller_context_than_expected_does_not_teach_that_the_model_takes_less():
    """A request that names the expected context would then be loaded where it does not fit."""

    async def story(one):
        async with asyncio.timeout(30):
            assert (await one.ask(chat(MIDDLE), "/v1/chat/completions")).status == 200
        lessons = one.router.router.backend.lessons
        assert not lessons.learned.by_weights
        assert (await one.ask(hello(MIDDLE))).status == 200
        assert len(lessons.learned.by_weights) == 1

    play(story, WITHOUT_TAGS, settings=ServerSettings(context_length=4096))
