"""The simulated scheduler against recordings of a real Ollama's (`--data DIR` replays others of the same form).

`data/scheduler` has the 101 scenarios from which the rules were derived. `data/scheduler_more` has 92 recorded later in
the same way (v0.33 rc, stand-in runner) to test the rules: 62 random sequences with unusual settings, 30 of
concurrency, failures and options.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_simulator.machine.arithmetic import Arithmetic
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.recorded.recordings import read_models, read_scenarios
from ollama_simulator.recorded.replay import DRAWS, Agreement, replay
from ollama_simulator.recorded.scenario import is_sequential
from ollama_simulator.recorded.standin import IMAGE_GRAPH_BYTES, StandIn

OURS = Path(__file__).parent.parent / "data" / "scheduler"
MORE = Path(__file__).parent.parent / "data" / "scheduler_more"

FOOTPRINT = FootprintArithmetic(image_bytes=IMAGE_GRAPH_BYTES, forgets_num_gpu=True)
"""The router's footprint with two peculiarities of the stand-in runner: its estimate for an image's graph, and that it
ignores num_gpu if everything fits."""


@pytest.fixture(scope="module", params=[OURS, MORE], ids=["known", "more"])
def recordings(request: pytest.FixtureRequest) -> Path:
    """Provide a folder of recordings to replay."""
    named = request.config.getoption("--data")
    folder = Path(named) if named else Path(request.param)
    if named and request.param == MORE:
        pytest.skip("one folder was named")
    if not any((folder / name).exists() for name in ("models.json", "scenarios.json.gz")):
        pytest.skip(f"{folder} holds no scheduler recordings")
    return folder


def replay_all(folder: Path, arithmetic: Arithmetic, *, sequential: bool, draws: int = DRAWS) -> list[Agreement]:
    models = read_models(folder)
    wanted = [scenario for scenario in read_scenarios(folder) if is_sequential(scenario) is sequential]
    return [replay(scenario, models, arithmetic, draws) for scenario in wanted]


def text_of(found: list[Agreement]) -> str:
    return "\n".join(f"{one.scenario}: {'; '.join(one.differences)}" for one in found if not one.agrees)


def test_rules_agree_with_every_sequential_recording(recordings: Path) -> None:
    """With the recorded runner's own arithmetic only the scheduler's rules are tested: they always hold."""
    found = replay_all(recordings, StandIn(), sequential=True)
    assert found and all(one.agrees for one in found), text_of(found)


def test_rules_agree_with_recordings_of_concurrency_and_failures(recordings: Path) -> None:
    """Queues, clients that leave, crashes, late memory: in at least 95 % the same residents after each step."""
    found = replay_all(recordings, StandIn(), sequential=False)
    assert sum(one.agrees for one in found) >= 0.95 * len(found), text_of(found)


def test_footprint_agrees_with_sequential_recordings(recordings: Path) -> None:
    """With the router's own footprint at least 97 % of the known sequences agree from start to end.

    The rest differs where the stand-in runner's memory is not that of llama.cpp: wide attention in a pipeline over
    cards, quantised KV with several slots, flash attention off, embedding models. Other recordings may consist of only
    these.
    """
    if recordings != OURS:
        pytest.skip("the bound is one on the known recordings")
    found = replay_all(recordings, FOOTPRINT, sequential=True, draws=20)
    assert sum(one.agrees for one in found) >= 0.97 * len(found), text_of(found)
