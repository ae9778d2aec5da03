"""Replays against a real server: conversations that need no recorded models and change nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ollama_simulator.models.library import tiny_library
from tests.contract.api_client import Client, request_body
from tests.contract.api_replay import Outcome, _target, replay

LISTS = ("/api/tags", "/api/ps", "/v1/models", "/api/version", "/api/status")
CHANGES = re.compile(r"^/api/(delete|copy|create|pull|push|blobs|me|signout|user|experimental)")


def needs_models(transcript: dict[str, Any]) -> bool:
    """Whether the responses depend on the server's models or configuration, or a request changes something."""
    names = [model.name.model.lower() for model in tiny_library().models.values()]
    if transcript.get("client") or transcript.get("server_env") or transcript.get("loaded_before"):
        return True
    for step in transcript["steps"]:
        target = _target(step["request"])
        text = request_body(step["request"]).decode("utf-8", "replace").lower()
        raw = str(step["request"].get("raw", "")).lower()
        if step.get("client_hung_up") or target in LISTS or CHANGES.match(target) or "/api/version" in raw:
            return True
        if any(name in text or name in raw or name in target.lower() for name in names) or "cloud" in text:
            return True
    return not transcript["steps"]


async def against_server(url: str, items: Iterable[dict[str, Any]]) -> list[Outcome]:
    """Return the outcomes of all transcripts that can be replayed against this server."""
    await Client(url).exchange({"request": {"method": "GET", "target": "/", "headers": [["Host", "127.0.0.1"]]}})
    return [await replay(item, url) for item in items if not needs_models(item)]
