"""What is loaded and what is free, frozen into one Snapshot that a decision is made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import GIB

ALL_WEIGHTS = ""
"""The key of `Snapshot.barred` that stands for all weights that are not loaded."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is loaded now (`/api/ps`), with what the router knows about it.

    `context_length` is None if Ollama does not report it. `held_bytes` is what it occupies per card (index → bytes,
    context included), measured where possible; `free_at_load_bytes` is the driver's free memory per card just before
    its load. `order` rises with each load. `options` is None if another client loaded it. `keep_alive_s` is the value
    sent to Ollama (inf = indefinitely). `wanted` counts requests that wait for it. `kept` marks the models of
    `defaults.keep`. `is_spilled`: a measurement showed that it is not wholly on the GPU. `is_going`: it is being
    unloaded. `is_hot`: it was used more than once within the last two minutes. `uses` counts its requests, each one
    half as much after every two minutes: how likely it is wanted again. `entry` is its place in Ollama's map of
    runners: the lowest that was free. `users` are the teams that have used it within its keep-alive. `is_reserved`: it
    must not go for the request to be decided on, because of another team's floor.
    """

    name: str
    weights: str
    size_bytes: int
    size_vram_bytes: int
    context_length: int | None
    held_bytes: Mapping[int, int] = field(default_factory=dict)
    free_at_load_bytes: Mapping[int, int] = field(default_factory=dict)
    options: LoadOptions | None = None
    order: int = 0
    keep_alive_s: float = 300.0
    in_flight: int = 0
    wanted: int = 0
    kept: bool = False
    is_spilled: bool = False
    is_going: bool = False
    is_hot: bool = False
    uses: float = 0.0
    entry: int = 0
    users: tuple[str, ...] = ()
    is_reserved: bool = False

    @property
    def is_company(self) -> bool:
        """True if it is in use: with requests in flight or waiting for it, or used repeatedly just now."""
        return self.in_flight > 0 or self.wanted > 0 or self.is_hot

    @property
    def is_fully_resident(self) -> bool:
        """True if the upstream reports everything on the GPU and no measurement contradicts it."""
        return (
            not (self.is_spilled or self.is_going)
            and self.size_vram_bytes > 0
            and self.size_vram_bytes >= self.size_bytes
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a decision may depend on. `gpus` None = no reading (verify mode); () = there is no GPU.

    `catalog` maps canonical names to facts. `barred` maps weights that just failed to load to the reason (ALL_WEIGHTS:
    nothing can be loaded). `loading` is what a switch in progress loads: weights and num_ctx. `left_bytes` is, per
    card, the least memory that others left (free + held by residents) since so many seconds ago, in steps of (age in
    seconds, bytes), oldest first; a card that is missing has no history. Without a reading, `proven_bytes` is what was
    whole in VRAM together, and `ceiling_bytes` what is too much. `unproven` are the cards whose numbers no load has
    confirmed: Ollama may count them in another order. `awaited` are the weights that requests wait for.
    """

    gpus: tuple[Gpu, ...] | None
    residents: tuple[Resident, ...] = ()
    catalog: Mapping[str, ModelFacts] = field(default_factory=dict)
    barred: Mapping[str, str] = field(default_factory=dict)
    loading: tuple[str, int] | None = None
    left_bytes: Mapping[int, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    ceiling_bytes: int | None = None
    proven_bytes: int = 0
    unproven: frozenset[int] = frozenset()
    awaited: frozenset[str] = frozenset()

    @property
    def is_order_open(self) -> bool:
        """True if cards of different kinds may have each other's numbers. Equal ones have the same order everywhere."""
        unproven = self.unproven
        return (
            bool(unproven)
            and len({(gpu.name, gpu.total_bytes) for gpu in self.gpus or () if gpu.index in unproven}) > 1
        )

    def __repr__(self) -> str:
        free = "unknown" if self.gpus is None else " + ".join(f"{gpu.free_bytes / GIB:.1f}" for gpu in self.gpus)
        return f"<Snapshot [free {free} GiB, {len(self.residents)} resident]>"
