"""The nodes of a front: found, watched, and left out when nothing is heard of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial

from router.adapters.discovery.found import Discovery, Nodes
from router.core.nodes.catalog import NodeCatalog
from router.core.nodes.form import UnreadableForm
from router.core.nodes.index import Index
from router.core.nodes.state import OUT_S, Interned, Models, NodeState
from router.core.nodes.view import NodeView
from router.errors import NoNodeAnswers, RouterError, UpstreamAway
from router.routing.front.node import READING, Links, Node
from router.routing.front.stream import CATALOG_AGAIN_S, follow, read_catalog
from router.telemetry import Notified, Supervisor, Telemetry, UpstreamDown, UpstreamGone, UpstreamUp

SWEEP_S = 0.5
"""How often views are looked at for their age."""

START_S = 2.0
"""How long requests wait for a node at a start, and for catalogs that are being read."""

INLINE_MODELS = 256
"""More models than that take longer to look through than the loop should be held."""

RETRY_S = 2.0
"""When a client may try again after no node could be reached: a stream is opened again within the second."""


class Members:
    """All nodes. `connect` returns the connections to a URL, `index` is kept up to date with what they say."""

    def __init__(self, discovery: Discovery, connect: Callable[[str], Links], telemetry: Telemetry) -> None:
        self.index = Index()
        self.upkeep = Supervisor(telemetry)
        self._discovery = discovery
        self._connect = connect
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time
        self._began_s = self._now()
        self._nodes: dict[str, Node] = {}
        self._named: dict[str, Node] = {}
        self._told: set[str] = set()  # names of which operators were told
        self._work: dict[str, Supervisor] = {}
        self._changed = asyncio.Event()
        self._interned = Interned()
        self._leaving: set[asyncio.Task[None]] = set()
        self._expected_s = -math.inf
        self._making = asyncio.Lock()
        self._is_stopping = False

    # --- its life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to find nodes, and to listen to them."""
        self.upkeep.keep("discovery", lambda: self._discovery.watch(self.take))
        self.upkeep.keep("node_ages", self._watch_ages)

    async def stop(self) -> None:
        """Stop listening, and close what is not in use. Idempotent."""
        await self.upkeep.stop()
        self._is_stopping = True
        self.take({})
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def take(self, found: Nodes) -> None:
        """Take what was found in place of what was found before."""
        for key in [key for key, node in self._nodes.items() if found.get(key) != node.url]:
            self._remove(key)
        for key, url in found.items():
            if key not in self._nodes:
                self._add(Node(key, url, self._connect(url)))

    def _add(self, node: Node) -> None:
        self._nodes[node.key] = node
        work = self._work[node.key] = Supervisor(self._telemetry)
        fresh = asyncio.Event()

        def viewed(view: NodeView) -> None:
            self._viewed(node, view)
            if node.lacks_models:
                fresh.set()

        out = partial(self.leave_out, node)
        work.keep("views_of_nodes", lambda: follow(node, viewed, out), about=node.address)
        work.keep("models_of_nodes", lambda: self._read_catalogs(node, fresh), about=node.address)

    def _remove(self, key: str) -> None:
        node = self._nodes.pop(key)
        self._forget_name(node)
        node.leave_out("it is no member any more")
        task = asyncio.get_running_loop().create_task(self._leave(node, self._work.pop(key)))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _leave(node: Node, work: Supervisor) -> None:
        await work.stop()
        await node.links.aclose()

    # --- what they say -----------------------------------------------------------------------------------------

    def _viewed(self, node: Node, view: NodeView) -> None:
        if self._nodes.get(node.key) is not node or not node.is_newer(view):
            return
        if (same := self._same(node, view)) is not None:  # as where a name has addresses of IPv4 and of IPv6
            self._forget_name(node)
            node.leave_out(f"it is the same node as {same.url}")
            return
        before, name = node.silence, self._name_for(node, view)
        if name != node.name:
            self._forget_name(node)
            before = READING
        self._named[name] = node
        node.take_view(view, self._now(), name)
        self._put(node)
        self._tell(node, before)

    def _forget_name(self, node: Node) -> None:
        """Forget the name that a node had, unless another one has it now."""
        if self._named.get(node.name, node) is not node:
            return
        self.index.remove(node.name)
        self._named.pop(node.name, None)
        if node.name in self._told:
            self._told.discard(node.name)
            self._emit(UpstreamGone(node.name))

    def _tell(self, node: Node, before: str) -> None:
        """Tell operators of a node that answers now and did not before, or the other way round."""
        if bool(node.silence) != bool(before) or (node.silence and before == READING):
            self._told.add(node.name)
            down = UpstreamDown(node.silence, backend=node.name)
            self._emit(down if node.silence else UpstreamUp(node.ollama, backend=node.name))

    def _emit(self, event: UpstreamDown | UpstreamGone | UpstreamUp) -> None:
        if not self._is_stopping:
            self._telemetry.emit(event)

    def _same(self, node: Node, view: NodeView) -> Node | None:
        """Return what is in use and is the same process at another address; it is one node only."""
        other = self._named.get(view.name)
        if other is None or other is node or other.why_out or other.view is None:
            return None
        return other if other.view.boot_id == view.boot_id else None

    def _name_for(self, node: Node, view: NodeView) -> str:
        """Return the name by which clients see a node: its own, unless another one that is in use has that."""
        other = self._named.get(view.name)
        is_free = other is None or other is node or other.why_out
        return view.name if is_free else f"{view.name}@{node.address}"

    def expect_models(self) -> None:
        """Note that models were managed: a node will soon tell that it has others."""
        self._expected_s = self._now() + START_S

    def _put(self, node: Node) -> None:
        if node.view is not None and not node.why_out:
            self.index.put(NodeState.of(node.name, node.view, node.models, node.seen_s))
            self._changed.set()

    def leave_out(self, node: Node, why: str) -> None:
        """Let no request go to a node until it says something again: it cannot be reached, or heard."""
        before = node.silence
        if not node.why_out and self._named.get(node.name) is node:
            self.index.remove(node.name)
        node.leave_out(why)
        self._tell(node, before)

    async def _read_catalogs(self, node: Node, fresh: asyncio.Event) -> None:
        """Read the catalog of a node whenever its views say that it is another one."""
        while True:
            await fresh.wait()
            fresh.clear()
            try:
                node.take_models(await self._models_of(await read_catalog(node)))
                self._expected_s = -math.inf
                self._put(node)
            except (RouterError, UnreadableForm) as error:
                self._telemetry.emit(Notified(f"the models of node {node.name} cannot be read: {error}", level="debug"))
            if node.lacks_models:  # also if it tells of another one in each view
                await asyncio.sleep(CATALOG_AGAIN_S)
                fresh.set()

    async def _models_of(self, catalog: NodeCatalog) -> Models:
        """Return the models of a catalog; those of a long one are made in a thread, one catalog at a time."""
        if len(catalog.models) <= INLINE_MODELS:
            return Models(catalog, self._interned)
        async with self._making:
            return await asyncio.to_thread(Models, catalog, self._interned)

    async def _watch_ages(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            before_s = self._now() - OUT_S
            for node in self._nodes.values():
                if not node.why_out and node.seen_s < before_s:
                    self.leave_out(node, f"not heard of for {OUT_S:g} s")

    # --- questions ---------------------------------------------------------------------------------------------

    def named(self, name: str) -> Node | None:
        """Return the node that clients see under a name."""
        return self._named.get(name)

    def all(self) -> Sequence[Node]:
        """Return all nodes that were found."""
        return tuple(self._nodes.values())

    def usable(self) -> list[Node]:
        """Return the nodes that requests may go to."""
        return [self._named[state.name] for state in self.index if state.is_usable]

    @property
    def is_starting(self) -> bool:
        """True shortly after the start, while nodes have not been heard of yet."""
        return self._now() < self._began_s + START_S and (not self._nodes or any(map(_is_unread, self._nodes.values())))

    async def settled(self) -> None:
        """Wait shortly after the start until something is known of all nodes."""
        while self.is_starting:
            await self._next_change(self._began_s + START_S)

    async def reach(self) -> None:
        """Wait for a node that can be used. Raises NoNodeAnswers if there is none for a while."""
        until_s = self._now() + START_S
        while not any(state.is_usable and len(state.models) for state in self.index):
            if self._now() >= until_s:
                if any(state.is_usable for state in self.index):
                    return
                raise self.nobody()
            await self._next_change(until_s)

    async def refreshed(self) -> None:
        """Wait for catalogs that are being read, or are to be read since models were managed."""
        until_s = self._now() + START_S
        while self._now() < until_s and (
            self._now() < self._expected_s or any(node.lacks_models for node in self.usable())
        ):
            await self._next_change(until_s)

    def why_out(self, node: Node) -> str:
        """Return why no request goes to a node, "" if nothing speaks against it."""
        return node.why_out or _own_words(node)

    async def _next_change(self, until_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(until_s, self._now() + SWEEP_S)):
                await self._changed.wait()

    def check_not_away(self, keys: Collection[str]) -> None:
        """Raise UpstreamAway if of these models no node has any that can be used, but one that cannot."""
        having = [node for node in self._nodes.values() if any(map(node.models.get, keys))]
        if having and all(map(self.why_out, having)):
            raise UpstreamAway(why_each(having), retry_after_s=RETRY_S)

    def nobody(self) -> NoNodeAnswers:
        """Return the error that says why no node can be used."""
        return NoNodeAnswers(why_none(self._nodes.values()), retry_after_s=RETRY_S)


def _is_unread(node: Node) -> bool:
    if node.why_out:
        return node.why_out == READING
    is_unknown = node.view is not None and not node.view.catalog_digest  # the node itself does not know its models yet
    return is_unknown or (not len(node.models) and node.lacks_models)


def why_none(nodes: Iterable[Node], most: int = 8) -> str:
    """Return in words why none of these nodes can be used."""
    rows = list(nodes)
    if not rows:
        return "no node was found"
    return f"no node can be used: {why_each(rows, most)}"


def why_each(nodes: Sequence[Node], most: int = 8) -> str:
    """Return in words why each of these nodes cannot be used."""
    said = "; ".join(f"{node.name}: {node.why_out or _own_words(node)}" for node in nodes[:most])
    return said + (f"; and {len(nodes) - most} more" if len(nodes) > most else "")


def _own_words(node: Node) -> str:
    return NodeState.of(node.name, node.view).why_out if node.view is not None else ""
