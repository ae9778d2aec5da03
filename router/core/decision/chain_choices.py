"""What the rules of a chain may be, in the words of the configuration."""

from __future__ import annotations

from typing import Literal

NothingFits = Literal["refuse", "wait", "allow_partial", "passthrough"]
Upgrade = Literal["idle", "on_request", "never"]
Announce = Literal["off", "first", "always"]
Prefer = Literal["quality", "balanced", "speed"]
"""What matters more: the biggest variant that fits, or answers without a load."""
