"""The memory arithmetic of a stand-in runner, for replaying the scheduler recordings that were made with it.

It differs by some MiB from llama.cpp, which `llamacpp.py` follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ollama_simulator.machine.arithmetic import Buffer, LoadFailure, RunnerPlan, RunnerSpec, SimModel
from ollama_simulator.machine.fit import CPU, Layout, buffers_of, by_share, fit, layout_of
from router.core.memory.weights import tensor_bytes
from router.core.ollama.model import ModelFacts
from router.core.units import MIB

KV_BYTES = {
    "f32": 4.0,
    "q8_0": 34 / 32,
    "q5_1": 0.75,
    "q5_0": 22 / 32,
    "q4_1": 0.625,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gptoss": 2, "gpt-oss": 2, "cohere2": 4}
IMAGE_GRAPH_BYTES = 248 * MIB


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties of a model that the arithmetic uses."""

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    output: int
    token_embedding: int
    tower: int
    biggest: int
    sliding: tuple[bool, ...]
    window: int
    kv_heads: tuple[int, ...]
    head_sizes: int
    heads: int
    embedding: int
    feed_forward: int
    is_moe: bool
    has_cache: bool
    vocab: int


@lru_cache(maxsize=256)
def shape_of(facts: ModelFacts) -> Shape:
    """Return the shape from metadata and tensor table."""
    value, count = facts.value, int(facts.value("block_count", 1))
    layers, experts = [0] * count, [0] * count
    output = token_embedding = tower = biggest = 0
    for tensor in facts.tensors:
        size, (head, _, rest) = tensor_bytes(tensor), tensor.name.partition(".")
        if head == "blk":
            il = int(rest.partition(".")[0])
            layers[il] += size
            experts[il] += size if "_exps" in rest else 0
            biggest = max(biggest, size)
        elif head in ("v", "mm", "a"):
            tower += size
        elif head == "token_embd":
            token_embedding = size
        else:
            output += size
    if not any(tensor.name == "output.weight" for tensor in facts.tensors):
        output += token_embedding
    heads = _most(value("attention.head_count", 1))
    embedding = int(value("embedding_length", 1024))
    kv_heads = value("attention.head_count_kv", heads)
    feed_forward, is_moe = _most(value("feed_forward_length", 4 * embedding)), bool(value("expert_count", 0))
    if is_moe:
        feed_forward = int(value("expert_used_count", 1)) * int(value("expert_feed_forward_length", feed_forward))
    return Shape(
        layers=tuple(layers),
        experts=tuple(experts),
        output=output,
        token_embedding=token_embedding,
        tower=tower,
        biggest=biggest,
        sliding=_sliding(facts, count),
        window=int(value("attention.sliding_window", 0)),
        kv_heads=tuple(kv_heads) if isinstance(kv_heads, (list, tuple)) else (int(kv_heads),) * count,
        head_sizes=sum(int(value(f"attention.{side}_length", embedding // heads)) for side in ("key", "value")),
        heads=heads,
        embedding=embedding,
        feed_forward=feed_forward,
        is_moe=is_moe,
        has_cache=value("pooling_type") is None,
        vocab=int(value("vocab_size", 0)),
    )


def _most(number: int | Sequence[int]) -> int:
    return int(number) if isinstance(number, int) else max(number)


def _sliding(facts: ModelFacts, count: int) -> tuple[bool, ...]:
    pattern = facts.value("attention.sliding_window_pattern", PERIODS.get(facts.arch, 0))
    if not facts.value("attention.sliding_window", 0) or not pattern:
        return (False,) * count
    if isinstance(pattern, (list, tuple)):
        return tuple(bool(entry) for entry in pattern)
    return tuple(il % pattern < pattern - 1 for il in range(count))


def _padded(cells: int) -> int:
    return (cells + 255) // 256 * 256


class _Costs:
    """Bytes of one model with given options."""

    def __init__(self, spec: RunnerSpec) -> None:
        self.spec, self.shape = spec, shape_of(spec.model.facts)
        self.weights, self.experts = (*self.shape.layers, self.shape.output), self.shape.experts
        self.is_single = spec.is_single
        self.cells = _padded(spec.num_ctx)
        self.batch = min(spec.num_batch, max(spec.num_ctx * spec.num_parallel, 1))
        self.kv_bytes = KV_BYTES.get(spec.kv_type, 2.0)
        self.window_cells = min(self.cells, _padded(self.shape.window + self.batch))
        self.is_sliding = any(self.shape.sliding)

    def cache(self, layer: int, *, sliding: bool) -> int:
        """Bytes of K and V of one layer, in the cache of full or of sliding layers."""
        shape = self.shape
        if layer >= len(shape.layers) or not shape.has_cache or shape.sliding[layer] != sliding:
            return 0
        cells = self.window_cells if sliding else self.cells
        return int(cells * self.spec.num_parallel * shape.kv_heads[layer] * shape.head_sizes * self.kv_bytes)

    def state(self, _layer: int) -> int:
        """0: the stand-in does not support recurrent models."""
        return 0

    def compute(self, copies: int, *, has_cpu_layers: bool) -> int:
        """Bytes of one device's compute buffer. Large batches copy layers from the CPU to it."""
        shape, batch = self.shape, self.batch
        inputs = shape.embedding * batch * 4
        masks = (self.cells + (self.window_cells if self.is_sliding else 0)) * batch * 2
        attention = 4 * inputs
        if self.kv_bytes < 2:
            attention += int(self.cells * max(shape.kv_heads) * shape.head_sizes * 2)
        if not self.spec.flash_attention:
            attention += shape.heads * self.cells * batch * 4
        body = max(3 * shape.feed_forward * batch * 4 + 3 * inputs, attention)
        return copies * masks + (copies * inputs if copies > 1 else 0) + body + (shape.biggest if has_cpu_layers else 0)


class StandIn:
    """`Arithmetic` of the stand-in runner."""

    def projector_bytes(self, model: SimModel) -> int:
        """Bytes of the weights and of an image graph, to which the stand-in gives a fixed size."""
        return model.projector_bytes + IMAGE_GRAPH_BYTES

    def plan(self, spec: RunnerSpec, free: Sequence[int]) -> RunnerPlan:
        """As `Arithmetic`."""
        costs = _Costs(spec)
        if costs.kv_bytes < 2 and not spec.flash_attention:
            raise LoadFailure("llama_init_from_model: V cache quantization requires flash_attn")
        return self._buffers(costs, self._place(costs, free))

    def _place(self, costs: _Costs, free: Sequence[int]) -> Layout:
        spec, devices, layers = costs.spec, len(free), len(costs.weights)
        if spec.num_gpu == 0 or not free:
            return layout_of(costs, (CPU,) * layers, devices)
        extra = self.projector_bytes(spec.model) if spec.has_projector else 0
        targets = [spec.target_bytes + (extra if d == 0 else 0) for d in range(devices)]
        forced = layout_of(costs, by_share(layers, layers if spec.num_gpu < 0 else spec.num_gpu, free), devices)
        if spec.fit and spec.num_gpu < 0:
            return fit(costs, free, targets)
        # A fault of the stand-in: it ignores an explicit number of layers if all of them fit.
        whole = layout_of(costs, by_share(layers, layers, free), devices)
        has_room = all(free[d] - whole.need(d) >= targets[d] for d in range(devices))
        return whole if spec.fit and has_room else forced

    def _buffers(self, costs: _Costs, layout: Layout) -> RunnerPlan:
        spec, on_gpu = costs.spec, sum(layout.weights)
        found = buffers_of(layout)
        if spec.has_projector and layout.compute:
            found += (Buffer("projector", 0, self.projector_bytes(spec.model), IMAGE_GRAPH_BYTES),)
        return RunnerPlan(found, layout.is_full, on_gpu, sum(costs.weights) - on_gpu, self._host(costs, layout))

    def _host(self, costs: _Costs, layout: Layout) -> int:
        """Bytes on the CPU by the log: weights left there, the last cache line, output and graph."""
        shape, batch = costs.shape, costs.batch
        on_gpu = sum(layout.weights)
        mapped = sum(costs.weights) - on_gpu + shape.token_embedding
        weights = min(mapped, costs.spec.model.blob_bytes - on_gpu)  # Ollama counts at most the file's size
        on_cpu = [il for il, own in enumerate(layout.owners) if own == CPU]
        caches = [sum(costs.cache(il, sliding=sliding) for il in on_cpu) for sliding in (False, True)]
        graph = shape.embedding * batch * 4 + costs.cells * batch * 2
        graph += 0 if CPU not in layout.owners else 3 * shape.feed_forward * batch * 4
        return weights + (caches[1] or caches[0]) + graph + max(shape.vocab, 1) * 4 * costs.spec.num_parallel
