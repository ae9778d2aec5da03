"""The simulated server over HTTP: loads, speeds, records of requests, injected faults."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.models.library import tiny_library
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.core.units import MIB

CARD = Machine(cards=(CardSpec(total_mib=24564),), speeds=Speeds(tokens_per_s=100, cpu_tokens_per_s=5))
SMALL = SimConfig(machine=CARD, models=("llama3.2:1b", "llama3.2:3b", "llama3.3:70b-instruct-q4_K_M"))


async def ask(
    sim: SimulatedOllama, path: str, body: Any = None, *, method: str = "POST", until: int = -1
) -> tuple[int, bytes]:
    """Send a request; return the status and all bytes received. With `until`, the client leaves after these bytes."""
    host, port = sim.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 26)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    try:
        raw = await (reader.read() if until < 0 else reader.readexactly(until))
    finally:
        writer.transport.abort()
    status = raw.split(b" ", 2)[1] if raw.count(b" ") > 1 else b"0"
    return int(status) if status.isdigit() else 0, raw.partition(b"\r\n\r\n")[2]


def chat(model: str, text: str = "hi", **more: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def test_a_model_that_spills_answers_slowly_and_reports_it() -> None:
    """The 70B on 24 GB has size above size_vram, and the eval_duration of a CPU."""

    async def story() -> tuple[dict[str, Any], list[Any]]:
        async with running_simulator(SMALL) as sim:
            body = chat("llama3.3:70b-instruct-q4_K_M", "[[tokens=20]]", stream=False, options={"num_ctx": 4096})
            _, raw = await ask(sim, "/api/chat", body)
            return json.loads(raw), sim.engine.ps()

    answer, rows = run_virtual(story())
    assert answer["eval_count"] == 21
    assert answer["eval_count"] / (answer["eval_duration"] / 1e9) < 15
    assert rows[0].size_vram_bytes < rows[0].size_bytes


def test_a_model_that_fits_answers_at_the_speed_of_the_card() -> None:
    """The 3B on 24 GB generates 100 tokens per second."""

    async def story() -> dict[str, Any]:
        async with running_simulator(SMALL) as sim:
            _, raw = await ask(sim, "/api/chat", chat("llama3.2:3b", "[[tokens=50]]", stream=False))
            found: dict[str, Any] = json.loads(raw)
            return found

    answer = run_virtual(story())
    assert answer["eval_count"] / (answer["eval_duration"] / 1e9) == pytest.approx(100, rel=0.1)


def test_foreign_memory_shows_in_the_probe() -> None:
    """Memory of other programs is not free in the probe's reading."""

    async def story() -> tuple[int, int]:
        async with running_simulator(SMALL) as sim:
            before = (await sim.probe().read()).gpus[0].free_bytes
            await ask(sim, "/_sim/foreign", {"0": 10_000 * MIB})
            return before, (await sim.probe().read()).gpus[0].free_bytes

    before, after = run_virtual(story())
    assert before - after == 10_000 * MIB


def test_requests_are_recorded_with_the_end_of_their_connection() -> None:
    """`seen` has each request, and the time when its client left."""

    async def story() -> SimulatedOllama:
        async with running_simulator(SMALL) as sim:
            await ask(sim, "/api/generate", {"model": "llama3.2:1b", "prompt": "[[tokens=500]]"}, until=300)
            await asyncio.sleep(1)
            return sim

    seen = run_virtual(story()).seen
    assert [(one.method, one.path, one.header("host")) for one in seen] == [("POST", "/api/generate", "127.0.0.1")]
    assert seen[0].cancelled_at_s is not None
    assert seen[0].closed_at_s is not None
    assert not seen[0].is_finished
    assert json.loads(seen[0].body)["model"] == "llama3.2:1b"


def test_a_client_that_leaves_frees_the_slot_for_the_next() -> None:
    """The generation ends at once when its client hangs up."""

    async def story() -> float:
        async with running_simulator(SMALL) as sim:
            await ask(sim, "/api/generate", {"model": "llama3.2:1b", "prompt": "[[tokens=5000]]"}, until=300)
            before = asyncio.get_running_loop().time()
            await ask(sim, "/api/generate", {"model": "llama3.2:1b", "prompt": "[[tokens=2]]", "stream": False})
            return asyncio.get_running_loop().time() - before

    assert run_virtual(story()) < 1


FAULTS = [
    ("status", {"status": 503, "body": '{"error":"no"}'}, 503, b'{"error":"no"}'),
    ("answer", {"status": 200, "chunks": ['{"a":1}\n', '{"b":2}\n']}, 200, b'8\r\n{"a":1}'),
    ("redirect", {}, 307, b""),
    ("gzip", {"body": "garbage"}, 200, b"garbage"),
    ("short_length", {"body": "abc"}, 200, b"abc"),
    ("raw", {"body": "HTTP/1.1 299 odd\r\n\r\nx"}, 299, b"x"),
    ("bad_status_line", {}, 0, b""),
    ("reset", {"after_chunks": 0}, 0, b""),
]


@pytest.mark.parametrize(("kind", "details", "status", "start"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_an_ordered_fault_comes_once_instead_of_the_answer(
    kind: str, details: dict[str, Any], status: int, start: bytes
) -> None:
    """The next request on that route gets the fault; the one after it is served."""

    async def story() -> tuple[int, bytes, int]:
        async with running_simulator(SMALL) as sim:
            sim.faults.add(kind, route="/api/show", **details)
            try:
                found = await ask(sim, "/api/show", {"model": "llama3.2:1b"})
            except ConnectionError:
                found = (0, b"")
            after, _ = await ask(sim, "/api/show", {"model": "llama3.2:1b"})
            return *found, after

    found_status, body, after = run_virtual(story())
    assert (found_status, after) == (status, 200)
    assert body.startswith(start)


def lines_of(body: bytes) -> list[bytes]:
    """Return the complete JSON lines in a chunked body."""
    return [line for line in body.split(b"\r\n") if line.startswith(b"{") and line.endswith(b"}\n")]


@pytest.mark.parametrize("kind", ["cut", "eof", "reset"])
def test_a_stream_breaks_after_the_ordered_number_of_chunks(kind: str) -> None:
    """Two complete lines arrive, but not the one with `done`."""

    async def story() -> bytes:
        async with running_simulator(SMALL) as sim:
            sim.faults.add(kind, model="llama3.2:1b", after_chunks=2)
            try:
                return (await ask(sim, "/api/chat", chat("llama3.2:1b")))[1]
            except ConnectionError:
                return b""

    body = run_virtual(story())
    assert b'"done":true' not in body
    assert len(lines_of(body)) == (2 if kind != "reset" else len(lines_of(body)))
    assert body.endswith(b"0\r\n\r\n") is (kind == "eof")


def test_a_crash_and_an_oom_end_the_stream_as_in_ollama() -> None:
    """The status stays 200; the last line is Ollama's error."""

    async def story() -> list[bytes]:
        bodies = []
        async with running_simulator(SMALL) as sim:
            for kind in ("crash", "oom"):
                sim.faults.add(kind, after_chunks=2)
                bodies.append((await ask(sim, "/api/chat", chat("llama3.2:1b")))[1])
        return bodies

    crash, oom = run_virtual(story())
    assert b"an error was encountered while running the model" in lines_of(crash)[-1]
    assert b"out of memory" in lines_of(oom)[-1]


def test_a_huge_line_and_a_split_header_can_be_ordered() -> None:
    """These faults test the limits of a client's parser."""

    async def story() -> tuple[bytes, bytes]:
        async with running_simulator(SMALL) as sim:
            sim.faults.add("huge_line", after_chunks=1, size=100_000)
            _, huge = await ask(sim, "/api/chat", chat("llama3.2:1b"))
            sim.faults.add("bad_header", route="/api/version")
            _, broken = await ask(sim, "/api/version", method="GET")
            return huge, broken

    huge, broken = run_virtual(story())
    assert max(len(line) for line in lines_of(huge)) > 100_000
    assert broken.endswith(b"}")


def test_faults_can_be_ordered_over_http() -> None:
    """`POST /_sim/faults` replaces the list; an unknown kind is refused."""

    async def story() -> tuple[int, int, int]:
        async with running_simulator(SMALL) as sim:
            first, _ = await ask(sim, "/_sim/faults", [{"kind": "status", "status": 500, "times": -1}])
            failing, _ = await ask(sim, "/api/tags", method="GET")
            refused, _ = await ask(sim, "/_sim/faults", [{"kind": "nonsense"}])
            return first, failing, refused

    assert run_virtual(story()) == (200, 500, 400)


def test_a_derived_tag_shares_the_runner_of_its_weights() -> None:
    """`/api/create` from a model writes only a manifest: the loaded runner serves the tag."""

    async def story() -> tuple[int, list[str], dict[str, Any]]:
        async with running_simulator(SMALL) as sim:
            options = {"num_ctx": 8192, "num_batch": 512}
            await ask(sim, "/api/generate", {"model": "llama3.2:1b", "options": options})
            await ask(sim, "/api/create", {"model": "d/x:y", "from": "llama3.2:1b", "parameters": options})
            await ask(sim, "/v1/chat/completions", chat("d/x:y", max_tokens=2))
            _, raw = await ask(sim, "/api/show", {"model": "d/x:y"})
            shown = json.loads(raw.split(b"\r\n")[1] if raw[:1] != b"{" else raw)
            return len(sim.engine.ps()), [row.model.facts.name for row in sim.engine.ps()], shown

    count, names, shown = run_virtual(story())
    assert (count, names) == (1, ["llama3.2:1b"])
    assert shown["details"]["parent_model"] == "llama3.2:1b"
    assert "num_ctx                        8192" in shown["parameters"]


def test_a_scripted_model_calls_its_tool() -> None:
    """The tiny model with tools calls the weather tool for Paris, in every dialect."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}

    async def story() -> tuple[dict[str, Any], dict[str, Any]]:
        config = SimConfig(library=tiny_library(), machine=Machine(cards=()))
        async with running_simulator(config) as sim:
            _, native = await ask(sim, "/api/chat", chat("tiny-tools", tools=[tool], stream=False))
            _, openai = await ask(sim, "/v1/chat/completions", chat("tiny-tools", tools=[tool]))
            return json.loads(native), json.loads(openai)

    native, openai = run_virtual(story())
    assert native["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert openai["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_follows_a_schema() -> None:
    """`format` gives JSON with the schema's keys."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}

    async def story() -> dict[str, Any]:
        async with running_simulator(SMALL) as sim:
            _, raw = await ask(sim, "/api/chat", chat("llama3.2:3b", stream=False, format=schema))
            found: dict[str, Any] = json.loads(json.loads(raw)["message"]["content"])
            return found

    answer = run_virtual(story())
    assert (set(answer), type(answer["age"])) == ({"name", "age"}, int)


def test_the_same_seed_gives_the_same_answers() -> None:
    """The seed determines all randomness."""

    async def story() -> bytes:
        async with running_simulator(SMALL) as sim:
            return (await ask(sim, "/v1/chat/completions", chat("llama3.2:3b", stream=True)))[1]

    def without_times(raw: bytes) -> list[bytes]:
        return [line.partition(b'"model"')[2] for line in raw.splitlines()]

    assert without_times(run_virtual(story())) == without_times(run_virtual(story()))


def test_a_client_that_leaves_after_a_large_body_is_noticed() -> None:
    """The server keeps reading after the body, of any size."""

    async def story() -> float | None:
        async with running_simulator(SMALL) as sim:
            body = {"model": "llama3.2:1b", "prompt": "[[tokens=5000]]", "unknown": "x" * 3_000_000}
            await ask(sim, "/api/generate", body, until=300)
            await asyncio.sleep(1)
            return sim.seen[-1].cancelled_at_s

    assert run_virtual(story()) is not None


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {"model": "llama3.2:1b", "prompt": "hi"}, 404, "model 'llama3.2:1b' not found"),
        ("/api/embed", {"model": "llama3.2:1b", "input": "hi"}, 404, "model 'llama3.2:1b' not found"),
        ("/api/chat", chat("llama3.2:1b"), 400, "model is required"),
        ("/v1/chat/completions", chat("llama3.2:1b"), 400, "model is required"),
        (
            "/api/show",
            {"model": "llama3.2:1b"},
            400,
            "stat /models/manifests/registry.ollama.ai/library/llama3.2/3b: no",
        ),
        ("/api/tags", None, 500, "stat /models/manifests/registry.ollama.ai/library/llama3.2/3b: no such file"),
    ],
)
def test_a_listing_of_manifests_fails_if_one_vanishes_meanwhile(path: str, body: Any, status: int, text: str) -> None:
    """Whatever model was asked for; with the status and text that Ollama has on each route. The next one is good."""

    async def story() -> None:
        async with running_simulator(SMALL) as sim:
            sim.faults.add("vanish", route=path, times=-1, delay_s=0.02)
            method = "GET" if body is None else "POST"
            asking = asyncio.create_task(ask(sim, path, body, method=method))
            await asyncio.sleep(0.01)
            await ask(sim, "/api/delete", {"model": "llama3.2:3b"}, method="DELETE")
            found, answer = await asking
            assert (found, text in answer.decode()) == (status, True)
            assert (await ask(sim, path, body, method=method))[0] != status

    run_virtual(story())
