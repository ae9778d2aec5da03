"""The rows of `/api/ps` and their order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ollama_simulator.machine.arithmetic import SimModel
from ollama_simulator.scheduler.runner import Runner


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """One row. `expires_at_s` is loop time (inf = never); a time that has passed = marked for unloading."""

    model: SimModel
    size_bytes: int
    size_vram_bytes: int
    context_length: int
    expires_at_s: float


def listed(runners: Iterable[Runner], now_s: float) -> list[LoadedRow]:
    """Return the rows, latest expiry (in whole seconds) first. The keep-alive of a never idle runner starts now."""
    rows = [
        LoadedRow(
            runner.model,
            runner.size_bytes,
            runner.size_vram_bytes,
            runner.launch.num_ctx,
            now_s + runner.keep_alive_s if runner.expires_at_s is None else runner.expires_at_s,
        )
        for runner in runners
    ]
    return sorted(rows, key=lambda row: -_whole(row.expires_at_s))


def _whole(seconds: float) -> float:
    return seconds if math.isinf(seconds) else math.floor(seconds)
