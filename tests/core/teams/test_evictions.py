"""How often a team may make the models of others go."""

from __future__ import annotations

from router.core.teams.evictions import Evictions, of_others
from router.core.teams.quotas import refusal
from router.core.teams.team import Team, TeamLimits

FEW = Team("few", limits=TeamLimits(evictions_per_minute=2, waiting=9))


def test_only_so_many_models_of_others_are_evicted_a_minute() -> None:
    """Together with those that a switch evicts at once."""
    evictions = Evictions()
    evictions.spend(FEW, 1, 0)
    assert evictions.wait_s(FEW, 1, 10) == 0
    assert evictions.wait_s(FEW, 2, 10) == 50
    evictions.spend(FEW, 1, 20)
    assert evictions.wait_s(FEW, 1, 20) == 40
    assert evictions.wait_s(FEW, 1, 60) == 0
    assert evictions.wait_s(FEW, 0, 20) == 0


def test_a_switch_that_needs_more_than_a_minutes_evictions_happens_after_a_minute_without_any() -> None:
    """Or a big model could never be loaded."""
    evictions = Evictions()
    evictions.spend(FEW, 1, 30)
    assert evictions.wait_s(FEW, 5, 40) == 50
    assert evictions.wait_s(FEW, 5, 90) == 0
    evictions.spend(FEW, 5, 90)
    assert evictions.wait_s(FEW, 1, 90) == 60


def test_teams_without_the_limit_are_free_and_those_that_are_gone_forgotten() -> None:
    """And each has its own."""
    evictions, free, other = Evictions(), Team("free"), Team("other", limits=TeamLimits(evictions_per_minute=2))
    for team in (free, FEW):
        evictions.spend(team, 100, 0)
    assert evictions.wait_s(free, 100, 0) == evictions.wait_s(other, 1, 0) == 0
    assert evictions.wait_s(FEW, 1, 0) == 60
    evictions.keep_only(["other"])
    assert evictions.wait_s(FEW, 1, 0) == 0


def test_models_that_only_the_team_itself_uses_are_its_own() -> None:
    """And those that nobody uses are nobody's."""
    users = {"mine": ["few"], "ours": ["few", "other"], "theirs": ["other"]}
    assert of_others("few", ["mine", "ours", "theirs", "nobody's"], users) == 2


def test_a_refusal_names_the_limit_and_when_to_come_back() -> None:
    """Each limit in words."""
    error = refusal(FEW, "waiting", 1.5)
    assert str(error) == "the team few may use at most 9 requests in the queue; try again in 2 s"
    assert (error.status, error.why, error.retry_after_s) == (429, "waiting", 1.5)
    assert "2 evictions of models of others per minute" in str(refusal(FEW, "evictions_per_minute", 9))
