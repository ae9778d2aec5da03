"""Every surface on which somebody else's bytes arrive, with bytes that nobody should send (J1, J2).

The router runs in a process of its own, with its real dispatcher. After each input nothing has failed, no request's end
was reported twice, and the loop was not held for more than 25 ms of processor time; at the end nothing is left behind.

A short run is part of the suite. `FUZZ_MINUTES=15 python -m pytest tests/fuzz -k bodies` runs one surface for longer.
What fails is kept in `tests/fuzz/corpus/`, whose inputs come first in each run.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router.core.ollama.routes import ROUTES
from tests.fuzz.guide import Guide
from tests.fuzz.inputs import Input, changed_bytes, changed_json, keep, kept
from tests.fuzz.lab import DEADLINE_S, GROWTH_BYTES, HOLDS, MODEL, Lab, Scripted, plain, simulated

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
FEW, MANY = 25, 300
HELD = Path(tempfile.gettempdir()) / "ollama-router-fuzz"

SHORT_BYTES = 300_000
"""Larger inputs that are kept are left out of a short run: the simulator takes long for them."""

FACTS_BYTES = 8 << 20
"""What is kept of models, each of which is another one here: else it would hide what is left behind."""

QUICKLY = {
    "backends.local.probe.kind": "none",
    "switch.settle_s": 0,
    "switch.poll_s": 0.01,
    "queue.wait_s": 2,
    "timeouts.facts_s": 1,
    "timeouts.header_s": 1,
    "snapshot.ps_interval_s": 0.02,
    "snapshot.probe_interval_s": 0.02,
    "snapshot.catalog_interval_s": 0.02,
}

USER, FUNCTION = {"role": "user", "content": "[[tokens=1]] x"}, {"name": "f", "parameters": {}}
BODIES = [
    {"model": MODEL, "prompt": "[[tokens=1]] x", "stream": False, "options": {"num_ctx": 2048}, "keep_alive": "5m"},
    {"model": MODEL, "messages": [USER], "stream": False, "think": False},
    {"model": MODEL, "messages": [USER | {"content": [{"type": "text", "text": "x"}]}], "max_tokens": 1},
    {"model": MODEL, "input": ["x", [1, 2]], "tools": [{"type": "function", "function": FUNCTION}]},
    {"model": "absent", "source": "a", "destination": "b", "from": "c", "files": {"a": "b"}, "system": "s"},
]
POSTED = [
    route
    for route in ROUTES
    if route.method in ("POST", "DELETE") and ":" not in route.pattern and route.right != "account"
]

CHAT = b'{"model":"x"}'
LOCAL = b" HTTP/1.1\r\nHost: x.local\r\n"
HEADS = [
    b"POST /api/chat" + LOCAL + b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n" + CHAT,
    b"GET /api/tags?x=y" + LOCAL + b"Accept: */*\r\nConnection: keep-alive, x\r\n\r\n",
    b"POST /api/show" + LOCAL + b"Transfer-Encoding: chunked\r\n\r\nd;x=y\r\n" + CHAT + b"\r\n0\r\nT: x\r\n\r\n",
    b"OPTIONS /api/chat" + LOCAL + b"Origin: http://localhost\r\nAccess-Control-Request-Method: POST\r\n\r\n",
    b"GET /v1/models/a%2fb HTTP/1.0\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nExpect: 100-continue\r\n\r\n",
    b"HEAD /api/blobs/sha256:00" + LOCAL + b"\r\nGET /readyz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
]

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n"
LINES = b'{"model":"m","done":false}\n', b'{"model":"m","done":true,"prompt_eval_count":1,"eval_count":2}\n'
EVENTS = (
    b'data: {"model":"m","choices":[]}\n\n',
    b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
)


def chunks(pieces: tuple[bytes, ...]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


ANSWERS = [
    plain(b'{"model":"m","message":{"content":"x"},"done":true,"eval_count":1}'),
    plain(b'{"error":"model \'m\' not found"}', 404),
    plain(LINES[0] + LINES[1], kind=b"application/x-ndjson"),
    CHUNKED % (b"application/x-ndjson", chunks(LINES)),
    CHUNKED % (b"text/event-stream", chunks(EVENTS)),
    b"HTTP/1.1 200 OK\r\nX-Router-Model: x\r\nSet-Cookie: a=b\r\nDate: x\r\n\r\n{}",
]
PAGE = b"""# HELP DCGM_FI_DEV_FB_FREE Framebuffer memory free (in MiB).
# TYPE DCGM_FI_DEV_FB_FREE gauge
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA A100",Hostname="n1"} 40000
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA A100",Hostname="n1"} 400
"""
DETAILS = {"family": "llama", "parameter_size": "1B"}
LOADED = {"name": "m:latest", "model": "m:latest", "size": 10, "size_vram": 10, "digest": "a" * 64, "details": DETAILS}
PS = {"models": [LOADED | {"context_length": 4096, "expires_at": "2030-01-01T00:00:00Z"}]}


def fuzz(surface: str, lab: Lab, inputs: st.SearchStrategy[bytes], attempt: Callable[[bytes], None]) -> None:
    """Try what is kept for `surface`, and then `inputs`: a few, or for `FUZZ_MINUTES`.

    In a long run half of the inputs are changes of those that had new consequences.
    """
    found = kept(surface)
    tried, guide, count = [b""], Guide(found), itertools.count()
    worst = dict.fromkeys(HOLDS, 0.0)

    def one(data: bytes) -> None:
        before, tried[0] = tried[0], data
        next(count)
        attempt(data)
        state = lab.check_lag(lambda: attempt(data), lambda how: note_held(surface, (before, data), how))
        worst.update({name: max(value, state[name]) for name, value in worst.items()})
        guide.note(data, state["said"], state["lag_s"])

    started_s = time.monotonic()
    for data in found:
        if MINUTES or len(data) <= SHORT_BYTES:
            one(data)
    lab.settle()
    try:
        while (spent := (time.monotonic() - started_s) / 60) <= MINUTES or not MINUTES:
            guided = st.one_of(inputs, changed_bytes(list(guide.seeds))) if MINUTES and guide.seeds else inputs
            batch(given(guided.map(Input))(one))()
            if spent < MINUTES / 2:  # what the first half has taken may have been the most that is needed at one time
                lab.settle()
            if not MINUTES:
                break
    except BaseException:
        keep(surface, tried[0])
        raise
    lab.check_growth(GROWTH_BYTES if MINUTES else 8 * GROWTH_BYTES)
    print(f"{surface}: {next(count)} inputs, {len(guide.seen)} different consequences, {len(guide.seeds)} seeds")
    print(", ".join(f"{name} ≤ {value * 1000:.1f} ms" for name, value in worst.items()))


def note_held(surface: str, inputs: tuple[bytes, ...], how: str) -> None:
    """Print and keep in `HELD` by which inputs, the last but one or the last, the loop was held, if by chance."""
    print(surface, how, *(Input(data) for data in inputs), sep="\n  ", flush=True)
    for data in inputs if MINUTES else ():
        keep(surface, data, HELD)


def batch(test: Callable[[], None]) -> Callable[[], None]:
    """Return `test` with the number of its inputs; always the same ones in the short run."""
    limited = settings(
        max_examples=MANY if MINUTES else FEW,
        deadline=None,
        database=None,
        derandomize=not MINUTES,
        phases=[Phase.generate],  # a failure is kept as it is: to shrink it takes longer than to read it
        suppress_health_check=list(HealthCheck),
    )
    return limited(test)


def no_fault(said: bytes) -> None:
    assert b"internal error" not in said
    assert b"Internal Server Error" not in said


@contextmanager
def lab_for(url: str, options: dict[str, object] | None = None) -> Iterator[Lab]:
    lab = Lab({**QUICKLY, "backends.local.url": url, **(options or {})})
    try:
        yield lab
    finally:
        lab.close()


@pytest.mark.slow
def test_bodies_of_requests_j1() -> None:
    """Of all routes, as JSON with odd values and as bytes; small ones, and some of a megabyte.

    In a long run the upstream only repeats what the simulator says of its model: that takes minutes for large bodies.
    """
    targets = [f"{route.method} {route.pattern}".encode() for route in POSTED]
    bodies = st.one_of(changed_json(BODIES), changed_bytes([json.dumps(body).encode() for body in BODIES]))
    with simulated() as sim, lab_for(repeating(sim.url).url if MINUTES else sim.url) as lab:

        def attempt(data: bytes) -> None:
            target, _, body = data.partition(b"\n")
            if target in targets:  # which may have been changed with the rest
                method, path = target.decode().split(" ")
                no_fault(lab.post(path, body, method)[1])

        fuzz("bodies", lab, st.tuples(st.sampled_from(targets), bodies).map(b"\n".join), attempt)


def repeating(url: str) -> Scripted:
    """Return an upstream that has the model of the simulator at `url` loaded, and ends each request at once."""

    def ask(path: str, body: dict[str, object] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(url + path, data, timeout=DEADLINE_S) as answer:
            return plain(answer.read())

    upstream = Scripted()
    upstream.answers |= {route.pattern: plain(b'{"done":true}') for route in POSTED}
    upstream.answers["/api/generate"] = ask("/api/generate", {"model": MODEL, "stream": False})  # which loads it
    upstream.answers |= {path: ask(path) for path in ("/api/version", "/api/tags", "/api/ps")}
    upstream.answers["/api/show"] = ask("/api/show", {"model": MODEL, "verbose": True})
    return upstream


@pytest.mark.slow
def test_heads_of_requests_j1() -> None:
    """Requests as bytes, on a connection of their own that is closed to one side after them."""
    with simulated() as sim, lab_for(sim.url) as lab:

        def attempt(data: bytes) -> None:
            said = lab.ask(data)
            no_fault(said)
            assert b"HTTP/1.1 500" not in said

        fuzz("heads", lab, changed_bytes(HEADS), attempt)


@pytest.mark.slow
@pytest.mark.parametrize("surface", ["show", "ps", "exporter"])
def test_answers_to_the_routers_own_requests_j2(surface: str) -> None:
    """What a model says of itself, what is loaded, and a page of metrics: the router stays, and so do its lists."""
    upstream = Scripted()
    with simulated() as sim, lab_for(sim.url) as real:
        _, shown = real.post("/api/show", json.dumps({"model": MODEL, "verbose": True}).encode())
    upstream.answers |= {"/api/version": plain(b'{"version":"0.33.0"}'), "/api/ps": plain(json.dumps(PS).encode())}
    upstream.answers |= {"/metrics": plain(PAGE, kind=b"text/plain"), "/api/show": plain(shown)}
    upstream.answers["/api/tags"] = tags(0)
    options: dict[str, object] = {"limits.facts_bytes": FACTS_BYTES}
    if surface == "exporter":
        options = {"backends.local.probe.kind": "prometheus", "backends.local.probe.url": f"{upstream.url}/metrics"}
    number = 0

    def attempt(data: bytes) -> None:
        nonlocal number
        number += 1
        path = "/metrics" if surface == "exporter" else f"/api/{surface}"
        upstream.answers[path] = data if data.startswith(b"HTTP/") else plain(data)
        if surface == "show":  # a model that nobody knows yet
            upstream.answers["/api/tags"] = tags(number)
            upstream.wait_until_asked("/api/tags", 2)
        else:
            upstream.wait_until_asked(path, 2)
        status, said = lab.post("/api/ps", b"", "GET")
        assert status in (200, 502)
        no_fault(said)
        body = json.dumps(
            {"model": f"m{number}", "messages": [{"role": "user", "content": "x"}], "stream": False}
        ).encode()
        if surface == "show":
            no_fault(lab.post("/api/chat", body)[1])

    with lab_for(upstream.url, options) as lab:
        seeds = {"show": shown, "ps": json.dumps(PS).encode(), "exporter": PAGE}[surface]
        raw = changed_bytes([seeds, plain(seeds)])
        fuzz(surface, lab, raw if surface == "exporter" else st.one_of(changed_json([json.loads(seeds)]), raw), attempt)
    upstream.close()


def tags(number: int) -> bytes:
    """Return an answer with one model, which is another one for each number."""
    row = {"digest": f"{number:064x}", "size": 10**9, "modified_at": "2026-01-01T00:00:00Z", "details": DETAILS}
    return plain(json.dumps({"models": [row | dict.fromkeys(("name", "model"), f"m{number}:latest")]}).encode())


@pytest.mark.slow
def test_answers_of_an_upstream_j2() -> None:
    """To requests that are passed on, whole and as streams: each gets one answer, whole or cut."""
    upstream = Scripted()
    upstream.answers |= {"/api/version": plain(b'{"version":"0.33.0"}'), "/api/ps": plain(b'{"models":[]}')}
    upstream.answers["/api/tags"] = plain(b'{"models":[]}')
    asked = ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/pull", "/api/show")
    body = json.dumps({"model": "absent", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).encode()

    def attempt(data: bytes) -> None:
        target, _, answer = data.partition(b"\n")
        if target in targets:
            upstream.answers[target.decode()] = answer
            no_fault(lab.post(target.decode(), body)[1])

    with lab_for(upstream.url) as lab:
        targets = [path.encode() for path in asked]
        fuzz("answers", lab, st.tuples(st.sampled_from(targets), changed_bytes(ANSWERS)).map(b"\n".join), attempt)
    upstream.close()
