"""What models say of themselves takes a bounded amount of memory, however many are pulled and whatever they say."""

import gc

import pytest

from router.adapters.held import held_bytes
from router.adapters.leaving import SOON_S
from router.adapters.shown_models import ShownModels
from router.core.memory.footprint import footprint
from router.core.memory.options import MemoryOptions
from router.core.ollama.model import ModelFacts

SIZE = 987_654_321
"""Of no model of any other test."""


def facts_of(number, tensors=200, **show):
    rows = [{"name": f"blk.{at}.attn_q.weight", "type": "Q4_K", "shape": [4096, 4096]} for at in range(tensors)]
    info = {"general.architecture": "llama", "llama.block_count": 2}
    row = {"name": f"m{number}", "digest": f"{number}", "size": SIZE}
    return ModelFacts.of_show(row, {"tensors": rows, "model_info": info, **show})


def test_models_that_are_not_listed_any_more_take_a_bounded_amount_of_memory():
    """Nothing that was worked out for them holds them either; the last of them are still known."""
    one = held_bytes(facts_of(0))
    kept = ShownModels(most_unlisted_bytes=10 * one)
    for number in range(200):
        kept.list_only({f"{number}"})
        facts = kept.keep(f"{number}", facts_of(number))
        footprint(facts, MemoryOptions(num_ctx=4096))
    del facts
    while kept.leaving.let_go() == SOON_S:
        pass
    gc.collect()
    assert sum(isinstance(found, ModelFacts) and found.size_bytes == SIZE for found in gc.get_objects()) <= 30
    assert "199" in kept and "195" in kept and "100" not in kept


@pytest.mark.parametrize("models", [32, 320])
def test_what_is_kept_of_models_that_are_gone_is_a_share_of_what_may_be_kept_of_all(models):
    one = held_bytes(facts_of(100))
    kept = ShownModels(most_bytes=models * one)
    for number in range(100, 400):
        kept.list_only({f"{number}"})
        kept.keep(f"{number}", facts_of(number))
    gone = sum(f"{number}" in kept for number in range(100, 399))
    assert models / 32 <= gone <= models / 16


def test_listed_models_beyond_the_bound_are_sized_by_their_download():
    kept = ShownModels(most_bytes=10 * held_bytes(facts_of(0)))
    kept.list_only({f"{number}" for number in range(50)})
    found = [kept.keep(f"{number}", facts_of(number)) for number in range(50)]
    assert found[0].tensors
    assert not found[-1].tensors
    assert "too much memory" in found[-1].doubt
    assert sum(map(held_bytes, found)) < 20 * held_bytes(facts_of(0))
    kept.list_only({f"{number}" for number in range(50)})
    assert all(f"{number}" in kept for number in range(50))  # and are not shown again and again


def test_of_a_model_that_says_it_can_do_too_much_little_is_kept():
    """What no router knows is left out, and the rest of its metadata counts."""
    facts = ShownModels().keep("1", facts_of(1, capabilities=["c" * 1000 + str(at) for at in range(5000)]))
    assert facts.doubt == ""
    assert held_bytes(facts) < 200_000


@pytest.mark.parametrize(
    "show",
    [
        {"model_info": {"general.architecture": "llama", **{f"llama.k{at}": "x" * 1000 for at in range(5000)}}},
        {"parameters": "\n".join(f'stop "{at}{"x" * 500}"' for at in range(4000)) + "\nnum_gpu 3"},
        {"details": {"family": "x" * (4 << 20)}},
        {"projector_info": {"x": ["y" * 1000] * 4000}},
    ],
    ids=["metadata", "parameters", "details", "projector"],
)
def test_a_model_that_says_too_much_is_sized_by_its_download(show):
    kept = ShownModels()
    facts = kept.keep("1", facts_of(1, **show))
    assert kept.get("1") is facts
    assert facts.doubt == "its metadata takes too much memory"
    assert facts.name == "m1"
    assert held_bytes(facts) < 20_000


def test_what_comes_back_to_the_list_is_not_measured_again():
    """A list that is empty for a moment sends a thousand models away and back, each with hundreds of tensors."""
    kept, one = ShownModels(), Counted(facts_of(1))
    kept.keep("1", one)
    before = one.reads
    kept.list_only(set())
    kept.list_only({"1"})
    assert kept.get("1") is one
    assert one.reads == before > 0


class Counted:
    """Facts that count how often their tensors were gone through."""

    def __init__(self, facts):
        self._facts, self.reads = facts, 0

    def __getattr__(self, name):
        self.reads += name == "tensors"
        return getattr(self._facts, name)
