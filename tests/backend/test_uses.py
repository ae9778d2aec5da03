"""How often a model was used."""

import pytest

from router.backend.uses import HOT_S, NEVER_USED


def test_each_use_counts_half_as_much_after_two_minutes():
    """And a use that is longer ago less and less."""
    uses = NEVER_USED.and_at(0.0).and_at(HOT_S)
    assert uses.weight_at(HOT_S) == pytest.approx(1.5)
    assert uses.weight_at(3 * HOT_S) == pytest.approx(0.375)
    assert uses.weight_at(1e9) == pytest.approx(0.0)


def test_the_last_two_uses_are_known():
    """A model that was used once is not used repeatedly."""
    uses = NEVER_USED.and_at(5.0)
    assert (uses.before_last_s, uses.last_s) == (float("-inf"), 5.0)
    later = uses.and_at(7.0)
    assert (later.before_last_s, later.last_s) == (5.0, 7.0)


def test_a_model_that_was_never_used_has_no_weight():
    """At any time."""
    assert NEVER_USED.weight_at(1e9) == 0.0
