"""Over many stories of a node: a call that is declined has caused nothing (N9)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_simulator.clock import run_virtual
from router.core.units import MIB
from router.telemetry import Switched
from tests.config.keys.play import ALONE, BIG, HUGE, MIDDLE, OTHER, SMALL
from tests.routing.nodes.stage import call_for, noded

NAMES = (HUGE, BIG, OTHER, MIDDLE, SMALL)
FAULTS = (
    ("status", {"route": "/api/generate", "status": 500, "times": 2}),
    ("reset", {"route": "/api/generate", "after_chunks": 0, "times": 2}),
    ("status", {"route": "/api/ps", "status": 500, "times": 8}),
    ("status", {"route": "/api/tags", "status": 500, "times": 4}),
)
calls = st.tuples(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    st.booleans(),  # may_wait
    st.sampled_from((False, False, False, True)),  # is_final
    st.integers(1, 200),  # tokens
    st.sampled_from(("/api/generate", "/v1/chat/completions")),
    st.one_of(st.none(), st.floats(0.0, 8.0)),  # its client leaves
)
happenings = st.one_of(
    st.tuples(st.just("call"), calls),
    st.tuples(st.just("call"), calls),
    st.tuples(st.just("call"), calls),
    st.tuples(st.just("memory"), st.integers(0, 24000)),
    st.tuples(st.just("fault"), st.sampled_from(FAULTS)),
)
stories = st.lists(st.tuples(st.floats(0.0, 4.0), happenings), min_size=3, max_size=14)


async def told(node, number, what):
    """Send a call whose team and prompt bear its number; return its status, None if its client has left."""
    chain, may_wait, is_final, tokens, path, leaves_s = what
    call = call_for(*chain, name="best", team=f"t{number}", key_id=f"k{number}", may_wait=may_wait, is_final=is_final)
    prompt = f"[[tokens={tokens}]] n{number}."
    body = {"model": "best", "prompt": prompt, "messages": [{"role": "user", "content": prompt}]}
    try:
        async with asyncio.timeout(leaves_s):
            return (await node.ask(call, body, path)).status
    except TimeoutError:
        return None


async def played(story):
    """Return the statuses by number, the teams that switches were for, and the prompts that Ollama has seen."""
    async with noded({**ALONE, "queue.max_waiting": 3, "queue.wait_s": 20}, models=NAMES) as node:
        asked = {}
        for number, (pause_s, (kind, what)) in enumerate(story):
            await asyncio.sleep(pause_s)
            if kind == "call":
                asked[number] = asyncio.create_task(told(node, number, what))
            elif kind == "memory":
                node.one.sim.cards.set_foreign(0, what * MIB)
            else:
                node.one.sim.faults.add(what[0], **what[1])
        statuses = {number: await one for number, one in asked.items()}
        node.router.router.telemetry.flush()
        switched = {event.key_id for event in node.events if isinstance(event, Switched)}
        seen = "".join(json.dumps(one.body.decode()) for one in node.one.sim.seen)
        return statuses, switched, seen


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(stories)
def test_a_421_never_follows_what_its_request_has_caused_n9(story):
    """No load and no unload is its own, and Ollama has not seen it; every call is answered."""
    statuses, switched, seen = run_virtual(played(story))
    for number, status in statuses.items():
        assert status in (200, 421, 500, 502, 503, 504, None), Counter(statuses.values())
        if status == 421:
            assert f"k{number}" not in switched
            assert f"n{number}." not in seen
        is_final = story[number][1][1][2]
        assert not (status == 421 and is_final)
