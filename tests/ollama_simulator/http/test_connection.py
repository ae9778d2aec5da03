"""The HTTP server: framing, routes, Origin and Host. Each expectation was observed on a real server."""

from __future__ import annotations

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.http.routing import clean, find, is_allowed_host
from ollama_simulator.machine.spec import Machine
from ollama_simulator.models.library import Library
from ollama_simulator.server import SimConfig, running_simulator

HOST = "Host: 127.0.0.1\r\n"
RAW = [
    ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request: missing required Host header"),
    (f"GET / HTTP/1.1\r\n{HOST}Bad Header: x\r\n\r\n", "HTTP/1.1 400 Bad Request: invalid header name"),
    (f"GET / HTTP/1.1\r\n{HOST}NoColon\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
    ("G@T\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
    (f"GET / HTTP/2.0\r\n{HOST}\r\n", "HTTP/1.1 505 HTTP Version Not Supported: unsupported protocol version"),
    (f"POST /api/show HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip\r\n\r\n", "HTTP/1.1 501 Not Implemented"),
    (f"POST /api/show HTTP/1.1\r\n{HOST}Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    (f"GET /api//tags HTTP/1.1\r\n{HOST}\r\n", "HTTP/1.1 307 Temporary Redirect"),
    (f"GET /api/tags/ HTTP/1.1\r\n{HOST}\r\n", "HTTP/1.1 301 Moved Permanently"),
    (f"GET /api%2ftags HTTP/1.1\r\n{HOST}\r\n", "HTTP/1.1 200 OK"),
    ("GET /api/version HTTP/1.1\r\nHost: evil.example\r\n\r\n", "HTTP/1.1 403 Forbidden"),
    (f"GET /nope HTTP/1.1\r\n{HOST}Origin: http://evil.example\r\n\r\n", "HTTP/1.1 403 Forbidden"),
    (f"OPTIONS * HTTP/1.1\r\n{HOST}\r\n", "HTTP/1.1 200 OK"),
    (f"POST /api/tags HTTP/1.1\r\n{HOST}\r\n", "HTTP/1.1 405 Method Not Allowed\r\nAllow: HEAD, GET"),
    (f"GET / HTTP/1.1\r\n{HOST}X: {'a' * 1_100_000}\r\n\r\n", "HTTP/1.1 431 Request Header Fields Too Large"),
    ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"),
    (
        f"POST /api/show HTTP/1.1\r\n{HOST}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{{}}",
        "HTTP/1.1 100 Continue",
    ),
]


@pytest.mark.parametrize(("raw", "start"), RAW, ids=range(len(RAW)))
def test_a_request_gets_the_response_of_net_http_and_gin(raw: str, start: str) -> None:
    """The response starts with these bytes."""

    async def story() -> bytes:
        async with running_simulator(SimConfig(machine=Machine(cards=()), library=Library())) as sim:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rsplit(":", 1)[1]))
            writer.write(raw.encode())
            data = await reader.read(4096)
            writer.transport.abort()
            return data

    assert run_virtual(story()).decode().startswith(start)


def test_requests_in_one_write_are_answered_in_order() -> None:
    """Pipelining."""

    async def story() -> bytes:
        async with running_simulator(SimConfig(machine=Machine(cards=()), library=Library())) as sim:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rsplit(":", 1)[1]))
            last = f"GET /api/version HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
            writer.write(f"GET / HTTP/1.1\r\n{HOST}\r\n{last}".encode())
            data = await reader.read()
            writer.close()
            return data

    data = run_virtual(story())
    assert data.index(b"Ollama is running") < data.index(b'{"version"')


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [("//", "/"), ("/api/x/../tags", "/api/tags"), ("/api/tags/.", "/api/tags"), ("/a//", "/a/"), ("", "/")],
)
def test_paths_are_cleaned_as_the_mux_does(path: str, cleaned: str) -> None:
    """A trailing slash stays."""
    assert clean(path) == cleaned


def test_a_path_parameter_takes_one_segment() -> None:
    """`/v1/models/a/b` is not a route."""
    assert find("GET", "/v1/models/a").parameter == "a"
    assert find("GET", "/v1/models/a/b").status == 404


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("localhost:1", True), ("a.local", True), ("10.1.2.3", True), ("8.8.8.8", False), ("[::1]", False), ("::1", True)],
)
def test_hosts_are_guarded_as_on_a_loopback_listener(host: str, allowed: bool) -> None:
    """Private addresses and local names pass; a bracketed address without a port does not, as in Go."""
    assert is_allowed_host(host, "box") is allowed
