"""The memory of the host, for cards that share it: what Ollama's runners take as the free memory of such a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from router.core.units import MIB

RESERVE_BYTES = 2048 * MIB
"""Memory kept for the host by default: what is free is the free memory of every other program too."""

_MEMINFO_BYTES = 1 << 16
_FILE_BYTES = 256


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of memory of the host, and how many of them programs can get without swapping."""

    total_bytes: int
    available_bytes: int


def host_memory(root: Path = Path("/")) -> HostMemory | None:
    """Return the host's memory by /proc/meminfo (in a container also the host's), None if it cannot be read."""
    found: dict[str, int] = {}
    try:
        for line in read_start(root / "proc/meminfo", _MEMINFO_BYTES).splitlines():
            name, _, value = line.partition(":")
            number = value.split()[:1]
            if name in ("MemTotal", "MemAvailable") and number and number[0].isdecimal():
                found[name] = int(number[0][:15]) << 10
    except OSError:
        return None
    if len(found) != 2 or not 0 <= found["MemAvailable"] <= found["MemTotal"]:
        return None
    return HostMemory(found["MemTotal"], found["MemAvailable"])


def read_start(path: Path, most_bytes: int = _FILE_BYTES) -> str:
    """Return the start of a file of the kernel, stripped. Raises OSError."""
    with path.open("rb") as file:
        return file.read(most_bytes).decode("utf-8", "replace").strip()
