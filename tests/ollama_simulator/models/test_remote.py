"""Models that another server runs, in lists and in answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_simulator.models.remote import remote_url
from ollama_simulator.server import SimConfig, SimulatedOllama
from tests.contract.api_client import Client

HOST = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("ollama.com", "https://ollama.com:443"),
        ("nope", "http://nope:11434"),
        ("http://x:1/a/../b/", "http://x:1/b"),
        ("/a", "http://localhost:11434/a"),
    ],
)
def test_a_remote_host_is_written_out(text: str, url: str) -> None:
    """With scheme and port."""
    assert remote_url(text) == url


async def _ask(url: str, target: str, body: Any) -> tuple[int, Any]:
    raw = json.dumps(body)
    head = [["Host", "127.0.0.1"], ["Content-Length", str(len(raw))]]
    request = {"method": "POST" if body is not None else "GET", "target": target, "headers": head, "body": raw}
    reply = await Client(url).exchange({"request": request})
    assert reply is not None
    return reply.status, json.loads(b"".join(reply.chunks) or reply.body)


@pytest.mark.parametrize(
    ("remotes", "status", "text"),
    [
        (("ollama.com",), 400, "this server cannot run this remote model"),
        (("127.0.0.1",), 500, f'Post "{HOST}/api/generate": dial tcp 127.0.0.1:9: connect: connection refused'),
    ],
)
async def test_a_tag_of_another_server_s_model_says_so_and_is_not_run_here(
    remotes: tuple[str, ...], status: int, text: str
) -> None:
    """Tags and show name model and host; ps does not know it."""
    server = SimulatedOllama(SimConfig(cloud_disabled=False, remotes=remotes, models=()))
    await server.start()
    try:
        await _ask(server.url, "/api/create", {"model": "far", "from": "big:20b", "remote_host": HOST, "stream": False})
        (row,) = (await _ask(server.url, "/api/tags", None))[1]["models"]
        shown = (await _ask(server.url, "/api/show", {"model": "far"}))[1]
        answer = await _ask(server.url, "/api/generate", {"model": "far", "prompt": "hi"})
    finally:
        await server.stop()
    stated = {"remote_model": "big:20b", "remote_host": HOST}
    assert {key: row[key] for key in stated} == stated == {key: shown[key] for key in stated}
    assert row["details"]["format"] == "" and "capabilities" not in row
    assert answer == (status, {"error": text})
