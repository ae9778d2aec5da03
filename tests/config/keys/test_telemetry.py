"""`telemetry` and `store`: headers, recent decisions, and what is remembered of loads."""

import asyncio

import pytest

from router.core.ollama.options import ServerSettings
from tests.config.keys.play import ALONE, OTHER, SMALL, compare, decisions, hello, play, send


@pytest.mark.key("telemetry.headers")
def test_answers_carry_router_headers_unless_they_are_off():
    """On the first answer and on those that need no decision."""

    async def story(one):
        found = []
        for _ in range(3):
            reply = await send(one.router.url, "POST", "/api/generate", hello(SMALL, tokens=1))
            found.append(sum(name.startswith("x-") for name in reply.headers))
        return [count > 0 for count in found]

    assert compare(story, "telemetry.headers", [True, False]) == [[True] * 3, [False] * 3]


@pytest.mark.key("telemetry.decisions_kept")
def test_decisions_kept_are_the_newest_ones():
    """Of six requests and a load."""

    async def story(one):
        for _ in range(6):
            await one.ask(hello(SMALL, tokens=1))
        return [row["kind"] for row in await decisions(one)]

    few, all_of_them = compare(story, "telemetry.decisions_kept", [3, 100])
    assert few == ["request"] * 3
    assert sorted(all_of_them) == [*["request"] * 6, "switch finished"]


SLOTS = ServerSettings(num_parallel=4)
"""What the configuration does not mention: a load takes more than the router expects, and spills."""


async def loads(one):
    """The loads that a model costs whose first one spills."""
    await one.ask(hello(OTHER, options={"num_ctx": 16384}))
    await asyncio.sleep(1)
    return one.loads.count(OTHER)


@pytest.mark.key("store.path")
def test_what_was_learned_is_kept_in_the_file_at_path(tmp_path):
    """The second router on it does not load again what has spilled before; without a file it does."""
    for path, expected in ((str(tmp_path / "learned.sqlite"), [1, 0]), (":memory:", [1, 1])):
        config = {"chains": {OTHER: [OTHER, SMALL]}, "store.path": path}
        assert [play(loads, config, cards=(18000,), settings=SLOTS) for _ in range(2)] == expected


@pytest.mark.key("store.path")
def test_what_was_learned_is_kept_in_the_state_folder_without_a_path(tmp_path, monkeypatch):
    """`$XDG_STATE_HOME/ollama-router/learned.sqlite`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "ollama-router" / "learned.sqlite"

    async def story(one):
        await one.ask(hello(SMALL))
        await asyncio.sleep(1)
        return file.exists()

    assert compare(story, "store.path", [":memory:", None], ALONE) == [False, True]
