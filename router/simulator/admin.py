"""The simulator's own routes under `/_sim/`: order faults, set foreign memory, look at what came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.simulator.gojson import GoError, dump, parse, plain
from router.simulator.requests import Request
from router.simulator.response import Response

if TYPE_CHECKING:
    from router.simulator.server import SimulatedOllama


async def answer(server: SimulatedOllama, request: Request, response: Response) -> None:
    """POST /_sim/faults [fault…], POST /_sim/foreign {"0": bytes}, GET /_sim/state."""
    response.set("Content-Type", "application/json")
    try:
        value = _act(server, request.method, request.path, await request.read())
    except (GoError, ValueError, TypeError, IndexError) as error:
        response.status = 400
        value = {"error": str(error)}
    await response.write(dump(value) + b"\n")


def _act(server: SimulatedOllama, method: str, path: str, body: bytes) -> Any:
    if (method, path) == ("POST", "/_sim/faults"):
        server.faults.load(plain(parse(body)) if body else [])
        return {"faults": len(server.faults.ordered)}
    if (method, path) == ("POST", "/_sim/foreign"):
        for card, size in plain(parse(body)).items():
            server.cards.set_foreign(int(card), int(size))
    return state(server)


def state(server: SimulatedOllama) -> dict[str, Any]:
    """Cards, loaded models and the number of requests."""
    cards = [
        {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name, "total": gpu.total_bytes, "free": gpu.free_bytes}
        for gpu in server.engine.gpus()
    ]
    loaded = [
        {"name": row.model.facts.name, "size": row.size_bytes, "size_vram": row.size_vram_bytes}
        for row in server.engine.ps()
    ]
    return {"cards": cards, "loaded": loaded, "requests": len(server.seen), "connections": len(server.connections)}
