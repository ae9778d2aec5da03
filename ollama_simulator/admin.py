"""The simulator's own routes under `/_sim/`: order faults, set foreign memory, read the state."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from ollama_simulator.gojson import dump, parse
from ollama_simulator.http.faults import FaultBook
from ollama_simulator.http.requests import Request
from ollama_simulator.http.response import Response
from ollama_simulator.machine.cards import Cards
from ollama_simulator.scheduler.engine import Engine
from router.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Controls:
    """The parts of one simulated server that the routes act on."""

    faults: FaultBook
    cards: Cards
    engine: Engine
    seen: Sized
    connections: Sized


async def answer(controls: Controls, request: Request, response: Response) -> None:
    """POST /_sim/faults [fault…], POST /_sim/foreign {"0": bytes}, GET /_sim/state."""
    response.set("Content-Type", "application/json")
    try:
        value = _act(controls, request.method, request.path, await request.read())
    except (BadRequest, ValueError, TypeError, IndexError) as error:
        response.status = 400
        value = {"error": str(error)}
    await response.write(dump(value) + b"\n")


def _act(controls: Controls, method: str, path: str, body: bytes) -> Any:
    if (method, path) == ("POST", "/_sim/faults"):
        controls.faults.load(parse(body) if body else [])
        return {"faults": len(controls.faults.ordered)}
    if (method, path) == ("POST", "/_sim/foreign"):
        for card, size in parse(body).items():
            controls.cards.set_foreign(int(card), int(size))
    return state(controls)


def state(controls: Controls) -> dict[str, Any]:
    """Cards, loaded models and the number of requests."""
    cards = [
        {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name, "total": gpu.total_bytes, "free": gpu.free_bytes}
        for gpu in controls.engine.gpus()
    ]
    loaded = [
        {"name": row.model.facts.name, "size": row.size_bytes, "size_vram": row.size_vram_bytes}
        for row in controls.engine.ps()
    ]
    return {"cards": cards, "loaded": loaded, "requests": len(controls.seen), "connections": len(controls.connections)}
