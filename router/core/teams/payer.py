"""Who pays for a switch: the request that caused it. Data only."""

from __future__ import annotations

import msgspec


class Payer(msgspec.Struct, eq=False):
    """The request that a switch is made for; `load_s` are the seconds of switches that were charged to it."""

    team: str = ""
    key_id: str = ""
    request_id: str = ""
    operation: str = ""
    load_s: float = 0.0

    def charge(self, seconds: float) -> None:
        """Charge the duration of a switch, whether it succeeded or not."""
        self.load_s += seconds


NOBODY = Payer()
"""The payer of a load that no request has asked for. Nothing reads what it is charged."""
