"""The state of a node as it tells its fronts: cards, what is loaded and being loaded, how long a request would wait.

It may be late: a node decides again, on fresh readings, for each request that it gets.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from router.core.nodes.form import VERSION, Bytes, Count, Name, Number, Seconds, Short, Text, Tokens, read

MOST_VIEW_BYTES = 64 << 10
MOST_GPUS, MOST_RESIDENTS, MOST_BARRED = 64, 128, 64

MemoryMode = Literal["probed", "verify", "no_gpu"]
"""Free memory is measured; it is unknown, so that each load is judged by `/api/ps`; there is no GPU."""


class NodeGpu(msgspec.Struct, frozen=True):
    """One card. `free_bytes` is what the driver reports, 0 in verify mode."""

    uuid: Text
    total_bytes: Bytes
    free_bytes: Bytes


class NodeResident(msgspec.Struct, frozen=True):
    """A model that is loaded. `held_bytes` is its memory on each of the node's `gpus`, in their order.

    `context` 0 = unknown. `is_full`: a request may be sent to it, all of it is on the GPU. `slots` is how many requests
    it takes at once, 0 = not known yet; `waiting` counts the requests that wait for it, `wait_s` is how long one more
    would. `idle_s` is 0 while it is used. `is_kept`: it is unloaded last.
    """

    weights: Text
    context: Tokens
    is_full: bool
    in_flight: Count = 0
    slots: Count = 0
    waiting: Count = 0
    wait_s: Seconds = 0.0
    idle_s: Seconds = 0.0
    is_kept: bool = False
    held_bytes: Annotated[tuple[Bytes, ...], Meta(max_length=MOST_GPUS)] = ()


def is_enough(context: int, num_ctx: int) -> bool:
    """Return whether a context is enough for so many tokens; one that is not known (0) counts as such."""
    return context >= num_ctx or not context


class NodeLoading(msgspec.Struct, frozen=True):
    """What a switch under way loads, with how many tokens of context, and in how many seconds it should be loaded."""

    weights: Text
    context: Tokens
    eta_s: Seconds


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one node. `boot_id` is another one after each start; `seq` rises with each view within a boot.

    `version` is the node's own, `ollama` that of its Ollama, "" if it has not answered yet.

    `is_up`: its Ollama answers. `wait_s` is how long a load would wait for those before it. `barred` are weights that
    are not loaded now because a load failed, "" = nothing is. The digests are those of its catalog: of the models, and
    of what it has learned about their memory.
    """

    v: int = VERSION
    name: Name
    boot_id: Name
    seq: Number
    version: Short
    ollama: Short = ""
    is_up: bool
    draining: bool
    memory: MemoryMode
    gpus: Annotated[tuple[NodeGpu, ...], Meta(max_length=MOST_GPUS)] = ()
    residents: Annotated[tuple[NodeResident, ...], Meta(max_length=MOST_RESIDENTS)] = ()
    loading: Annotated[tuple[NodeLoading, ...], Meta(max_length=8)] = ()
    wait_s: Seconds = 0.0
    barred: Annotated[tuple[Text, ...], Meta(max_length=MOST_BARRED)] = ()
    catalog_digest: Short = ""
    learned_digest: Short = ""

    def to_json(self) -> bytes:
        """Return it as one line of JSON."""
        return _encode(self)

    @staticmethod
    def from_json(data: bytes) -> NodeView:
        """Return the view in `data`. Raises UnreadableForm, which names the field."""
        return read(_decoder, data, MOST_VIEW_BYTES)

    def is_same_state(self, other: NodeView) -> bool:
        """Return True if nothing differs that a front decides by; `seq` and how long residents are idle may."""
        return _timeless(self) == _timeless(other)


def _timeless(view: NodeView) -> tuple[object, ...]:
    residents = tuple(
        (one.weights, one.context, one.is_full, one.in_flight, one.slots, one.waiting, one.is_kept, one.held_bytes)
        for one in view.residents
    )
    loading = tuple((one.weights, one.context) for one in view.loading)
    rest = view.boot_id, view.ollama, view.is_up, view.draining, view.memory, view.gpus, view.barred, view.wait_s > 0
    return (*rest, residents, loading, view.catalog_digest, view.learned_digest)


_encode = msgspec.json.encode
_decoder = msgspec.json.Decoder(NodeView)
