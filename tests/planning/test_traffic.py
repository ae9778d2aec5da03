"""The traffic of the benches repeats exactly, and every model that it names exists."""

from __future__ import annotations

import pytest

from ollama_simulator.models.library import known_tags
from router.planning.traffic import KINDS, family_chain


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_requests_each_time(kind: str) -> None:
    """And another seed others."""
    assert KINDS[kind](1) == KINDS[kind](1)
    assert KINDS[kind](1) != KINDS[kind](2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_requests_are_in_order_and_of_a_size_that_a_bench_can_play(kind: str, seed: int) -> None:
    """A few hundred within an hour; every model of a chain is in the library."""
    traffic = KINDS[kind](seed)
    times = [job.at_s for job in traffic.jobs]
    assert times == sorted(times)
    assert 200 <= len(times) <= 1000
    assert times[-1] < 3600
    assert set(traffic.models) <= set(known_tags())
    assert {job.model for job in traffic.jobs} == set(traffic.chains)


def test_a_chain_is_the_model_and_the_smaller_ones_of_its_family() -> None:
    """A model without a family stands alone."""
    assert family_chain("qwen3:14b") == ("qwen3:14b", "qwen3:8b", "qwen3:4b")
    assert family_chain("bge-m3:567m") == ("bge-m3:567m",)
