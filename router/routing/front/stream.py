"""What a node tells a front: its views, as a stream that is opened again whenever it ends, and its catalog."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import closing

from router.core.nodes.catalog import MOST_CATALOG_BYTES, NodeCatalog
from router.core.nodes.form import UnreadableForm
from router.core.nodes.stream import EventReader
from router.core.nodes.view import NodeView
from router.errors import RouterError, UpstreamError, UpstreamTimeout, UpstreamUnreached
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.front.node import Node

EVENTS, CATALOG = b"/router/node/events", b"/router/node/catalog"
OK, UNAUTHORIZED, NOT_FOUND = 200, 401, 404

AGAIN_S = 0.25
"""Pause before a stream is opened again; up to twice that, so that not all fronts come at once."""

BETWEEN_S = 0.05
"""Views are taken at most so often, and comments read: a node that keeps to the form sends ten a second."""

CATALOG_AGAIN_S = 1.0
INLINE_BYTES = 256 << 10
"""A larger catalog is decoded in a thread."""


async def follow(node: Node, viewed: Callable[[NodeView], None], leave_out: Callable[[str], None]) -> None:
    """Call `viewed` with each view of a node, for ever; `leave_out` with why it is out if the stream cannot be opened
    or read.

    A stream that breaks off is opened again first, and a node that is silent is given time. Only the newest of the
    views that have arrived counts, so nothing piles up.
    """
    while True:
        try:
            async for view in _views(node):
                viewed(view)
                await asyncio.sleep(BETWEEN_S)  # a node that says more than that takes no more of the loop
        except CannotOpen as error:
            leave_out(error.message)
        except UnreadableForm as error:
            leave_out(f"its view cannot be read: {error}")
        except RouterError:
            pass  # it broke off, or is silent
        await asyncio.sleep(AGAIN_S * (1 + random.random()))


class CannotOpen(UpstreamError):
    """The node refused the stream, or could not be reached."""


async def _views(node: Node) -> AsyncIterator[NodeView]:
    try:
        answer = await node.links.views.open(UpstreamRequest(b"GET", EVENTS))
    except UpstreamError as error:
        if isinstance(error, UpstreamTimeout) and not isinstance(error, UpstreamUnreached):
            raise  # it has taken the connection, and says nothing
        raise CannotOpen(error.message) from error
    with closing(answer):
        _check(answer)
        reader = EventReader()
        while chunk := await answer.read():
            if events := reader.feed(chunk):
                yield NodeView.from_json(events[-1])
            elif reader.has_ended:
                await asyncio.sleep(BETWEEN_S)


async def read_catalog(node: Node) -> NodeCatalog:
    """Return the models of a node. Raises RouterError, or UnreadableForm."""
    answer = await node.links.lists.open(UpstreamRequest(b"GET", CATALOG))
    parts, size = [], 0
    with closing(answer):
        _check(answer)
        while part := await answer.read():
            parts.append(part)
            size += len(part)
            if size > MOST_CATALOG_BYTES:
                raise UnreadableForm(f"more than {MOST_CATALOG_BYTES} bytes")
    data = b"".join(parts)
    return NodeCatalog.from_json(data) if size <= INLINE_BYTES else await asyncio.to_thread(NodeCatalog.from_json, data)


def _check(answer: UpstreamResponse) -> None:
    if answer.status == UNAUTHORIZED:
        raise CannotOpen("it does not accept the key of this front (401)")
    if answer.status == NOT_FOUND:
        raise CannotOpen("it is not a node (404)")
    if answer.status != OK:
        raise CannotOpen(f"it answered with status {answer.status}")
