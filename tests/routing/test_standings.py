"""Where a chain stands, and how long memory must have been free before it returns."""

from router.core.decision.upgrades import MOST_PATIENCE
from router.core.decision.verdict import Decision, Outcome
from router.routing.standings import VAIN_S, Standings


class Clock:
    def __init__(self):
        self.now_s = 0.0


def standings():
    clock = Clock()
    return clock, Standings(lambda: clock.now_s)


def served(chains, outcome):
    chains.note_served("chain", Decision(outcome, None, ()))


def test_a_chain_has_moved_down_until_its_first_variant_serves_again():
    """Other chains are not concerned."""
    _, chains = standings()
    assert not chains.is_moved_down("chain")
    served(chains, Outcome.FALLBACK)
    assert (chains.is_moved_down("chain"), chains.is_moved_down("other")) == (True, False)
    served(chains, Outcome.EXACT)
    assert not chains.is_moved_down("chain")


def test_each_return_in_vain_doubles_the_patience_up_to_a_bound():
    """Memory that comes and goes is not chased."""
    clock, chains = standings()
    found = []
    for _ in range(6):
        served(chains, Outcome.FALLBACK)
        found.append(chains.patience("chain"))
        served(chains, Outcome.EXACT)
        clock.now_s += VAIN_S - 1
    assert found == [1.0, 2.0, 4.0, 8.0, MOST_PATIENCE, MOST_PATIENCE]


def test_a_return_that_lasted_makes_up_for_those_in_vain():
    """The next one waits no longer than the first."""
    clock, chains = standings()
    for wait_s in (1, VAIN_S):
        served(chains, Outcome.FALLBACK)
        served(chains, Outcome.EXACT)
        clock.now_s += wait_s
    served(chains, Outcome.FALLBACK)
    assert chains.patience("chain") == 1.0
