"""The memory of a simulated machine: what each process holds on each card, and what the driver reports as free.

With a run directory the machine is read from ``vgpu.json`` again at each use, and every holder has a file in ``state``.
A virtual NVML can read both, so that another process sees the same cards through ``pynvml``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollama_simulator.machine.spec import CardSpec, Machine
from router.core.ollama.runner import Gpu
from router.core.units import MIB


class Cards:
    """Virtual cards. `machine` describes them; holders (runners) take and return bytes."""

    def __init__(self, machine: Machine | None = None, *, run_dir: Path | None = None) -> None:
        self._run_dir = run_dir
        self._machine = machine or Machine()
        self._seen: tuple[int, int, int] | None = None
        self._held: dict[str, dict[int, int]] = {}
        self._labels: dict[str, str] = {}
        if run_dir is not None:
            (run_dir / "state").mkdir(parents=True, exist_ok=True)
            self._clear_state()

    @property
    def machine(self) -> Machine:
        """The current machine. Unchanged while its file is missing or incomplete."""
        if self._run_dir is not None:
            path = self._run_dir / "vgpu.json"
            try:
                found = path.stat()
                key = (found.st_mtime_ns, found.st_ino, found.st_size)
                if key != self._seen:
                    self._machine, self._seen = Machine.of_json(json.loads(path.read_text())), key
            except (OSError, ValueError):
                pass
        return self._machine

    def change(self, **faults: Any) -> None:
        """Set fields of the machine, such as `free_lag_s`. With a run directory, write its file instead."""
        self._machine = replace(self._machine, **faults)

    def set_foreign(self, card: int, foreign_bytes: int) -> None:
        """Set the memory that other programs hold on `card`. With a run directory, also in its file."""
        self._machine = self.machine.with_foreign(card, foreign_bytes / MIB)
        if self._run_dir is not None:
            path = self._run_dir / "vgpu.json"
            config = json.loads(path.read_text())
            config["devices"][card]["foreign_mib"] = foreign_bytes / MIB
            self._write(path, config)

    def free_bytes(self, card: int) -> int:
        """Bytes free on `card`, as the driver reports them."""
        spec = self.machine.cards[card]
        used = spec.foreign_mib * MIB + sum(held.get(card, 0) for held in self._held.values())
        return max(0, int((spec.total_mib - spec.reserved_mib) * MIB - used))

    def listed(self) -> tuple[Gpu, ...]:
        """Return the cards as the driver lists them: in the order of the bus, with those that Ollama does not see."""
        own = self.gpus()
        bus = self.machine.bus or range(len(own))
        found = [own[card] if isinstance(card, int) else _unseen(index, card) for index, card in enumerate(bus)]
        return tuple(replace(gpu, index=index) for index, gpu in enumerate(found))

    def gpus(self) -> tuple[Gpu, ...]:
        """Return the cards that Ollama sees, by its numbers."""
        return tuple(
            Gpu(
                index=index,
                uuid=f"GPU-00000000-0000-0000-0000-{index:012d}",
                name=spec.description,
                total_bytes=spec.total_mib * MIB,
                free_bytes=self.free_bytes(index),
                context_bytes=spec.context_mib * MIB,
                compute=spec.compute,
            )
            for index, spec in enumerate(self.machine.cards)
        )

    def holders(self) -> list[tuple[str, str, int, int]]:
        """(holder, program name, card, bytes) of each; the other programs of a card are one, named ``foreign``."""
        found = [
            (who, f"llama-server {self._labels[who]}", card, size)
            for who, held in self._held.items()
            for card, size in held.items()
        ]
        specs = enumerate(self.machine.cards)
        others = [(f"foreign-{card}", "foreign", card, int(spec.foreign_mib * MIB)) for card, spec in specs]
        return found + [other for other in others if other[3]]

    def held_bytes(self, who: str, card: int) -> int:
        """Bytes that `who` holds on `card`."""
        return self._held.get(who, {}).get(card, 0)

    def hold(self, who: str, label: str, card: int, size: int) -> bool:
        """Take `size` bytes of `card` for `who`. False, with nothing taken, if less is free."""
        if size > self.free_bytes(card):
            return False
        self._labels[who] = label
        mine = self._held.setdefault(who, {})
        mine[card] = mine.get(card, 0) + size
        self._record(who)
        return True

    def drop(self, who: str) -> None:
        """Free all memory of `who`, which has died, after the driver's lag."""
        lag_s = self.machine.free_lag_s
        if lag_s > 0:
            asyncio.get_running_loop().call_later(lag_s, self._forget, who)
        else:
            self._forget(who)

    def _forget(self, who: str) -> None:
        self._held.pop(who, None)
        if self._run_dir is not None:
            (self._run_dir / "state" / f"{who}.json").unlink(missing_ok=True)

    def _record(self, who: str) -> None:
        if self._run_dir is not None:
            alloc = {str(card): size for card, size in self._held[who].items()}
            entry = {"pid": os.getpid(), "start": _started(), "model": self._labels[who], "port": 0, "alloc": alloc}
            self._write(self._run_dir / "state" / f"{who}.json", entry)

    def _write(self, path: Path, value: Mapping[str, Any]) -> None:
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(value))
        fresh.replace(path)

    def _clear_state(self) -> None:
        """Remove the files that an earlier process left."""
        assert self._run_dir is not None
        for path in (self._run_dir / "state").glob("sim-*.json"):
            path.unlink(missing_ok=True)


def _unseen(index: int, spec: CardSpec) -> Gpu:
    """Return a card that Ollama does not see: only other programs use it."""
    free_bytes = int((spec.total_mib - spec.reserved_mib - spec.foreign_mib) * MIB)
    total_bytes, context_bytes = spec.total_mib * MIB, spec.context_mib * MIB
    return Gpu(index, f"GPU-unseen-{index}", spec.description, total_bytes, free_bytes, context_bytes, spec.compute)


def _started() -> str | None:
    """Return the start time of this process in ticks: with its pid, readers of ``state`` verify that it is alive."""
    try:
        return Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None
