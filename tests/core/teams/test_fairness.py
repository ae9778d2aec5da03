"""Who has had how much of a card, and whose turn it is: each rule alone, and on one card in discrete events."""

from __future__ import annotations

import math

import pytest

from router.core.teams.fairness import LEAST_CHARGE_S, LEAST_WINDOW_S, MOST_AWAY, Fairness
from tests.core.teams.one_card import OneCard, Team, percentile


def used(fairness: Fairness, team: str, seconds: float, weight: float = 1.0) -> None:
    """Let a request of the team take `seconds`, from beginning to end."""
    fairness.end(fairness.start(team, weight, seconds, has_waited=False))


# --- the rules -----------------------------------------------------------------------------------------------------


def test_the_team_that_has_had_least_is_the_next() -> None:
    """Equal ones in the order in which they are named: the queue names the oldest first."""
    fairness = Fairness(24)
    for team in ("a", "b", "c"):
        fairness.wait(team, 1.0)
        fairness.wait(team, 1.0)
    assert fairness.in_turn(["b", "a", "c", "a"]) == ["b", "a", "c"]
    fairness.start("b", 1.0, 2, has_waited=True)
    fairness.start("a", 1.0, 1, has_waited=True)
    assert fairness.in_turn(["b", "a", "c"]) == ["c", "a", "b"]


def test_a_weight_of_three_is_charged_a_third() -> None:
    """So it comes up three times as often."""
    fairness = Fairness(24)
    fairness.wait("heavy", 3.0)
    fairness.wait("light", 1.0)
    fairness.start("heavy", 3.0, 6, has_waited=False)
    fairness.start("light", 1.0, 6, has_waited=False)
    assert fairness.level_s("heavy") == 2
    assert fairness.level_s("light") == 6


def test_teams_that_are_no_more_do_not_count_for_how_far_the_others_are_ahead() -> None:
    """Where weights differ more a lead may be longer; a team with something under way stays known."""
    others = Fairness(24), Fairness(24)
    used(others[0], "heavy", 5, 30.0)
    others[0].keep_only(["a", "b"])
    for one in others:
        used(one, "a", 5)
        one.start("b", 1.0, 20, has_waited=False)
        used(one, "heavy", 5, 30.0)
        one.keep_only(["a"])
    shown = [one.standings() for one in others]
    assert set(shown[0]) == {"a", "b"}
    assert shown[0] == shown[1]
    alone = Fairness(24)
    used(alone, "a", 5)
    alone.start("b", 1.0, 20, has_waited=False)
    assert shown[1] == alone.standings()


def test_a_team_that_was_away_is_lifted_to_those_that_wait() -> None:
    """It hoards no credit: a team that slept for an hour does not own the next one."""
    fairness = Fairness(24)
    fairness.wait("a", 1.0)
    fairness.wait("b", 1.0)
    fairness.start("a", 1.0, 3600, has_waited=False)
    fairness.start("b", 1.0, 3590, has_waited=False)
    fairness.wait("slept", 1.0)
    assert fairness.level_s("slept") == 3590


def test_a_team_that_was_away_is_lifted_though_the_other_one_never_had_to_wait() -> None:
    """Who uses an idle card all night is not locked out in the morning."""
    fairness = Fairness(24)
    fairness.wait("slept", 1.0)
    fairness.leave("slept")
    for _ in range(100):
        first = fairness.start("night", 1.0, 30, has_waited=False)
        used(fairness, "night", 6)
        fairness.end(first)
    fairness.wait("slept", 1.0)
    fairness.wait("night", 1.0)
    assert fairness.may_enter("night", ["slept"])


def test_what_was_used_while_nobody_else_wanted_anything_is_no_debt() -> None:
    """A request of five minutes on an idle card does not make its team wait five minutes behind a flood."""
    fairness = Fairness(24)
    used(fairness, "alone", 300)
    fairness.wait("flood", 1.0)
    assert fairness.level_s("flood") == fairness.level_s("alone")


def test_a_team_keeps_its_credit_while_something_of_it_is_under_way_but_at_most_the_window() -> None:
    """Otherwise one stream that never ends would save up for its team."""
    fairness = Fairness(24)
    fairness.start("few", 1.0, 1, has_waited=False)
    fairness.wait("many", 1.0)
    fairness.start("many", 1.0, 10, has_waited=True)
    fairness.wait("many", 1.0)
    fairness.wait("few", 1.0)
    assert (fairness.level_s("few"), fairness.level_s("many")) == (1, 10)
    for _ in range(20):
        fairness.start("many", 1.0, 10, has_waited=False)
    fairness.leave("few")
    fairness.wait("few", 1.0)
    assert fairness.level_s("few") == fairness.floor_s == 200 - 24


def test_a_charge_counts_from_the_start_and_is_corrected_at_the_end() -> None:
    """Charged at its end, a team could start any number of long requests first."""
    fairness = Fairness(24)
    fairness.wait("other", 1.0)
    charges = [fairness.start("a", 1.0, 2, has_waited=False) for _ in range(3)]
    assert fairness.level_s("a") == 6
    fairness.end(charges[0], 30)
    fairness.end(charges[1], 0.5)
    fairness.end(charges[2])
    assert fairness.level_s("a") == 32.5


def test_a_changed_weight_changes_what_comes_and_not_what_was() -> None:
    """A reload moves nobody in the queue; what is under way is corrected at the weight that it was charged at."""
    fairness = Fairness(24)
    fairness.wait("a", 1.0)
    charge = fairness.start("a", 1.0, 8, has_waited=True)
    fairness.wait("a", 4.0)
    assert fairness.level_s("a") == 8
    fairness.end(charge, 4)
    assert fairness.level_s("a") == 4
    fairness.start("a", 4.0, 8, has_waited=True)
    assert fairness.level_s("a") == 6


def test_a_request_enters_while_its_team_is_at_most_the_window_ahead_of_each_rival() -> None:
    """And the team itself is no rival of its own."""
    fairness = Fairness(24)
    for team in ("a", "b", "c"):
        fairness.wait(team, 1.0)
    fairness.start("a", 1.0, 24, has_waited=False)
    assert fairness.may_enter("a", ["b", "c"])
    fairness.start("a", 1.0, 1, has_waited=False)
    assert not fairness.may_enter("a", ["b"])
    assert fairness.may_enter("a", ["a"])
    assert fairness.may_enter("a", [])
    assert fairness.may_enter("b", ["a", "c"])


def test_the_window_is_that_of_the_lighter_of_two_rivals() -> None:
    """A switch for a team of weight 0.1 counts ten times: it must have its turn after it, and not be switched away."""
    fairness = Fairness(24)
    fairness.wait("light", 0.1)
    fairness.wait("heavy", 1.0)
    fairness.switched("light", 0.1, 8)
    assert fairness.level_s("light") == 80
    assert fairness.may_enter("light", ["heavy"])
    fairness.start("light", 0.1, 17, has_waited=True)
    assert not fairness.may_enter("light", ["heavy"])


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_weights_count_only_in_proportion(scale: float) -> None:
    """Shares of 10 and 30 are the same as 1 and 3."""
    fairness = Fairness(24)
    fairness.wait("a", scale)
    fairness.wait("b", 3 * scale)
    entered = 0
    while fairness.may_enter("b", ["a"]):
        fairness.start("b", 3 * scale, 5, has_waited=False)
        entered += 1
    assert entered == 24 * 3 // 5 + 1


def test_a_switch_is_charged_to_whom_it_was_for() -> None:
    """To a team that has left meanwhile as well."""
    fairness = Fairness(24)
    fairness.wait("a", 1.0)
    fairness.wait("b", 2.0)
    fairness.switched("b", 2.0, 8)
    fairness.switched("gone", 1.0, 6)
    assert [fairness.level_s(team) for team in ("a", "b")] == [0, 4]
    assert fairness.standings()["gone"].served_s == 6


@pytest.mark.parametrize(("switches", "window_s"), [((), 5.0), ((1.0,), 5.0), ((8.0,), 24.0), ((8.0, 18.0), 33.0)])
def test_the_window_follows_the_measured_switches(switches: tuple[float, ...], window_s: float) -> None:
    """Three of them in the running mean, and five seconds at least."""
    fairness = Fairness()
    for seconds in switches:
        fairness.switched("a", 1.0, seconds)
    assert fairness.window_s == pytest.approx(window_s)
    assert Fairness(7).window_s == 7
    assert LEAST_WINDOW_S == 5


def test_a_team_that_waits_for_what_nobody_can_give_saves_no_credit() -> None:
    """Others that it does not hinder go on; when it can be served at last, it is the window ahead of them, no more."""
    fairness = Fairness(24)
    fairness.wait("stuck", 1.0)
    for _ in range(100):
        used(fairness, "busy", 10)
    fairness.wait("new", 1.0)
    assert fairness.level_s("busy") - fairness.level_s("stuck") == 24 + 10
    assert fairness.level_s("new") == fairness.level_s("stuck")


def test_requests_that_cost_nothing_still_bring_a_turn_to_its_end() -> None:
    """A client whose requests all fail at once does not keep a model loaded for ever."""
    fairness = Fairness(1)
    fairness.wait("patient", 1.0)
    count = 0
    while fairness.may_enter("failing", ["patient"]):
        fairness.end(fairness.start("failing", 1.0, 0, has_waited=False), 0)
        count += 1
    assert count == pytest.approx(1 / LEAST_CHARGE_S, rel=0.01)


def test_any_number_of_names_takes_bounded_memory() -> None:
    """Teams come and go with reloads; those that wait or are under way are never forgotten."""
    fairness = Fairness(24)
    fairness.wait("waits", 1.0)
    charge = fairness.start("works", 1.0, 5, has_waited=False)
    for number in range(10 * MOST_AWAY):
        used(fairness, f"team {number}", 1)
    standings = fairness.standings()
    assert len(standings) <= MOST_AWAY + 2
    assert standings["waits"].waiting == standings["works"].under_way == 1
    fairness.end(charge)
    fairness.leave("waits")


def test_standings_show_how_far_each_team_is_ahead() -> None:
    """And what waits and is under way."""
    fairness = Fairness(24)
    assert fairness.standings() == {}
    fairness.wait("a", 1.0)
    fairness.start("b", 1.0, 3, has_waited=False)
    a, b = fairness.standings()["a"], fairness.standings()["b"]
    assert (a.waiting, a.under_way, a.served_s, a.lag_s) == (1, 0, 0, 0)
    assert (b.waiting, b.under_way, b.served_s, b.lag_s) == (0, 1, 3, 3)
    assert fairness.level_s("never seen") == 0


# --- one card, half an hour ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("window_s", [8.0, 24.0, 60.0])
def test_two_teams_that_wait_throughout_get_equal_parts_t1(window_s: float, slots: int) -> None:
    """They differ by the window and one charge at most, and of all time X / 2D is lost to switches."""
    teams = [Team("a", "one", clients=50), Team("b", "other", clients=50)]
    machine = OneCard(teams, window_s=window_s, slots=slots).run(1800)
    assert max(machine.spreads_s) <= window_s + machine.longest_charge_s
    assert abs(teams[0].served_s - teams[1].served_s) <= 2 * (window_s + machine.longest_charge_s)
    assert machine.switching_s / 1800 <= 8 / (2 * window_s) * 1.1 + 8 / 1800


@pytest.mark.parametrize("slots", [1, 4])
def test_weights_of_three_to_one_give_three_to_one(slots: int) -> None:
    """Of the seconds served, within a tenth; who is served less loses the same number of switches."""
    heavy, light = Team("a", "one", weight=3, clients=50), Team("b", "other", clients=50)
    OneCard([heavy, light], window_s=24, slots=slots).run(1800)
    assert 2.7 < heavy.served_s / light.served_s < 3.9


@pytest.mark.parametrize(("slots", "p99_s"), [(1, 12), (4, 8)])
def test_a_flood_on_the_same_model_costs_another_team_a_request_or_two(slots: int, p99_s: float) -> None:
    """In order of arrival it would wait for 200 others."""
    rare = Team("b", "one", every_s=10)
    OneCard([Team("a", "one", clients=200), rare], window_s=24, slots=slots).run(1800)
    assert percentile(rare.waits_s, 0.99) < p99_s
    assert len(rare.waits_s) >= 178


def test_a_flood_on_one_model_costs_the_team_of_another_the_window_and_a_switch() -> None:
    """Each time that it comes back."""
    rare = Team("b", "other", every_s=10)
    machine = OneCard([Team("a", "one", clients=200), rare], window_s=24).run(1800)
    assert percentile(rare.waits_s, 0.99) <= 24 + 2 * 4 + 8 + 4
    assert machine.switching_s < 1800 * 0.4
    assert len(rare.waits_s) >= 175


def test_one_team_alone_has_all_of_the_card() -> None:
    """Nothing is held back for others that do not come."""
    team = Team("a", "one", clients=4)
    OneCard([team, Team("never", "other")], window_s=24).run(600)
    assert team.served_s > 600 - 8 - 4
    assert math.isclose(team.served_s, 590, abs_tol=6)
