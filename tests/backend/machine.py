"""An Ollama and its cards that exist only in memory: the model server and the probe of the backend's tests.

Everything behind these two is the real backend, on a virtual clock.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from router.adapters.gpu.reading import GpuProcess, ProbeReading
from router.adapters.ollama import PsRow
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import GIB
from router.errors import ModelNotFound, RouterError
from tests.core.facts import facts_of, gpu_of

BIG, MIDDLE, SMALL = facts_of("big:32b", 18), facts_of("middle:14b", 9), facts_of("small:3b", 2)
EMBEDDER = facts_of("embedder:0b", 0.5, capabilities=("embedding",), context_length=8192)
ONE_CARD = (gpu_of(),)
TWO_CARDS = (gpu_of(0), gpu_of(1))


def weights_of(facts: ModelFacts) -> str:
    """Return the weights blob that the server shows for `facts`."""
    return "sha256-" + hashlib.sha256(facts.name.encode()).hexdigest()


def row_of(facts: ModelFacts, *, vram_bytes: int | None = None, num_ctx: int = 32768, digest: str = "") -> PsRow:
    """Return a row of `/api/ps`; `vram_bytes` None means all of it."""
    vram = facts.size_bytes if vram_bytes is None else vram_bytes
    year = datetime(2030, 1, 1, tzinfo=UTC)
    return PsRow(facts.name, digest or facts.digest, facts.size_bytes, vram, num_ctx, year, {})


class MemoryMachine:
    """Implements `ModelServer`; `probe` reads its cards. Times are seconds of the loop.

    `calls` are the names of the methods called, with their arguments, in order. `trouble` maps a method's name to what
    it raises from now on, a load after `trouble_s`. `vram_share` is the share of a load that ends up on the card,
    `seen_share` the share of it that the probe sees go, `taken_beside_bytes` what another program takes during a load.
    With `caches_bytes` ps counts that much beside the weights. What is in `stubborn` ignores unloads; with
    `loads_nothing` a load answers and changes nothing. `free_lag_s` is how late a driver gives memory back. A show of
    what is in `hanging` never answers. `reports_context` is False for an Ollama before 0.9.7.
    """

    def __init__(self, *installed: ModelFacts, cards: tuple[Gpu, ...] = ONE_CARD) -> None:
        self.installed = {facts.name: facts for facts in installed}
        self.cards = cards
        self.rows: dict[str, PsRow] = {}
        self.held: dict[str, dict[int, int]] = {}
        self.foreign: dict[int, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.trouble: dict[str, Exception] = {}
        self.trouble_s = 0.0
        self.load_s, self.unload_s, self.free_lag_s = 2.0, 0.2, 0.0
        self.vram_share = self.seen_share = 1.0
        self.taken_beside_bytes = self.caches_bytes = 0
        self.stubborn: set[str] = set()
        self.loads_nothing = False
        self.hanging: set[str] = set()
        self.reports_context = True
        self.loading = self.most_loading = 0
        self.derived: dict[str, tuple[str, dict[str, int]]] = {}
        self.is_closed = False
        self.probe = MemoryProbe(self)

    # --- what a test does and sees ---

    def named(self, method: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each call of `method`."""
        return [call[1:] for call in self.calls if call[0] == method]

    def put(self, facts: ModelFacts, *, card: int = 0, num_ctx: int = 32768, vram_bytes: int | None = None) -> None:
        """`facts` is loaded, whoever has done it."""
        row = row_of(facts, vram_bytes=vram_bytes, num_ctx=num_ctx)
        if self.caches_bytes:
            size_bytes = row.size_bytes + self.caches_bytes
            row = replace(row, size_bytes=size_bytes, size_vram_bytes=row.size_vram_bytes + self.caches_bytes)
        self.rows[facts.name] = row
        taken = int(row.size_vram_bytes * self.seen_share) + (GIB if self.seen_share == 1.0 else 0)
        self.held[facts.name] = {card: taken}

    def drop(self, name: str) -> None:
        """`name` is not loaded any more; its memory follows."""
        self.rows.pop(name, None)
        if self.free_lag_s:
            asyncio.get_running_loop().call_later(self.free_lag_s, self.held.pop, name, None)
        else:
            self.held.pop(name, None)

    def gpus(self) -> tuple[Gpu, ...]:
        """Return the cards as they are now."""
        return tuple(replace(gpu, free_bytes=self._free(gpu)) for gpu in self.cards)

    def _free(self, gpu: Gpu) -> int:
        held = sum(held.get(gpu.index, 0) for held in self.held.values())
        return max(0, gpu.free_bytes - held - self.foreign.get(gpu.index, 0))

    def _called(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method in self.trouble:
            raise self.trouble[method]

    # --- ModelServer ---

    async def version(self) -> str:
        self._called("version")
        return "0.33.0"

    async def tags(self) -> list[dict[str, Any]]:
        self._called("tags")
        rows = [
            {
                "name": facts.name,
                "digest": facts.digest,
                "size": facts.size_bytes,
                **({"remote_model": "x:1b", "remote_host": "https://elsewhere.test"} if facts.is_remote else {}),
                "details": {"family": facts.family, "parameter_size": facts.parameter_size},
            }
            for facts in self.installed.values()
        ]
        return rows + [
            {"name": name, "digest": f"d-{name}", "size": self.installed[variant].size_bytes}
            for name, (variant, _) in self.derived.items()
        ]

    async def show(self, name: str, **_options: bool) -> dict[str, Any]:
        self._called("show", name)
        if name in self.hanging:
            await asyncio.Event().wait()
        facts = self.installed[self.derived[name][0] if name in self.derived else name]
        return {
            "modelfile": f"FROM /models/blobs/{weights_of(facts)}\n",
            "capabilities": sorted(facts.capabilities),
            "model_info": dict(facts.info),
            "parameters": "\n".join(f"{key} {value}" for key, value in facts.parameters.items()),
            "tensors": [{"name": one.name, "type": one.type, "shape": list(one.shape)} for one in facts.tensors],
        }

    async def ps(self) -> list[PsRow]:
        self._called("ps")
        rows = self.rows.values()
        return list(rows) if self.reports_context else [replace(row, context_length=None) for row in rows]

    async def load(self, name: str, options: LoadOptions, keep_alive_s: float, embedding: bool = False) -> None:
        if "load" in self.trouble:
            await asyncio.sleep(self.trouble_s)
        self._called("load", name, options, keep_alive_s, embedding)
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        try:
            await asyncio.sleep(self.load_s)
        finally:
            self.loading -= 1
        if self.loads_nothing or name in self.rows:
            return
        facts = self.installed[name]
        vram = int(facts.size_bytes * self.vram_share)
        self.put(facts, card=options.main_gpu or 0, num_ctx=options.num_ctx or 8192, vram_bytes=vram)
        self.foreign[0] = self.foreign.get(0, 0) + self.taken_beside_bytes

    async def unload(self, name: str) -> None:
        self._called("unload", name)
        if name not in self.installed:
            raise ModelNotFound(f"model '{name}' not found")
        if name not in self.stubborn:
            asyncio.get_running_loop().call_later(self.unload_s, self.drop, name)

    async def create_derived(self, name: str, from_: str, parameters: Mapping[str, int]) -> None:
        self._called("create_derived", name, from_, dict(parameters))
        await asyncio.sleep(0.1)
        self.derived[name] = (from_, dict(parameters))

    async def delete(self, name: str) -> None:
        self._called("delete", name)
        if self.derived.pop(name, None) is None and self.installed.pop(name, None) is None:
            raise ModelNotFound(f"model '{name}' not found")

    async def aclose(self) -> None:
        self.is_closed = True


class MemoryProbe:
    """Implements `VramProbe` on a machine's cards. `error` is what it raises; `is_live` False states empty cards."""

    name = "memory"

    def __init__(self, machine: MemoryMachine) -> None:
        self.machine = machine
        self.is_live = True
        self.error: RouterError | None = None
        self.processes: tuple[GpuProcess, ...] = ()
        self.reads: list[bool] = []
        self.is_closed = False

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        self.reads.append(is_fresh)
        if self.error is not None:
            raise self.error
        gpus = self.machine.gpus() if self.is_live else self.machine.cards
        return ProbeReading(gpus, asyncio.get_running_loop().time(), self.processes)

    async def aclose(self) -> None:
        self.is_closed = True
