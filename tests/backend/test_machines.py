"""Random machines, a small version of bench/machines.py: no load spills, nothing that fits is refused."""

import pytest

from bench.machines import MODELS, Counts, Run, counted, installed, machine_of, random_machine
from ollama_simulator.clock import run_virtual

FACTS = run_virtual(installed(MODELS))
MACHINES = {
    "four equal cards": Run(machine_of((24564,) * 4), 4, 12),
    "four cards of three sizes": Run(machine_of((16384, 16384, 12288, 8192)), 2, 8),
    "an unequal pair listed in another order": Run(machine_of((24564, 12288), bus=(1, 0)), 1, 8),
    "another unequal pair listed in another order": Run(machine_of((49152, 12288), bus=(1, 0)), 3, 8),
    "cards without flash attention": Run(machine_of((24564, 12288), compute="5.2"), 1, 6),
    "a random machine": Run(random_machine(11), 11, 8),
}


@pytest.mark.parametrize("run", MACHINES.values(), ids=MACHINES)
def test_no_load_spills_and_nothing_that_fits_is_refused(run: Run) -> None:
    """Loads count, not answers: a load that was undone before anybody was answered has cost its time."""
    counts: Counts = run_virtual(counted(run, FACTS))
    assert (counts.spilled, counts.evicted, counts.refused_but_fits) == (0, 0, 0)
    assert counts.loads > 0
