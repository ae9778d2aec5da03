"""The description of a simulated machine: its cards, its speeds, its current faults.

Its JSON form, ``vgpu.json``, is also that of a virtual NVML for a real Ollama, so that one file can describe both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class CardSpec:
    """One virtual card. `foreign_mib` is held by other programs, `context_mib` is the size of a process's driver
    context, `reserved_mib` belongs to the driver (neither used nor free)."""

    name: str = "CUDA0"
    description: str = "NVIDIA RTX A5000"
    total_mib: int = 24564
    foreign_mib: float = 0
    context_mib: int = 264
    compute: str = "8.6"
    reserved_mib: int = 0


@dataclass(frozen=True, slots=True)
class Speeds:
    """The speeds of a machine.

    `tokens_per_s` and `cpu_tokens_per_s` fix the speed of every model on the GPU and on the CPU; a split model takes
    the time of both shares. Without them a token costs one pass over the weights it uses: bytes on the GPU over
    `gpu_gb_per_s` plus bytes on the CPU over `cpu_gb_per_s`. The defaults are 65 % and 40 % of the data sheets of an
    RTX A5000 (768 GB/s) and of two channels of DDR4-3200 (51.2 GB/s). gemma4:31b with 10 % on the CPU then keeps 0.29
    of its speed. Measured was 0.14 (33.8 → 4.7 tokens/s on a 24 GB card, ollama issue 17099), so the simulated loss of
    speed is on the small side.
    """

    load_mib_per_s: float = 3000.0
    tokens_per_s: float | None = None
    cpu_tokens_per_s: float | None = None
    prompt_tokens_per_s: float = 4000.0
    gpu_gb_per_s: float = 500.0
    cpu_gb_per_s: float = 20.0

    def tokens_per_s_of(self, gpu_bytes: int, cpu_bytes: int) -> float:
        """Tokens per second of a model that reads these bytes of weights per token on the GPU and on the CPU."""
        if self.tokens_per_s is None:
            seconds = gpu_bytes / (self.gpu_gb_per_s * 1e9) + cpu_bytes / (self.cpu_gb_per_s * 1e9)
            return 1.0 / max(seconds, 1e-3)
        share = gpu_bytes / max(gpu_bytes + cpu_bytes, 1)
        return 1.0 / (share / self.tokens_per_s + (1 - share) / (self.cpu_tokens_per_s or 4.0))


@dataclass(frozen=True, slots=True)
class Machine:
    """Cards, speeds and current faults.

    `cards` are those that Ollama sees, in its order. `bus` is what the driver lists, in its own order: numbers of
    `cards`, and cards that Ollama does not see; () = the same cards in the same order.
    `free_lag_s`: time until the memory of a dead process is free. `discovery_s`: extra time of one device query (a
    sleeping card). `fail_load`: part of a model's blob or name → "oom", "corrupt" or "hang".
    `has_amx`: whether the CPU has AMX, whose buffers a server without cards counts as GPU memory.
    """

    cards: tuple[CardSpec, ...] = (CardSpec(),)
    speeds: Speeds = Speeds()
    reply_tokens: int = 16
    free_lag_s: float = 0.0
    discovery_s: float = 0.0
    fail_load: Mapping[str, str] = field(default_factory=dict)
    bus: tuple[int | CardSpec, ...] = ()
    has_amx: bool = True

    @classmethod
    def of_visible(cls, driver: Sequence[CardSpec], visible: Sequence[int], **more: Any) -> Machine:
        """Return the machine with the cards `driver`, of which Ollama sees `visible`, as CUDA_VISIBLE_DEVICES says."""
        numbers = {card: number for number, card in enumerate(visible)}
        bus = tuple(numbers.get(card, spec) for card, spec in enumerate(driver))
        return cls(cards=tuple(driver[card] for card in visible), bus=bus, **more)

    @classmethod
    def of_json(cls, config: Mapping[str, Any]) -> Machine:
        """Read the machine described by a ``vgpu.json``; unknown keys are ignored."""
        known = {f.name for f in fields(CardSpec)}
        cards = (CardSpec(**{k: v for k, v in device.items() if k in known}) for device in config.get("devices", ()))
        named = {f.name: config[f.name] for f in fields(Speeds) if f.name in config}
        if "tokens_per_s" not in named and not {"gpu_gb_per_s", "cpu_gb_per_s"} & named.keys():
            named["tokens_per_s"] = 100.0  # the defaults of the file format
        own = {f.name for f in fields(cls)} - {"cards", "speeds", "bus"}
        rest = {key: config[key] for key in own if key in config}
        return cls(cards=tuple(cards), speeds=Speeds(**{"load_mib_per_s": 20000.0, **named}), **rest)

    def with_foreign(self, card: int, foreign_mib: float) -> Machine:
        """Return the same machine with other programs holding `foreign_mib` of one card."""
        cards = (
            replace(spec, foreign_mib=foreign_mib) if index == card else spec for index, spec in enumerate(self.cards)
        )
        return replace(self, cards=tuple(cards))
