"""What the connections to an upstream may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Seconds and numbers: `most` connections at once, a wait of at most `wait_s` for one, `idle_expiry_s` unused."""

    most: int
    connect_timeout_s: float
    wait_s: float
    idle_expiry_s: float


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Seconds and bytes of one exchange; with `suppress_cancel` an answer that is given up is read on."""

    first_byte_timeout_s: float
    idle_timeout_s: float
    suppress_cancel: bool
    unwanted_bytes: int
    unwanted_s: float
