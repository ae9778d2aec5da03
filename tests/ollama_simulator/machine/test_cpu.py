"""Sizes in `/api/ps` of a server without a card, as a real one measured them."""

from __future__ import annotations

import pytest

from ollama_simulator.machine.arithmetic import RunnerSpec
from ollama_simulator.machine.cpu import booked_bytes
from ollama_simulator.models.library import tiny_library

MODELS = tiny_library().models


def _spec(name: str, num_gpu: int, num_ctx: int, num_batch: int) -> RunnerSpec:
    sim = MODELS[f"registry.ollama.ai/library/{name}"].sim
    assert sim is not None
    return RunnerSpec(model=sim, num_ctx=num_ctx, num_batch=num_batch, num_gpu=num_gpu)


@pytest.mark.parametrize(
    ("name", "num_gpu", "num_ctx", "num_batch", "size"),
    [
        ("tiny-loop:latest", 0, 4096, 512, 22020095),
        ("tiny-loop:latest", 1, 4096, 512, 22020095),
        ("tiny-loop:latest", 0, 1024, 512, 12582911),
        ("tiny-loop:latest", 0, 8192, 1024, 49293557),
        ("tiny-loop:latest", 0, 4096, 64, 12834570),
        ("tiny-loop:latest", 0, 512, 128, 5892996),
        ("tiny-loop:latest", 0, 300, 512, 8189378),
        ("tiny-embed:latest", 0, 128, 2048, 188743),
        ("tiny-loop:latest", 2, 4096, 512, 0),
        ("tiny-loop:latest", 999, 4096, 512, 0),
        ("tiny-loop:latest", -1, 4096, 512, 0),
    ],
)
def test_a_runner_that_offloads_less_than_all_layers_counts_with_main_memory(
    name: str, num_gpu: int, num_ctx: int, num_batch: int, size: int
) -> None:
    """And one that offloads them all counts with nothing, though there is no card."""
    assert booked_bytes(_spec(name, num_gpu, num_ctx, num_batch), has_amx=False) == (size, 0)


def test_amx_buffers_count_as_gpu_memory_with_any_number_of_layers() -> None:
    """The weights that the AMX buffers do not take are in main memory."""
    assert booked_bytes(_spec("tiny-loop:latest", -1, 4096, 512), has_amx=True) == (2296381, 2296381)
    size, on_gpu = booked_bytes(_spec("tiny-loop:latest", 0, 4096, 512), has_amx=True)
    assert on_gpu == 2296381 and abs(size - 22020095) < 20_000
