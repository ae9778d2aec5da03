"""What fronts ask of a node beside requests, on the clients' listener: its state once or as a stream, and its models.

The stream is an event stream (`text/event-stream`): a view as soon as something has changed, at most ten per second and
at least one. It ends when the router does.
"""

from __future__ import annotations

from router.api.exchange import Exchange
from router.api.fronts import Fronts
from router.core.nodes.view import NodeView
from router.http.headers import Header
from router.routing.nodes.models import NodeModels
from router.routing.nodes.state import NodeState

FRONT = b"/router/node"
BETWEEN_S, BEAT_S = 0.1, 1.0
"""Two views of a stream are at least and at most this far apart."""

_LEAST_S = 1e-6
JSON: Header = (b"content-type", b"application/json")
EVENTS: tuple[Header, ...] = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"))


class Node:
    """A node: its `state` and its `fronts`, and the answers to what these ask of it."""

    def __init__(self, state: NodeState, models: NodeModels, fronts: Fronts) -> None:
        self.state, self.fronts = state, fronts
        self.watch = models.watch
        self._models = models

    async def answer(self, exchange: Exchange) -> bool:
        """Answer a request for something of the node; return False if it is for something else.

        Raises UnknownFront without the key.
        """
        path = exchange.target
        if exchange.method != "GET" or path not in (FRONT, FRONT + b"/catalog", FRONT + b"/events"):
            return False
        self.fronts.check(exchange.cycle.head)
        if path == FRONT:
            await exchange.answer(200, [JSON], self.state.look().to_json())
        elif path.endswith(b"/catalog"):
            await exchange.answer(200, [JSON], self._models.json())
        else:
            await self._stream(exchange)
        return True

    async def _stream(self, exchange: Exchange) -> None:
        cycle, now = exchange.cycle, exchange.cycle.carrier.loop.time
        exchange.is_started, exchange.status = True, 200
        cycle.start(200, [*EVENTS, *exchange.extra])
        sent: NodeView | None = None
        sent_s = 0.0
        while not self.state.is_stopping:
            view = self.state.look()
            if sent is None or view.seq != sent.seq or now() >= sent_s + BEAT_S - _LEAST_S:
                sent, sent_s = view, now()
                await cycle.write(_event(view), more=True)
            await self.state.wait(BETWEEN_S)
        await cycle.write(_event(self.state.look()), more=False)


def _event(view: NodeView) -> bytes:
    return b"data: %b\n\n" % view.to_json()
