"""Lists of an older Ollama."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_simulator.server import SimConfig, SimulatedOllama
from router.core.ollama.options import ServerSettings
from tests.contract.api_client import Client


async def _asked(url: str, target: str, body: Any = None) -> Any:
    raw = json.dumps(body)
    head = [["Host", "127.0.0.1"], ["Content-Length", str(len(raw))]]
    request = {"method": "GET" if body is None else "POST", "target": target, "headers": head, "body": raw}
    reply = await Client(url).exchange({"request": request})
    assert reply is not None
    return json.loads(b"".join(reply.chunks) or reply.body)


@pytest.mark.parametrize(
    ("version", "in_ps", "in_show"),
    [
        ("0.33.0", {"context_length"}, {"capabilities", "tensors"}),
        ("0.0.0", {"context_length"}, {"capabilities", "tensors"}),
        ("0.9.6", set(), {"capabilities", "tensors"}),
        ("0.6.3", set(), {"tensors"}),
        ("0.6.1", set(), set()),
    ],
)
async def test_an_older_ollama_lacks_fields_that_came_later(version: str, in_ps: set[str], in_show: set[str]) -> None:
    """ps without the context, show without capabilities and tensors."""
    server = SimulatedOllama(SimConfig(models=("llama3.2:1b",), settings=ServerSettings(version=version)))
    await server.start()
    try:
        await _asked(server.url, "/api/generate", {"model": "llama3.2:1b"})
        (row,) = (await _asked(server.url, "/api/ps"))["models"]
        shown = await _asked(server.url, "/api/show", {"model": "llama3.2:1b"})
    finally:
        await server.stop()
    assert row.keys() & {"context_length"} == in_ps
    assert shown.keys() & {"capabilities", "tensors"} == in_show
