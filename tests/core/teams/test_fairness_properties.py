"""Statements about the fair shares that hold whatever teams do."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from router.core.teams.fairness import Charge, Fairness
from tests.core.teams.one_card import OneCard, Team

NAMES = st.sampled_from("abcde")
SECONDS = st.floats(0, 400)
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.25, "d": 1.0, "e": 50.0}


class Levels(RuleBasedStateMachine):
    """Any order of events: counts stay right, and no team is lifted, charged or forgotten where it must not be."""

    charges = Bundle("charges")

    def __init__(self) -> None:
        super().__init__()
        self.fairness = Fairness(20)
        self.waiting = dict.fromkeys(WEIGHTS, 0)
        self.under_way = dict.fromkeys(WEIGHTS, 0)

    @rule(team=NAMES)
    def wait(self, team: str) -> None:
        was_away = not (self.waiting[team] or self.under_way[team])
        before = {name: self.fairness.level_s(name) for name, count in self.waiting.items() if count}
        self.fairness.wait(team, WEIGHTS[team])
        self.waiting[team] += 1
        if was_away and before:  # F1: no credit is hoarded
            assert self.fairness.level_s(team) >= min(before.values())

    @rule(team=NAMES)
    def leave(self, team: str) -> None:
        if self.waiting[team]:
            self.fairness.leave(team)
            self.waiting[team] -= 1

    @rule(target=charges, team=NAMES, estimate_s=SECONDS)
    def start(self, team: str, estimate_s: float) -> Charge:
        before = self.fairness.level_s(team)
        has_waited = self.waiting[team] > 0
        charge = self.fairness.start(team, WEIGHTS[team], estimate_s, has_waited=has_waited)
        self.waiting[team] -= has_waited
        self.under_way[team] += 1
        assert self.fairness.level_s(team) >= before + estimate_s / WEIGHTS[team] - 1e-6
        return charge

    @rule(charge=consumes(charges), actual_s=st.none() | SECONDS)
    def end(self, charge: Charge, actual_s: float | None) -> None:
        self.fairness.end(charge, actual_s)
        self.under_way[charge.account.name] -= 1

    @rule(team=NAMES, seconds=st.floats(0.1, 60))
    def switched(self, team: str, seconds: float) -> None:
        self.fairness.switched(team, WEIGHTS[team], seconds)

    @invariant()
    def counts_are_right(self) -> None:
        standings = self.fairness.standings()
        for team in WEIGHTS:
            if self.waiting[team] or self.under_way[team]:
                assert (standings[team].waiting, standings[team].under_way) == (
                    self.waiting[team],
                    self.under_way[team],
                )

    @invariant()
    def credits_are_bounded_and_finite(self) -> None:
        levels = [self.fairness.level_s(team) for team in WEIGHTS]
        assert all(math.isfinite(level) and level >= self.fairness.floor_s for level in levels)

    @invariant()
    def somebody_may_always_enter(self) -> None:
        """Work is conserved: of those that wait, the one with the lowest level is held back by nobody."""
        waiting = [team for team, count in self.waiting.items() if count]
        if waiting:
            first = self.fairness.in_turn(waiting)[0]
            assert self.fairness.may_enter(first, waiting)

    @precondition(lambda self: not any(self.waiting.values()) and not any(self.under_way.values()))
    @invariant()
    def an_idle_card_owes_nobody(self) -> None:
        assert self.fairness.level_s("new") >= max(map(self.fairness.level_s, WEIGHTS)) - 1e-6


TestLevels = Levels.TestCase
TestLevels.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

TEAMS = st.lists(
    st.tuples(st.sampled_from(["one", "two", "three"]), st.sampled_from([0.2, 1.0, 3.0, 10.0]), st.integers(2, 30)),
    min_size=2,
    max_size=5,
)


def machine_of(drawn: list[tuple[str, float, int]], window_s: float, slots: int, switch_s: float, seed: int) -> OneCard:
    teams = [Team(str(at), model, weight, clients) for at, (model, weight, clients) in enumerate(drawn)]
    return OneCard(teams, window_s=window_s, slots=slots, switch_s=switch_s, seed=seed)


@settings(max_examples=15, deadline=None)
@given(TEAMS, st.sampled_from([5.0, 24.0]), st.integers(1, 4), st.sampled_from([1.0, 8.0]), st.integers(0, 99))
def test_nobody_starves_whatever_the_weights_t2(
    drawn: list[tuple[str, float, int]], window_s: float, slots: int, switch_s: float, seed: int
) -> None:
    """Each is served again when the others have used what their weights give them, the window, and the switches."""
    machine = machine_of(drawn, window_s, slots, switch_s, seed)
    teams = list(machine.teams.values())
    lightest = min(team.weight for team in teams)
    lead_s = (window_s + 4 / slots + switch_s) / lightest  # of a level before another one
    round_s = sum(max(lead_s * team.weight, 4.0) + switch_s for team in teams) * (1 + switch_s / window_s)
    machine.run(2 * round_s)
    assert all(len(team.waits_s) > 1 for team in teams)


@settings(max_examples=40, deadline=None)
@given(TEAMS, st.sampled_from([5.0, 24.0]), st.integers(1, 4), st.sampled_from([1.0, 8.0]), st.integers(0, 99))
def test_teams_that_wait_throughout_stay_within_the_window_and_a_charge_t1(
    drawn: list[tuple[str, float, int]], window_s: float, slots: int, switch_s: float, seed: int
) -> None:
    """As far as they compete: with equal weights on any models."""
    even = [(model, 1.0, clients + slots) for model, _, clients in drawn]
    machine = machine_of(even, window_s, slots, switch_s, seed).run(400)
    assert max(machine.spreads_s) <= window_s + machine.longest_charge_s + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.sampled_from([5.0, 24.0]), st.integers(1, 4), st.integers(0, 99))
def test_the_one_that_has_had_least_waits_for_the_window_of_each_other_a_drain_and_its_switch_t1(
    others: int, window_s: float, slots: int, seed: int
) -> None:
    """A team with one request now and then, beside floods on models of their own."""
    floods = [Team(str(at), f"model {at}", clients=20) for at in range(others)]
    rare = Team("rare", "its own", every_s=97)
    machine = OneCard([*floods, rare], window_s=window_s, slots=slots, seed=seed, is_metered=True).run(1500)
    longest_s, switch_s = 4.0, machine.switch_s
    turn_s = window_s + longest_s + switch_s  # of each other: its window, its last charge, and its own switch
    assert rare.waits_s
    assert max(rare.waits_s) <= others * turn_s + longest_s + switch_s + longest_s


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([0.1, 1.0, 4.0]))
def test_wrong_estimates_are_made_good(seed: int, slots: int, estimate_s: float) -> None:
    """Half an hour of charges that are far too small or too big ends with equal parts."""
    teams = [Team("a", "one", clients=20), Team("b", "other", clients=20)]
    machine = OneCard(teams, window_s=24, slots=slots, seed=seed, estimate_s=estimate_s).run(1800)
    apart_s = 2 * (24 + machine.longest_charge_s + slots * 4)
    assert abs(teams[0].served_s - teams[1].served_s) <= apart_s
