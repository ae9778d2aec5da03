"""Two fronts, two nodes, and all that happens to them: nothing spills, and each request is answered."""

import pytest

from tests.routing.front.stories import rounds


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_random_rounds_nothing_spills_and_no_request_is_lost_n1(tmp_path, seed):
    """Only answers of which bytes had been sent break, if their node is cut off."""
    told = rounds(seed, 6, tmp_path)
    assert told.spilled == told.lost == []
    assert told.asked > 12
    assert told.loads
