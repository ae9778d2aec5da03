"""The limits for clients of a listener."""

from __future__ import annotations

from dataclasses import dataclass

HIGH_WATER_BYTES = 512 << 10
"""Maximum buffer for a request body that is not read; beyond it the socket is not read."""

GONE_WRONG = b"Internal Server Error"
"""The answer in place of one that failed before its first byte."""


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Limits of one client's connection in seconds and bytes; `connections` and
    `connections_per_address` are limits of the listener."""

    header_s: float = 10.0
    keep_alive_s: float = 75.0
    write_idle_s: float = 300.0
    header_bytes: int = 65536
    headers: int = 128
    connections: int = 2048
    connections_per_address: int = 2000
