"""What clients may take of a listener."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one client's connection may take. Seconds and bytes; `connections` counts all of a listener's."""

    header_s: float = 10.0
    keep_alive_s: float = 75.0
    write_idle_s: float = 300.0
    header_bytes: int = 65536
    headers: int = 128
    connections: int = 2048
