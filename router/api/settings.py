"""What the edge must know of the configuration, as plain values. `app.py` unpacks the config into this."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Bytes and seconds. `is_loopback`: bound where only this machine can connect; then everybody has every right.

    `hosts` are further Host names and `origins` further Origin patterns (one ``*`` each, ``*`` alone allows all).
    """

    is_loopback: bool = True
    insecure_no_auth: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 64 << 20
    zstd_bytes: int = 20 << 20
    body_idle_s: float = 30.0
    body_total_s: float = 120.0
    has_router_headers: bool = True

    may_manage: bool = field(init=False, default=True)
    """True when a client without a key may do all that Ollama allows."""

    def __post_init__(self) -> None:
        """Settle the right once: it is asked for with each request."""
        object.__setattr__(self, "may_manage", self.is_loopback or self.insecure_no_auth)
