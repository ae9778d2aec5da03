"""`telemetry.otlp`: traces of requests and loads at a collector, seen from there."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, running_simulator
from router.app import running
from router.config import load_config
from router.core.teams.keys import digest_of, make_key
from tests.config.keys.play import ALONE, MIDDLE, SMALL, hello, in_front_of, play, send
from tests.telemetry.collector import attributes_of, collector

pytestmark = pytest.mark.real_time  # a thread sends them

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-{flags}") for flags in ("01", "00"))
MANY = {"chains": {}, "telemetry.otlp.every_s": 60.0}


async def ask(url, headers=(), model=SMALL, **more):
    """Send one request."""
    return (await send(url, "POST", "/api/generate", hello(model, stream=False, **more), list(headers))).status


def traced(collected, **more):
    """Return a configuration that sends traces to a collector."""
    return {**ALONE, "telemetry.otlp.endpoint": collected.url, "telemetry.otlp.every_s": 0.02, **more}


@pytest.mark.key("telemetry.otlp.endpoint")
def test_requests_and_loads_are_spans_at_the_collector():
    """Without one nothing is sent, and the client's header goes upstream unchanged."""

    async def story(one):
        assert await ask(one.router.url, [SAMPLED]) == 200
        return [dict(request.headers).get("traceparent", "") for request in one.sim.seen if "generate" in request.path]

    with collector() as collected:
        for endpoint in (None, collected.url):
            play(story, {**traced(collected), "telemetry.otlp.endpoint": endpoint}, models=(SMALL,))
        (whole,), (load,) = collected.named("text_completion"), collected.named("load ")
        assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
        assert attributes_of(whole)["gen_ai.response.model"] == SMALL
        assert [(link.trace_id, link.span_id) for link in whole.links] == [(load.trace_id, load.span_id)]


@pytest.mark.key("telemetry.otlp.sample")
def test_a_part_of_the_traces_is_recorded_and_of_a_clients_own_the_part_that_it_records():
    """By the flag of its header."""

    async def story(one):
        for headers in ([], [SAMPLED], [UNSAMPLED]):
            assert await ask(one.router.url, headers) == 200

    found = []
    for sample in (0.0, 1.0):
        with collector() as collected:
            play(story, traced(collected, **{"telemetry.otlp.sample": sample}), models=(SMALL,))
            found.append([span.parent_span_id.hex() for span in collected.named("text_completion")])
    assert found == [[PARENT], ["", PARENT]]


@pytest.mark.key("telemetry.otlp.max_waiting")
def test_with_more_than_max_waiting_the_oldest_are_dropped():
    """Here nothing is sent before the end."""

    async def story(one):
        for tokens in (1, 2, 3, 4):
            assert await ask(one.router.url, tokens=tokens) == 200

    found = []
    for most in (1, 1000):
        with collector() as collected:
            config = traced(collected, **MANY, **{"telemetry.otlp.max_waiting": most})
            play(story, config, models=(SMALL,))
            requests = collected.named("text_completion")
            found.append({attributes_of(span)["gen_ai.usage.output_tokens"] for span in requests})
    assert found == [{5}, {2, 3, 4, 5}]


@pytest.mark.key("telemetry.otlp.every_s")
def test_traces_are_sent_every_so_often():
    """While the router runs, or with a long pause at its end."""

    def has_come(collected):
        deadline_s = time.monotonic() + (20.0 if collected.status == 200 and collected.is_quick else 0.5)
        while not collected.spans and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return bool(collected.spans)

    async def story(one, collected):
        assert await ask(one.router.url) == 200
        return await asyncio.to_thread(has_come, collected)

    found = []
    for every_s in (0.02, 60.0):
        with collector() as collected:
            collected.is_quick = every_s < 1
            config = traced(collected, **{"telemetry.otlp.every_s": every_s})
            found.append((play(lambda one, c=collected: story(one, c), config, models=(SMALL,)), bool(collected.spans)))
    assert found == [(True, True), (False, True)]


@pytest.mark.key("telemetry.otlp.timeout_s")
def test_a_collector_that_never_answers_is_given_up_after_timeout_s():
    """And asked again with the next spans; requests are served meanwhile."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="no [otel]")

    def asked_again(counted, seconds):
        deadline_s = time.monotonic() + seconds
        while len(counted) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return len(counted) >= 2

    async def story(one, counted, seconds):
        for _ in range(2):
            assert await ask(one.router.url) == 200
            await asyncio.to_thread(time.sleep, 0.3)
        return await asyncio.to_thread(asked_again, counted, seconds)

    found = []
    for timeout_s, seconds in ((0.1, 20.0), (60.0, 0.5)):
        with silent_server() as (port, counted):
            config = {
                **ALONE,
                "telemetry.otlp.endpoint": f"http://127.0.0.1:{port}",
                "telemetry.otlp.every_s": 0.02,
                "telemetry.otlp.timeout_s": timeout_s,
            }
            found.append(play(lambda one, c=counted, n=seconds: story(one, c, n), config, models=(SMALL,)))
    assert found == [True, False]


@contextmanager
def silent_server():
    """A server that accepts and never answers: its port, and the connections that it has had."""
    counted, is_over = [], threading.Event()

    def accept():
        while not is_over.is_set():
            with suppress(TimeoutError):
                counted.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], counted
        finally:
            is_over.set()
            thread.join()
            for connection in counted:
                connection.close()


async def test_a_trace_through_two_routers_has_one_id_and_each_router_a_span_below_the_one_before_v2():
    """The client's, the front's, the node's; what the node has loaded is linked by all who waited for it."""
    cards = (CardSpec(name="CUDA0", total_mib=24564),)
    machine = Machine(cards=cards, speeds=Speeds(load_mib_per_s=20_000, tokens_per_s=500))
    own = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}
    with collector() as collected:
        async with running_simulator(SimConfig(machine=machine, models=(MIDDLE,))) as sim:
            options = {**traced(collected), **own, "backends.local.url": sim.url}
            config = load_config(env={}, options=options)
            async with (
                running(config, probe=CardsProbe(sim.cards), is_probed=True) as node,
                in_front_of(node.url, traced(collected)) as front,
            ):
                asked = [ask(front.url, headers, MIDDLE) for headers in ([SAMPLED], [], [])]
                assert await asyncio.gather(*asked) == [200, 200, 200]
        spans = {span.span_id: span for span in collected.named("text_completion")}
        nodes = [span for span in spans.values() if span.parent_span_id in spans]
        fronts = [spans[span.parent_span_id] for span in nodes]
        assert len(nodes) == len({span.trace_id for span in fronts}) == 3
        assert [span.trace_id for span in nodes] == [span.trace_id for span in fronts]
        (known,) = [span for span in spans.values() if span.parent_span_id.hex() == PARENT]
        assert known.trace_id.hex() == TRACE
        loads = {(load.trace_id, load.span_id) for load in collected.named("load ")}
        linked = [{(link.trace_id, link.span_id) for link in span.links} for span in fronts]
        assert len(loads) == 2  # the front's, and within it the node's
        assert all(len(links) == 1 and links == linked[0] <= loads for links in linked)
        assert not any(b"[[tokens=" in body for body in collected.bodies)


async def test_no_prompt_and_no_key_is_in_a_span_v4(tmp_path):
    """Wherever a client has put its key, answered or refused."""
    key = make_key("coding", "canary" + "7" * 26)
    (tmp_path / "coding.yaml").write_text(
        f"team: coding\nkeys: [{{ id: k, sha256: {digest_of(key.encode()).hex()} }}]\n"
    )
    own = {"teams": f"{tmp_path}/*.yaml", "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}
    with collector() as collected:
        async with running_simulator(SimConfig(models=(SMALL,))) as sim:
            options = {**traced(collected), **own, "backends.local.url": sim.url}
            async with running(
                load_config(env={}, options=options), probe=CardsProbe(sim.cards), is_probed=True
            ) as one:
                for path, headers, model in (
                    ("/api/generate", [("Authorization", f"Bearer {key}")], SMALL),
                    (f"/t/{key}/api/generate", [], SMALL),
                    ("/api/generate", [("x-api-key", key), ("x-request-id", key)], SMALL),
                    ("/api/generate", [("Authorization", f"Bearer {key}"), ("tracestate", f"v={key}")], key),
                ):
                    body = hello(model, stream=False, prompt="[[tokens=1]] a secret plan", system="a secret plan")
                    await send(one.url, "POST", path, body, headers)
        assert len(collected.named("text_completion")) == 4
        assert {attributes_of(span)["ollama_router.team"] for span in collected.named("text_completion")} == {"coding"}
        for secret in (b"canary", b"secret plan", digest_of(key.encode()).hex().encode()):
            assert not any(secret in body for body in collected.bodies)
