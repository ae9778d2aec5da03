"""The sections `queue` and `fairness`: who may wait, for how long, and who goes first."""

from __future__ import annotations

from router.config.section import Section
from router.config.values import AtLeastOne, Count, Duration, Factor, Positive, Window


class Queue(Section):
    max_waiting: AtLeastOne = 512
    """requests that may wait; further ones get a 503"""
    wait_s: Positive = 300.0
    """longest time in the queue before a 503 with Retry-After; loading the request's own model does not count"""
    age_bound_s: Duration = 10.0
    """a request that has waited this long goes ahead of requests for the loaded model, or by cost_factor later"""
    cost_factor: Factor = 3.0
    """the age bound is at least so many times what the switch and a third of the others' cost, up to half of wait_s"""
    affinity_count: AtLeastOne | None = None
    """requests for the loaded model that may overtake one for another model; null = any number, until age_bound_s"""
    ahead: Count = 1
    """requests sent to a loaded model beyond those that it can answer, so that it never idles; the others wait"""


class FairnessSection(Section):
    window_s: Window = "auto"
    """seconds that a team may be ahead of one that waits to replace its model; auto = three switches, 5 s at least"""
    age_bound_s: Duration = 60.0
    """the team that was served least gets its model after this wait, even if others may still use what is loaded"""
