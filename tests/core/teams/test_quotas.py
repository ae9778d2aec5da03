"""What teams may use at most, on a clock that the tests set."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.core.teams.memory_quotas import MOST_TEAMS, MemoryQuotas
from router.core.teams.quotas import DAY_S, LEASE_S, Granted, Refused
from router.core.teams.team import Team, TeamLimits

NOON_S = 20_000 * DAY_S + DAY_S / 2


class Clock:
    """Loop time, and the Unix time that goes with it: noon at 0, unless the clock is set."""

    def __init__(self) -> None:
        self.now_s = self.set_by_s = 0.0

    def now(self) -> float:
        return self.now_s

    def unix_now(self) -> float:
        return NOON_S + self.now_s + self.set_by_s


def started(**limits: int) -> tuple[MemoryQuotas, Team, Clock]:
    clock = Clock()
    return MemoryQuotas(clock.now, clock.unix_now), Team("coding", limits=TeamLimits(**limits)), clock


def admitted(quotas: MemoryQuotas, team: Team, request: str, tokens: int = 0) -> bool:
    return isinstance(quotas.admit(team, request, tokens), Granted)


def test_only_so_many_requests_at_a_time() -> None:
    """The next one as soon as one has ended."""
    quotas, team, clock = started(concurrent=2)
    assert admitted(quotas, team, "1")
    assert admitted(quotas, team, "2")
    clock.now_s = 1.0
    assert quotas.admit(team, "3", 0) == Refused("concurrent", 4.0, quotas.left(team))
    quotas.settle("1", 10)
    assert admitted(quotas, team, "4")
    assert not admitted(quotas, team, "5")


def test_when_to_come_back_is_when_one_of_those_under_way_should_end() -> None:
    """By what requests of the team took before."""
    quotas, team, clock = started(concurrent=1)
    for number in range(50):
        assert admitted(quotas, team, f"{number}")
        clock.now_s += 20
        quotas.settle(f"{number}", 0)
    assert admitted(quotas, team, "long")
    clock.now_s += 5
    refused = quotas.admit(team, "next", 0)
    assert isinstance(refused, Refused)
    assert 14 < refused.retry_s <= 15
    clock.now_s += 60
    refused = quotas.admit(team, "next", 0)
    assert isinstance(refused, Refused)
    assert refused.retry_s == 1


def test_only_so_many_requests_a_minute() -> None:
    """Refused ones do not count; the answer says when the next one may come."""
    quotas, team, clock = started(requests_per_minute=2)
    for number in range(2):
        clock.now_s = 10.0 * number
        granted = quotas.admit(team, f"{number}", 0)
        assert isinstance(granted, Granted)
        assert granted.requests is not None
        assert granted.requests.remaining == 1 - number
        quotas.settle(f"{number}", 0)
    clock.now_s = 15.0
    assert quotas.admit(team, "3", 0) == Refused("requests_per_minute", 45.0, quotas.left(team))
    clock.now_s = 60.0
    assert admitted(quotas, team, "4")
    assert not admitted(quotas, team, "5")


def test_only_so_many_tokens_a_day_by_utc() -> None:
    """What was used until midnight is forgotten then."""
    quotas, team, clock = started(tokens_per_day=1000)
    assert admitted(quotas, team, "1", 400)
    quotas.settle("1", 1000)
    assert quotas.admit(team, "2", 1) == Refused("tokens_per_day", DAY_S / 2, quotas.left(team))
    clock.now_s = DAY_S / 2 - 1
    assert not admitted(quotas, team, "3", 1)
    clock.now_s = DAY_S / 2
    assert admitted(quotas, team, "4", 1)


def test_tokens_that_requests_under_way_may_take_are_reserved() -> None:
    """Or many at a time would each find the same rest of the day."""
    quotas, team, _ = started(tokens_per_day=1000)
    assert admitted(quotas, team, "1", 600)
    assert not admitted(quotas, team, "2", 600)
    assert admitted(quotas, team, "3", 300)
    quotas.settle("1", 100)
    left = quotas.left(team).tokens
    assert left is not None
    assert (left.limit, left.remaining, left.reset_s) == (1000, 600, DAY_S / 2)
    assert admitted(quotas, team, "4", 600)


def test_the_rest_of_a_day_is_given_to_a_request_that_may_take_more() -> None:
    """Few answers are as long as they may be; but not to two of them."""
    quotas, team, _ = started(tokens_per_day=1000)
    quotas.restore("coding", 900)
    assert admitted(quotas, team, "1", 32_000)
    left = quotas.left(team).tokens
    assert left is not None
    assert left.remaining == 0
    assert not admitted(quotas, team, "2", 1)
    quotas.settle("1", 50)
    assert admitted(quotas, team, "3", 32_000)


def test_a_request_is_settled_once() -> None:
    """Whoever says so again, or knows of no such request."""
    quotas, team, _ = started(tokens_per_day=1000, concurrent=5)
    assert admitted(quotas, team, "1", 10)
    for _ in range(3):
        quotas.settle("1", 400)
    quotas.settle("unknown", 400)
    left = quotas.left(team).tokens
    assert left is not None
    assert left.remaining == 600


def test_what_is_never_settled_is_back_after_its_lease_t5() -> None:
    """Whoever held it was killed between admit and settle: all of it comes back, and nothing before."""
    quotas, team, clock = started(concurrent=2, tokens_per_day=1000)
    assert admitted(quotas, team, "1", 500)
    assert admitted(quotas, team, "2", 500)
    clock.now_s = LEASE_S - 1
    assert not admitted(quotas, team, "3", 1)
    clock.now_s = LEASE_S
    left = quotas.left(team).tokens
    assert left is not None
    assert left.remaining == 1000
    assert admitted(quotas, team, "4", 500)
    assert admitted(quotas, team, "5", 500)
    assert not admitted(quotas, team, "6", 1)


def test_a_request_that_outlives_its_lease_still_counts_its_tokens_and_gives_nothing_back_twice() -> None:
    """An answer of more than an hour."""
    quotas, team, clock = started(concurrent=1, tokens_per_day=1000)
    assert admitted(quotas, team, "long", 300)
    clock.now_s = LEASE_S
    assert admitted(quotas, team, "2", 100)
    quotas.settle("long", 250)
    left = quotas.left(team).tokens
    assert left is not None
    assert left.remaining == 1000 - 250 - 100
    assert not admitted(quotas, team, "3")


def test_teams_do_not_share_limits_and_a_reload_keeps_what_was_used() -> None:
    """A team is known by its name; the new one may have other limits, or none."""
    quotas, team, _ = started(requests_per_minute=3, tokens_per_day=100)
    other = Team("chat", limits=TeamLimits(requests_per_minute=3))
    for number in range(3):
        assert admitted(quotas, team, f"{number}", 10)
    assert admitted(quotas, other, "other")
    assert not admitted(quotas, team, "4")
    more = Team("coding", limits=TeamLimits(requests_per_minute=4, tokens_per_day=45))
    assert admitted(quotas, more, "5", 10)
    assert not admitted(quotas, more, "6", 10)
    free = Team("coding", limits=TeamLimits(concurrent=100))
    assert admitted(quotas, free, "7", 10)
    assert quotas.left(free).requests is quotas.left(free).tokens is None


def test_a_team_whose_file_is_replaced_keeps_what_it_has_used_as_long_as_it_counts() -> None:
    """A reload may come while its file is missing."""
    quotas, team, clock = started(requests_per_minute=2, tokens_per_day=100)
    assert admitted(quotas, team, "1", 10)
    quotas.settle("1", 100)
    quotas.keep_teams([])
    assert not admitted(quotas, team, "2", 10)
    clock.now_s += DAY_S / 2
    assert admitted(quotas, team, "3")
    quotas.settle("3", 0)
    assert admitted(quotas, team, "4")
    quotas.settle("4", 0)
    quotas.keep_teams([])
    assert not admitted(quotas, team, "5")
    clock.now_s += 60.0
    quotas.keep_teams([])
    assert not quotas._uses


def test_any_number_of_teams_takes_bounded_memory() -> None:
    """Those with something under way are kept."""
    quotas, team, _ = started(concurrent=1)
    assert admitted(quotas, team, "held")
    for number in range(2 * MOST_TEAMS):
        quotas.left(Team(f"team {number}", limits=TeamLimits(concurrent=1)))
    assert len(quotas._uses) <= MOST_TEAMS
    assert not admitted(quotas, team, "next")


def test_which_limits_need_a_count_per_request() -> None:
    """A team without any costs nothing; the queue counts its own."""
    assert not TeamLimits().is_metered
    assert not TeamLimits(waiting=3, evictions_per_minute=1).is_metered
    assert all(TeamLimits(**{key: 1}).is_metered for key in ("concurrent", "requests_per_minute", "tokens_per_day"))


class Counts(RuleBasedStateMachine):
    """Any order of requests, ends and pauses: no count is ever above its limit, negative or lost."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas, self.team, self.clock = started(concurrent=3, requests_per_minute=7, tokens_per_day=2000)
        self.number = 0
        self.open: dict[str, float] = {}
        self.granted_s: list[float] = []

    @rule(tokens=st.integers(0, 900))
    def ask(self, tokens: int) -> None:
        self.number += 1
        if admitted(self.quotas, self.team, f"{self.number}", tokens):
            self.open[f"{self.number}"] = self.clock.now_s
            self.granted_s.append(self.clock.now_s)

    @rule(tokens=st.integers(0, 300), data=st.data())
    def end(self, tokens: int, data: st.DataObject) -> None:
        if self.open:
            request = data.draw(st.sampled_from(sorted(self.open)))
            del self.open[request]
            self.quotas.settle(request, tokens)
            self.quotas.settle(request, tokens)

    @rule(seconds=st.sampled_from([0.1, 5.0, 30.0, 60.0, LEASE_S, DAY_S]))
    def pass_by(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def counts_are_right(self) -> None:
        now_s = self.clock.now_s
        held = [since_s for since_s in self.open.values() if since_s > now_s - LEASE_S]
        assert len(held) <= 3
        assert sum(at_s > now_s - 60 for at_s in self.granted_s) <= 7
        left = self.quotas.left(self.team)
        assert left.requests is not None
        assert left.tokens is not None
        assert left.requests.remaining == 7 - sum(at_s > now_s - 60 for at_s in self.granted_s)
        assert 0 <= left.tokens.remaining <= 2000
        if not held and len(self.granted_s) < 7:
            assert admitted(self.quotas, self.team, "probe") or left.tokens.remaining == 0
            self.quotas.settle("probe", 0)
            self.granted_s.append(now_s)


TestCounts = Counts.TestCase
TestCounts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_of_two_requests_that_are_never_settled_each_ends_after_its_own_lease() -> None:
    """The later one goes on to count when the earlier one has lapsed."""
    quotas, team, clock = started(concurrent=2)
    assert admitted(quotas, team, "first")
    clock.now_s = LEASE_S / 2
    assert admitted(quotas, team, "second")
    clock.now_s = LEASE_S
    assert admitted(quotas, team, "third")
    assert not admitted(quotas, team, "fourth")
    clock.now_s = 1.5 * LEASE_S
    assert admitted(quotas, team, "fifth")


def test_what_was_used_before_a_start_adds_up() -> None:
    """It may be told in parts."""
    quotas, team, _ = started(tokens_per_day=100)
    quotas.restore(team.name, 30)
    quotas.restore(team.name, 20)
    left = quotas.left(team).tokens
    assert left is not None
    assert left.remaining == 50


@pytest.mark.parametrize("days", [-3650, -1, 1, 3650])
def test_a_clock_that_is_wrong_for_a_while_gives_no_new_day_j10(days: int) -> None:
    """What was used of the day is used when the clock is right again; a clock that goes back gives nothing at all."""
    quotas, team, clock = started(tokens_per_day=1000)
    assert admitted(quotas, team, "1")
    quotas.settle("1", 900)
    clock.set_by_s = days * DAY_S
    assert admitted(quotas, team, "2")
    quotas.settle("2", 50)
    assert quotas.used(team) == (950 if days < 0 else 50)
    clock.set_by_s = 0.0
    assert quotas.used(team) == 900
    clock.now_s += DAY_S
    assert quotas.used(team) == (50 if days == 1 else 0)


def test_a_clock_that_steps_back_over_midnight_and_comes_again_counts_each_day_j10() -> None:
    """By an hour, as with a time zone that somebody has confused."""
    quotas, team, clock = started(tokens_per_day=1000)
    clock.now_s = DAY_S / 2 - 60
    quotas.admit(team, "1", 0)
    quotas.settle("1", 700)
    clock.now_s += 120
    quotas.admit(team, "2", 0)
    quotas.settle("2", 30)
    clock.set_by_s = -3600.0
    assert quotas.used(team) == 700
    clock.now_s += 3600
    assert quotas.used(team) == 30
