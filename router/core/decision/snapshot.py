"""What is loaded and what is free, frozen into one Snapshot that the decision looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import GIB


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is loaded now (`/api/ps`), with what the router knows of it.

    `held_bytes` is what it holds per card (index → bytes, context included), measured where possible, and
    `free_at_load_bytes` what the driver had free per card just before its load. `order` rises with each load: the
    youngest has the highest. `options` is None for a runner that somebody else loaded. `keep_alive_s` is what Ollama
    was told (inf = for ever). `wanted` counts requests that wait for it; `kept` marks the models of `keep:`.
    `is_spilled` marks what was measured not to be (wholly) there, `is_going` what is being unloaded.
    """

    name: str
    weights: str
    size_bytes: int
    size_vram_bytes: int
    context_length: int
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

    @property
    def is_fully_resident(self) -> bool:
        """True when the upstream says that everything is on the GPU and nothing measured contradicts it."""
        return (
            not (self.is_spilled or self.is_going)
            and self.size_vram_bytes > 0
            and self.size_vram_bytes >= self.size_bytes
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a decision may look at. `gpus` None = no reading (verify mode); () = there is no GPU.

    `catalog` maps canonical names to facts. `may_upgrade` is False while the swap budget of the minute is spent.
    `barred` names weights that just failed to load, with the reason. `loading` is what a switch under way loads:
    weights and num_ctx. `floor_bytes` is the least per card that was not taken by others over
    `defaults.upgrade_after_s` (free + what residents hold); a card that is missing has no history. Without a probe,
    `ceiling_bytes` is what a load that spilled alone could place on the cards.
    """

    gpus: tuple[Gpu, ...] | None
    residents: tuple[Resident, ...] = ()
    catalog: Mapping[str, ModelFacts] = field(default_factory=dict)
    may_upgrade: bool = True
    barred: Mapping[str, str] = field(default_factory=dict)
    loading: tuple[str, int] | None = None
    floor_bytes: Mapping[int, int] = field(default_factory=dict)
    ceiling_bytes: int | None = None

    def __repr__(self) -> str:
        free = "unknown" if self.gpus is None else " + ".join(f"{gpu.free_bytes / GIB:.1f}" for gpu in self.gpus)
        return f"<Snapshot [free {free} GiB, {len(self.residents)} resident]>"
