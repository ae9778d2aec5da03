"""What Ollama books for a runner on a machine without GPU. Of a CPU with AMX, the `AMX` buffers count as GPU memory."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_simulator.machine.arithmetic import RunnerSpec
from router.core.memory.compute import compute_bytes
from router.core.memory.footprint import is_embedding, layer_kv_bytes
from router.core.memory.options import MemoryOptions
from router.core.memory.shape import Shape, shape_of
from router.core.memory.weights import tensor_bytes
from router.core.ollama.model import ModelFacts, Tensor
from router.core.units import MIB

# Bytes per block as the kernels pack it (some types get 2 or 4 bytes of compensation) and weights per block.
BLOCKS = {"F16": (2, 1), "Q4_0": (18, 32), "Q4_1": (20, 32), "Q8_0": (38, 32), "Q4_K": (148, 256), "Q5_K": (180, 256)}
BLOCKS |= {"Q6_K": (210, 256), "IQ4_XS": (138, 256)}
_WIDTHS_BESIDE_A_BLOCK = 6
"""On a CPU, the attention of a small model peaks at this many rows of the embedding's width."""
_INPUT_BYTES = 24
_SECOND_CACHE_BYTES = 16


def booked_bytes(spec: RunnerSpec, *, has_amx: bool) -> tuple[int, int]:
    """Return `size` and `size_vram` of `/api/ps`. Layers count as offloaded by the number asked, even without a GPU,
    and with all of them Ollama takes the GPU's share for the whole."""
    facts = spec.model.facts
    on_gpu = amx_bytes(facts.tensors) if has_amx else 0
    layers = int(facts.value("block_count", 0)) + 1
    if not 0 <= spec.num_gpu < layers:
        return on_gpu, on_gpu
    return on_gpu + sum(_logged(size) for size in _host_buffers(spec, has_amx=has_amx)), on_gpu


def _logged(size: int) -> int:
    """Return bytes as Ollama reads them from the log: MiB with two decimals."""
    return int(round(size / MIB, 2) * MIB)


def _host_buffers(spec: RunnerSpec, *, has_amx: bool) -> list[int]:
    """Return the buffers in main memory: weights, the last cache in the log, outputs, the graph."""
    facts, shape = spec.model.facts, shape_of(spec.model.facts)
    batch = min(spec.num_batch, spec.num_ctx * spec.num_parallel)
    options = MemoryOptions(num_ctx=spec.num_ctx, num_batch=batch, num_parallel=spec.num_parallel)
    taken = _taken_by_amx(facts.tensors) if has_amx else []
    plain = [tensor for tensor in facts.tensors if tensor not in taken or tensor.name.startswith("token_embd")]
    caches = {False: 0, True: 0}
    for layer in shape.layers if shape.arch.has_cache else ():
        caches[layer.is_sliding] += layer_kv_bytes(shape, layer, options)
    graph = _graph_bytes(facts, shape, options)
    outputs = shape.graph.vocabulary * 4 * spec.num_parallel
    return [sum(map(tensor_bytes, plain)), caches[True] or caches[False], outputs, graph]


def _graph_bytes(facts: ModelFacts, shape: Shape, options: MemoryOptions) -> int:
    """Bytes of the compute buffer: a block holds one more row than on a GPU, and the inputs lie in it."""
    found = compute_bytes(shape, options, is_embedding=is_embedding(facts, options), backend="plain", copies=1)
    row, body = shape.graph.embedding, shape.graph.body
    found += 4 * options.ubatch * (max(body + row, _WIDTHS_BESIDE_A_BLOCK * row) - body)
    if not shape.arch.has_cache:
        return found
    return found + options.ubatch * (_INPUT_BYTES + _SECOND_CACHE_BYTES * (len(shape.mask_kinds) - 1))


def amx_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the AMX buffer as Ollama reads it from the log (MiB with two decimals)."""
    total = 0
    for tensor in _taken_by_amx(tensors):
        size, weights = BLOCKS[tensor.type]
        total += tensor.shape[0] * tensor.shape[1] // weights * size
    return _logged(total)


def _taken_by_amx(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the matrices that the kernels take: of a multiple of 32 rows. The token embedding, which stays in main
    memory too, is taken only if it doubles as the output matrix."""
    has_output = any(tensor.name == "output.weight" for tensor in tensors)
    return [
        tensor
        for tensor in tensors
        if tensor.type in BLOCKS
        and len(tensor.shape) == 2
        and tensor.shape[1] % 32 == 0
        and not (tensor.name.startswith("token_embd") and has_output)
    ]
