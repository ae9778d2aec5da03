"""The state of this node as its fronts see it. `look` reads what is known and does no I/O."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import msgspec

from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.verdict import Verdict
from router.core.nodes.declined import NodeDeclined, NodeVerdict
from router.core.nodes.view import (
    MOST_BARRED,
    MOST_GPUS,
    MOST_RESIDENTS,
    MemoryMode,
    NodeGpu,
    NodeLoading,
    NodeResident,
    NodeView,
)
from router.core.ollama.runner import Gpu
from router.routing.fleet.place import Place

MOST_ERROR = 8 << 10
"""Characters of the text with which a call is declined."""

MOST_S = 1e9
_Digests = Callable[[], tuple[str, str]]


class NodeState:
    """The state of the node `name`, which owns the Ollama of `place`. Each start has a `boot_id` of its own.

    `digests` returns those of the catalog: of its models, and of what was learned about them.
    """

    def __init__(self, name: str, boot_id: str, version: str, place: Place, digests: _Digests) -> None:
        self.name = name
        self.boot_id = boot_id
        self.is_draining = self.is_stopping = False
        self._version = version
        self._place = place
        self._digests = digests
        self._now = place.backend.now
        self._last: NodeView | None = None
        self._looked_at_s = -math.inf
        self._changed = asyncio.Event()

    def look(self) -> NodeView:
        """Return the state now. Its `seq` is that of the view before if nothing differs that a front decides by."""
        now_s = self._now()
        if self._last is not None and self._looked_at_s == now_s:
            return self._last
        view, last = self._view(now_s), self._last
        if last is not None:
            view = msgspec.structs.replace(view, seq=last.seq + (not last.is_same_state(view)))
        self._last, self._looked_at_s = view, now_s
        return view

    def drain(self, *, is_draining: bool) -> None:
        """Tell the fronts that no more calls are taken, or that they are again."""
        self.is_draining = is_draining
        self._tell()

    def stop(self, *, has_successor: bool = False) -> None:
        """Tell the fronts that this is the end; or with a successor at the same address, that they come to that."""
        self.is_stopping = True
        self.is_draining = self.is_draining or not has_successor
        self._tell()

    def _tell(self) -> None:
        self._looked_at_s = -math.inf
        self._changed.set()
        self._changed.clear()  # all that wait now go on

    async def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as there is something that the fronts must know at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def declined(self, why: str, verdicts: Iterable[Verdict] = ()) -> bytes:
        """Return the body of the answer that declines a call."""
        shown = tuple(map(NodeVerdict.of, verdicts))
        seq = self.look().seq
        form = NodeDeclined(error=why[:MOST_ERROR], node=self.name, boot_id=self.boot_id, seq=seq, verdicts=shown)
        return form.to_json()

    # --- parts of a view -----------------------------------------------------------------------------------------

    def _view(self, now_s: float) -> NodeView:
        backend, (catalog_digest, learned_digest) = self._place.backend, self._digests()
        snapshot = backend.world.snapshot()
        return NodeView(
            name=self.name,
            boot_id=self.boot_id,
            seq=1,
            version=self._version[:128],
            ollama=backend.world.version[:128],
            is_up=self._place.is_up,
            draining=self.is_draining,
            memory=_memory_of(snapshot),
            gpus=tuple(NodeGpu(gpu.uuid, gpu.total_bytes, max(0, gpu.free_bytes)) for gpu in _gpus(snapshot)),
            residents=tuple(self._resident(one, snapshot, now_s) for one in snapshot.residents[:MOST_RESIDENTS]),
            loading=tuple(self._loading()),
            wait_s=_seconds(self._place.load_wait_s()),
            barred=tuple(sorted(snapshot.barred)[:MOST_BARRED]),
            catalog_digest=catalog_digest,
            learned_digest=learned_digest,
        )

    def _resident(self, one: Resident, snapshot: Snapshot, now_s: float) -> NodeResident:
        tracked = self._place.backend.world.residents[one.weights]
        return NodeResident(
            weights=one.weights,
            context=one.context_length or 0,
            is_full=one.is_fully_resident,
            in_flight=max(0, one.in_flight),
            slots=tracked.slots.count,
            waiting=one.wanted,
            wait_s=_seconds(self._place.entry_wait_s(tracked)),
            idle_s=0.0 if one.in_flight else _seconds(now_s - tracked.idle_since_s),
            is_kept=one.kept,
            held_bytes=tuple(max(0, one.held_bytes.get(gpu.index, 0)) for gpu in _gpus(snapshot)),
        )

    def _loading(self) -> Iterator[NodeLoading]:
        if (switch := self._place.backend.world.loads.switch) is not None:
            yield NodeLoading(*switch, _seconds(self._place.switch_left_s()[0]))


def _gpus(snapshot: Snapshot) -> tuple[Gpu, ...]:
    return (snapshot.gpus or ())[:MOST_GPUS]


def _memory_of(snapshot: Snapshot) -> MemoryMode:
    if snapshot.gpus is None:
        return "verify"
    return "probed" if snapshot.gpus else "no_gpu"


def _seconds(value: float) -> float:
    """Return seconds as a form may have them, in milliseconds: more digits would only make it longer."""
    return round(min(max(0.0, value), MOST_S), 3)
