"""What a router does with what it has borrowed of a team's limits, on a clock that the tests set."""

from __future__ import annotations

import math

from router.core.teams.loan import REFUSED_S, Lent, Loan, Report
from router.core.teams.quotas import Left
from router.core.teams.team import Team, TeamLimits

HOLD_S = 10.0


def loan_of(**limits: int) -> Loan:
    return Loan(Team("coding", limits=TeamLimits(**limits)), HOLD_S)


def lent(**facts: float) -> Lent:
    usual = {"at": 1000, "day": 5, "slots": 0, "slots_left": 0, "requests": 0, "requests_left": 0, "wait_s": 0.0,
             "reset_s": 0.0, "tokens": 0, "tokens_left": 0, "used": 0, "midnight_s": 3600.0, "is_rest": 0}  # fmt: skip
    return Lent(**{**usual, **facts})  # type: ignore[arg-type]


def asked(loan: Loan, now_s: float, waiting: int = 1, each: int = 0, /, **facts: float) -> Report:
    """Ask for requests that wait, and receive an answer."""
    report = loan.report(now_s, [each] * waiting)
    loan.receive(lent(**facts), now_s, now_s)
    return report


def test_requests_that_were_lent_are_made_within_a_second() -> None:
    """The store counts them for a minute and that second; then they go back, and are lent again."""
    loan = loan_of(requests_per_minute=100)
    assert not loan.has_room(0.0, 0)
    asked(loan, 0.0, requests=3)
    loan.take(0.0, 0)
    assert loan.has_room(0.99, 0)
    assert not loan.has_room(1.0, 0)
    report = loan.report(1.0, [0])
    assert (report.seq, report.returned, report.returned_at) == (1, 2, 1000)


def test_a_place_is_lent_until_the_store_gives_it_to_others() -> None:
    """That is counted from when it was asked, so that two routers never use it at once."""
    loan = loan_of(concurrent=5)
    loan.report(0.0, [0])
    assert not loan.has_room(0.5, 0)
    loan.receive(lent(slots=2), 0.0, 0.5)
    loan.take(0.5, 0)
    assert loan.has_room(HOLD_S - 0.1, 0)
    assert not loan.has_room(HOLD_S, 0)


def test_what_was_not_answered_is_told_again_with_the_same_number() -> None:
    """The store may have counted it: tokens that were taken meanwhile get the next number."""
    loan = loan_of(tokens_per_day=1000)
    asked(loan, 0.0, 1, 100, tokens=100)
    loan.take(0.0, 100)
    loan.release(0.1, 100, 80)
    first = loan.report(0.2, [])
    loan.fail(0.3)
    loan.take(0.3, 10)
    loan.release(0.4, 10, 7)
    assert loan.unanswered == 87
    again = loan.report(0.5, [])
    assert (first.seq, first.spent) == (again.seq, again.spent) == (1, 80)
    loan.receive(lent(), 0.5, 0.5)
    assert loan.unanswered == 7
    third = loan.report(0.6, [])
    assert (third.seq, third.spent) == (2, 7)


def test_tokens_that_were_taken_during_a_report_are_missing_in_what_it_lends() -> None:
    """150 of 200 are lent for a request that is under way, which takes 180."""
    loan = loan_of(tokens_per_day=1000)
    asked(loan, 0.0, 1, 150, tokens=150)
    loan.take(0.0, 150)
    loan.report(0.1, [])
    loan.release(0.2, 150, 180)
    loan.receive(lent(tokens=200), 0.1, 0.3)
    assert loan.has_room(0.3, 20)
    assert not loan.has_room(0.3, 21)


def test_the_last_tokens_of_a_day_are_for_a_request_that_expects_more() -> None:
    """If nothing else is under way."""
    loan = loan_of(tokens_per_day=1000)
    asked(loan, 0.0, 1, 500, tokens=30, is_rest=1)
    assert loan.has_room(0.0, 500)
    loan.take(0.0, 500)
    assert not loan.has_room(0.0, 1)


def test_why_and_for_how_long_a_request_is_refused() -> None:
    """By what the store has said, less the time since."""
    loan = loan_of(concurrent=1, requests_per_minute=1, tokens_per_day=10)
    asked(loan, 0.0, slots=0)
    assert loan.refuse(5.0) == ("concurrent", 1.0)
    asked(loan, 0.0, slots=1, wait_s=40.0)
    assert loan.refuse(5.0) == ("requests_per_minute", 35.0)
    asked(loan, 0.0, slots=1, requests=1, used=10)
    assert loan.refuse(5.0) == ("tokens_per_day", 3595.0)
    assert loan.refused(5.0 + REFUSED_S / 2) == ("tokens_per_day", 3595.0 - REFUSED_S / 2)
    assert loan.refused(5.0 + REFUSED_S) is None


def test_a_request_that_is_too_big_does_not_refuse_a_smaller_one() -> None:
    """Tokens are left, but fewer than it may take."""
    loan = loan_of(tokens_per_day=1000)
    asked(loan, 0.0, 1, 500, used=600)
    assert loan.refuse(0.0) == ("tokens_per_day", 1.0)
    assert loan.refused(0.0) is None


def test_what_is_left_counts_what_is_lent_and_free() -> None:
    loan = loan_of(requests_per_minute=100, tokens_per_day=1000)
    asked(loan, 0.0, 1, 50, requests=5, requests_left=60, reset_s=61.0, tokens=100, tokens_left=400)
    loan.take(0.0, 50)
    left = loan.standing(1.0)
    assert left.requests == Left(100, 64, 60.0)
    assert left.tokens == Left(1000, 450, 3599.0)


def test_a_loan_of_which_nothing_is_used_is_given_back_and_then_idle() -> None:
    """Soon if nothing is left for others."""
    loan = loan_of(concurrent=4)
    assert loan.is_idle
    asked(loan, 0.0, slots=2, slots_left=0)
    loan.take(0.0, 0)
    loan.release(0.5, 0, 0)
    assert loan.due_s == 0.1
    report = asked(loan, 5.0, 0, slots=0)
    assert (report.running, report.waiting, report.spare) == (0, 0, 0)
    assert loan.is_idle
    assert loan.due_s == math.inf


def test_a_request_under_way_is_told_again_and_again() -> None:
    """Else its place would go to others."""
    loan = loan_of(concurrent=4)
    asked(loan, 0.0, slots=1, slots_left=3)
    loan.take(0.0, 0)
    asked(loan, 4.0, 0, slots=1, slots_left=3)
    assert 4.0 < loan.due_s <= 4.0 + HOLD_S / 2
    loan.fail(5.0)
    assert loan.due_s == 5.0


def test_a_limit_that_a_reload_has_raised_counts_at_once() -> None:
    """What is left is told by the new one, and the store is told of it."""
    loan = loan_of(tokens_per_day=100)
    asked(loan, 0.0, slots=0, used=100)
    assert loan.why(1.0) == ("tokens_per_day", 3599.0)
    raised = Team("coding", limits=TeamLimits(tokens_per_day=1000))
    loan.follow(raised)
    assert loan.why(1.0) == ("tokens_per_day", 1.0)
    assert loan.report(1.0, [5]).team is raised


def test_before_the_store_has_ever_answered_a_request_is_refused_for_its_loss() -> None:
    """Of no limit is it known that nothing is left."""
    loan = loan_of(concurrent=1)
    loan.report(0.0, [0])
    loan.fail(1.0)
    assert loan.why(1.0) == ("on_loss", 1.0)
