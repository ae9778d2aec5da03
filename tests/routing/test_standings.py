"""Where a chain stands, and how long memory must have been free before it returns."""

import pytest

from router.core.decision.chain import Chain
from router.core.decision.upgrades import MOST_PATIENCE
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from router.routing.standings import MOST_CHAINS, VAIN_S, Standings
from tests.core.facts import chain_of

CHAIN = chain_of("big:70b", "middle:30b", "small:3b")


class Clock:
    def __init__(self):
        self.now_s = 0.0


def standings():
    clock = Clock()
    return clock, Standings(lambda: clock.now_s)


def served(chains, *bigger, chain=CHAIN):
    """Note a request that is served by the variant after those with the verdicts `bigger`."""
    kinds = (*bigger, VerdictKind.RESIDENT)
    verdicts = tuple(Verdict(variant, kind) for variant, kind in zip(chain.variants, kinds, strict=False))
    outcome = Outcome.FALLBACK if bigger else Outcome.EXACT
    chains.note_served(chain, Decision(outcome, verdicts[-1], verdicts))


def test_a_chain_has_moved_down_until_its_first_variant_serves_again():
    """Other chains are not concerned."""
    _, chains = standings()
    assert not chains.is_moved_down(CHAIN)
    served(chains, VerdictKind.TOO_BIG)
    assert (chains.is_moved_down(CHAIN), chains.is_moved_down(chain_of("other"))) == (True, False)
    served(chains)
    assert not chains.is_moved_down(CHAIN)


def test_each_return_in_vain_doubles_the_patience_up_to_a_bound():
    """The first one is made at once; memory that comes and goes is not chased."""
    clock, chains = standings()
    found = []
    for _ in range(7):
        served(chains, VerdictKind.TOO_BIG)
        found.append(chains.patience(CHAIN))
        served(chains)
        clock.now_s += VAIN_S - 1
    assert found == [0.0, 1.0, 2.0, 4.0, 8.0, MOST_PATIENCE, MOST_PATIENCE]


def test_a_return_that_lasted_makes_up_for_those_in_vain():
    """The next one waits no longer than the first."""
    clock, chains = standings()
    for wait_s in (1, VAIN_S):
        served(chains, VerdictKind.TOO_BIG)
        served(chains)
        clock.now_s += wait_s
    served(chains, VerdictKind.TOO_BIG)
    assert chains.patience(CHAIN) == 0.0


@pytest.mark.parametrize("unable", [VerdictKind.INCAPABLE, VerdictKind.CONTEXT])
def test_a_request_that_the_first_variant_can_never_serve_says_nothing(unable):
    """Else a client that sends a picture now and then would make every return seem in vain."""
    clock, chains = standings()
    for _ in range(4):
        served(chains, unable)
        assert not chains.is_moved_down(CHAIN)
        clock.now_s += 1
        served(chains)
    served(chains, VerdictKind.TOO_BIG)
    served(chains, unable)
    assert (chains.is_moved_down(CHAIN), chains.patience(CHAIN)) == (True, 0.0)


def test_the_first_variant_that_is_installed_is_the_first():
    """One that was never pulled is not what its chain has moved down from."""
    _, chains = standings()
    served(chains, VerdictKind.MISSING)
    assert not chains.is_moved_down(CHAIN)
    served(chains, VerdictKind.MISSING, VerdictKind.HELD_BACK)
    assert chains.is_moved_down(CHAIN)
    served(chains, VerdictKind.MISSING)
    assert not chains.is_moved_down(CHAIN)


def test_a_chain_stands_where_it_does_under_each_of_its_names():
    """A pattern's names are the clients' own."""
    _, chains = standings()
    served(chains, VerdictKind.TOO_BIG, chain=Chain("gpt-4", CHAIN.variants))
    assert chains.is_moved_down(Chain("gpt-5", CHAIN.variants))


def test_the_standings_of_only_so_many_chains_are_kept():
    """The oldest is forgotten."""
    _, chains = standings()
    served(chains, VerdictKind.TOO_BIG)
    for at in range(MOST_CHAINS):
        served(chains, VerdictKind.TOO_BIG, chain=chain_of(f"big:{at}b", f"small:{at}b"))
    assert not chains.is_moved_down(CHAIN)
    assert chains.is_moved_down(chain_of("big:0b", "small:0b"))
