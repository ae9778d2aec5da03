"""What a request is charged at its start."""

from __future__ import annotations

import pytest

from router.core.teams.costs import FIRST_S, MOST, Costs


def test_a_team_is_charged_by_its_own_requests_and_a_new_one_by_those_of_all() -> None:
    """The long prompts of one team say little about the questions of another."""
    costs = Costs()
    assert costs.estimate_s("model", "long") == FIRST_S
    for _ in range(40):
        costs.learn("model", "long", 60.0)
    for _ in range(40):
        costs.learn("model", "short", 1.0)
    assert costs.estimate_s("model", "long") == pytest.approx(60)
    assert costs.estimate_s("model", "short") == pytest.approx(1)
    assert costs.estimate_s("model", "new") == pytest.approx(1, abs=0.1)
    assert costs.estimate_s("other", "long") == FIRST_S


def test_an_estimate_follows_what_requests_take() -> None:
    """Not at once: one long answer is no rule."""
    costs = Costs()
    costs.learn("model", "a", 2.0)
    costs.learn("model", "a", 12.0)
    assert costs.estimate_s("model", "a") == pytest.approx(4.0)


def test_any_number_of_models_takes_bounded_memory() -> None:
    """Those in use are kept."""
    costs = Costs()
    for number in range(2 * MOST):
        costs.learn(f"model {number}", "a", 5.0)
        costs.learn("in use", "a", 7.0)
    assert costs.estimate_s("in use", "a") == 7.0
    assert costs.estimate_s("model 0", "a") == FIRST_S
    assert len(costs._means_s) <= MOST
