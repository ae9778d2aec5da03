"""The section `fleet`: how requests are divided between several backends."""

from __future__ import annotations

from router.config.section import Section
from router.config.values import AtLeastOne, Count, Factor, Positive


class FleetSection(Section):
    load_factor: Factor = 1.25
    """a conversation stays on its backend until that has this many times the mean of requests for the model, plus 1"""
    retries: Count = 2
    """times that a request may go to another backend after failures, while nothing of an answer has been sent"""
    retry_share: Factor = 0.2
    """retries may be at most this part of the requests of the last 10 s, and three more"""
    breaker_failures: AtLeastOne = 5
    """failures in a row after which a backend, or a model on it, is left out for a while"""
    breaker_open_s: Positive = 30.0
    """how long it is left out; twice that if the next request fails too, and so on up to 300"""
