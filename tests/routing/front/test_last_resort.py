"""The last try of a request that nodes have declined or lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.routing.front.stage import MIDDLE, FakeNode, fronted, run_virtual


@pytest.mark.parametrize("holder", ["a", "b"])
def test_the_last_try_goes_to_a_node_that_declined_and_not_to_the_one_that_was_cut_off(
    tmp_path: Path, holder: str
) -> None:
    """Whichever of the two has had the request first: node a was cut off, b is asked to do what it can."""

    async def run() -> tuple[int, str, list[bool], bytes]:
        async with AsyncExitStack() as stack:
            nodes = {name: FakeNode(name) for name in "ab"}
            one = await stack.enter_async_context(fronted(nodes, tmp_path, through={"a": b""}))
            nodes[holder].hold(MIDDLE)
            nodes["a"].takes_s, nodes["b"].declines = 5.0, 1
            await asyncio.sleep(1.5)
            asked = asyncio.create_task(one.ask(MIDDLE))
            await asyncio.sleep(1)
            assert (len(nodes["a"].calls), len(nodes["b"].calls)) == (1, 1 if holder == "b" else 0)
            one.proxies["a"].break_("refuse")
            status, node, reply = await asked
            return status, node, [call.is_final for call in nodes["b"].calls], reply.body

    status, node, finals, body = run_virtual(run())
    assert (status, node, finals) == (200, "b", [False, True]), body


def test_a_node_that_declined_a_request_and_then_lost_it_is_asked_no_more(tmp_path: Path) -> None:
    """Both nodes have had it, and neither can be reached: the client is told."""

    async def run() -> tuple[int, list[int]]:
        async with AsyncExitStack() as stack:
            nodes = {name: FakeNode(name) for name in "ab"}
            one = await stack.enter_async_context(fronted(nodes, tmp_path, through={"a": b"", "b": b""}))
            nodes["a"].hold(MIDDLE)
            nodes["a"].takes_s, nodes["b"].takes_s, nodes["b"].declines = 5.0, 5.0, 1
            await asyncio.sleep(1.5)
            asked = asyncio.create_task(one.ask(MIDDLE))
            await asyncio.sleep(1)
            one.proxies["a"].break_("refuse")
            async with asyncio.timeout(60):
                while len(nodes["b"].calls) < 2:  # noqa: ASYNC110 (a fake node tells nobody)
                    await asyncio.sleep(0.1)
            one.proxies["b"].break_("refuse")
            status, _, _ = await asked
            return status, [len(nodes[name].calls) for name in "ab"]

    assert run_virtual(run()) == (502, [1, 2])
