"""The phases of one connection to an upstream:

    IDLE ── begin ──▶ AWAITING ── first byte ──▶ ANSWERING ── the answer is complete ──▶ IDLE
      └─────────────────┴────────── abort, an error, the end of the connection ──┴──▶ CLOSED

`Wire._is_sent` is the state of the other direction, since a request may be answered before it was sent in full.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """The phases of a wire; see the module's docstring."""

    IDLE = "idle"
    AWAITING = "awaiting"
    ANSWERING = "answering"
    CLOSED = "closed"


# Names of their own: in Python 3.11 `Phase.IDLE` is a slow look-up, and each request makes a dozen of them.
IDLE, AWAITING, ANSWERING, CLOSED = Phase
