"""What follows from switches that did not end well: how long to pause, which model to leave alone, when to give up.

| result     | the requests that wait for it                    | pause                 | the model                   |
| ---------- | ------------------------------------------------ | --------------------- | --------------------------- |
| DONE       | are let in                                       | none                  | starts with a clean slate   |
| MOVED      | are decided again                                | none                  | after 3 in a row barred 5 s |
| OVERTAKEN  | wait                                             | 0.2 … 3.2 s, jitter   | is not to blame             |
| TAKEN      | wait                                             | 0.2 … 3.2 s, jitter   | is not to blame             |
| RENUMBERED | are decided again: there is one card less        | none                  | is not to blame             |
| SPILLED    | are decided again, by what was learned           | none                  | after 3 in a row barred 5 s |
| ON_CPU     | are refused, with the reason                     | none                  | every model barred 60 s     |
| FAILED     | get the next variant, else the load's error      | none                  | barred 30 s                 |
| ABANDONED  | there are none                                   | 0.1 s, then as TAKEN  | starts with a clean slate   |
| AWAY       | wait; after 3 in a row they get 502, Retry-After | 1, 2, 4, 8 s, jitter  | is not to blame             |

ON_CPU is a finding about the machine, so it concerns every model; a restart of Ollama lifts it at once. FAILED holds
the status for clients: Ollama's own, 404 if it does not know the model, 504 if the load did not end.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from router.backend.cards import NO_GPU_S
from router.backend.switches import SwitchResult
from router.config import Switch
from router.core.decision.snapshot import ALL_WEIGHTS

MAX_STRIKES = 3
"""Failed switches to one model in a row before it is barred, and attempts to reach Ollama before waiters are told."""

NO_GPU = (
    "it does not see the card that the router's probe shows: check its log, and nvidia-smi or rocm-smi where it runs"
)

PAUSE_S = 5.0
"""How long a model is barred after that."""

TAKEN_PAUSE_S, MAX_TAKEN_PAUSE_S = 0.2, 3.2
"""Pause before the next switch after somebody else has unloaded what was just loaded: the first, and the longest."""

ABANDONED_PAUSE_S = 0.1
"""Pause before the next switch after one that nobody waited for any more."""

AWAY_PAUSE_S = 1.0
"""Pause before the next switch after the first one that could not reach Ollama."""


class Bar(NamedTuple):
    """Weights that are left alone for `for_s` seconds, and why; or ALL_WEIGHTS."""

    weights: str
    for_s: float
    why: str


class Setbacks:
    """See the module; the times in its table are the defaults of `settings`.

    `paused_until_s` is the loop time before which no switch may start.
    """

    def __init__(self, settings: Switch) -> None:
        self._settings = settings
        self.paused_until_s = -math.inf
        self._strikes: dict[str, int] = {}
        self._times_away = self._times_abandoned = 0

    @property
    def has_given_up(self) -> bool:
        """True if Ollama could not be reached so often that the requests which wait are to be told."""
        return self._times_away >= MAX_STRIKES

    def forget(self, weights: str | None) -> None:
        """Start with a clean slate for these weights, or for all (None)."""
        for known in list(self._strikes) if weights is None else [weights]:
            self._strikes.pop(known, None)

    def count(self, weights: str, result: SwitchResult, failure: str, now_s: float, upsets: int = 0) -> Bar | None:
        """Count a switch; return what is barred after it, None if nothing is.

        `failure` is Ollama's error if the load failed, `upsets` how many switches in a row were upset, with this one.
        """
        self._times_away = self._times_away + 1 if result is SwitchResult.AWAY else 0
        if result is SwitchResult.AWAY:
            self._pause(now_s, AWAY_PAUSE_S, self._settings.away_pause_s, self._times_away)
        elif result.is_upset:
            self._pause(now_s, TAKEN_PAUSE_S, MAX_TAKEN_PAUSE_S, upsets)
        self._times_abandoned = self._times_abandoned + 1 if result is SwitchResult.ABANDONED else 0
        if self._times_abandoned == 1:  # a request that wants it again must not make it spin
            self.paused_until_s = now_s + ABANDONED_PAUSE_S
        elif self._times_abandoned:
            self._pause(now_s, TAKEN_PAUSE_S, MAX_TAKEN_PAUSE_S, self._times_abandoned - 1)
        if result.is_upset or result is SwitchResult.RENUMBERED:
            return None
        if result in (SwitchResult.DONE, SwitchResult.ABANDONED, SwitchResult.AWAY):
            self._strikes.pop(weights, None)
            return None
        if result is SwitchResult.ON_CPU:
            self._strikes.clear()
            return Bar(ALL_WEIGHTS, NO_GPU_S, NO_GPU)
        self._strikes[weights] = self._strikes.get(weights, 0) + 1
        is_failed = result is SwitchResult.FAILED
        if not is_failed and self._strikes[weights] < MAX_STRIKES:
            return None
        del self._strikes[weights]
        if is_failed:
            return Bar(weights, self._settings.bar_s, failure or result.value)
        return Bar(weights, PAUSE_S, result.value)

    def _pause(self, now_s: float, first_s: float, longest_s: float, times: int) -> None:
        """Double the pause each time up to the longest; with jitter, so that several routers do not get in step."""
        most = max(0, math.ceil(math.log2(longest_s / first_s)))  # no power without bound: it overflows
        doublings = min(times - 1, most)
        self.paused_until_s = now_s + min(longest_s, first_s * 2**doublings) * random.uniform(0.5, 1.0)
