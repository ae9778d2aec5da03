"""A reload that adds or removes a backend goes to a next router; what is under way ends on the one before."""

from __future__ import annotations

from router.config import way_of


def test_a_change_of_the_backends_needs_a_next_router():
    """Nothing of a backend is changed in place, nor how requests are divided."""
    keys = ("backends.tower", "backends.tower.url", "backends.desk.gpus", "fleet.retries", "fleet.load_factor")
    assert {way_of(key) for key in keys} == {"next router"}
