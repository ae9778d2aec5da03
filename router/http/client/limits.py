"""The limits of the connections to an upstream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits of the pool: `max_connections`; times in seconds: to connect, to wait for a free connection, unused; and
    after which a connection whose other end acknowledges nothing breaks off.
    """

    max_connections: int
    connect_timeout_s: float
    wait_s: float
    idle_expiry_s: float
    silent_s: float


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Limits of one exchange, in seconds and bytes; with `suppress_cancel` an answer that is given up is drained."""

    first_byte_timeout_s: float
    idle_timeout_s: float
    suppress_cancel: bool
    unwanted_bytes: int
    unwanted_s: float
