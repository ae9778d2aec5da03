"""The memory arithmetic of llama.cpp, by `router/core/memory/footprint.py`: the default of the simulator."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_simulator.machine.arithmetic import Buffer, LoadFailure, RunnerPlan, RunnerSpec, SimModel
from ollama_simulator.machine.fit import CPU, Layout, buffers_of, by_share, fit, layout_of
from router.core.memory.compute import compute_bytes
from router.core.memory.footprint import is_embedding, layer_kv_bytes
from router.core.memory.options import MemoryOptions
from router.core.memory.projector import projector_bytes, worst_image_bytes
from router.core.memory.shape import shape_of
from router.core.memory.weights import tensor_bytes

OUTPUT_BYTES_PER_TOKEN = 4


class _Costs:
    """Bytes of one model with given options, by the footprint."""

    def __init__(self, spec: RunnerSpec) -> None:
        facts = spec.model.facts
        self.spec, self.facts, self.shape = spec, facts, shape_of(facts)
        self.is_single = spec.is_single
        self.options = MemoryOptions(
            num_ctx=spec.num_ctx,
            num_batch=spec.num_batch,
            num_parallel=spec.num_parallel,
            kv_type=spec.kv_type,
            flash_attention=spec.flash_attention,
            has_projector=spec.has_projector,
        )
        skipped = (0,) * (len(self.shape.layers) - len(self.shape.weights.block_bytes))
        self.weights = (*self.shape.weights.block_bytes, *skipped, self.shape.weights.output_bytes)
        self.experts, self.largest_tensor = _experts(spec.model, len(self.weights))

    def cache(self, layer: int, *, sliding: bool) -> int:
        """Bytes of a layer's KV cache; 0 if the layer is of the other kind."""
        if layer >= len(self.shape.layers) or self.shape.layers[layer].is_sliding != sliding:
            return 0
        return layer_kv_bytes(self.shape, self.shape.layers[layer], self.options)

    def state(self, layer: int) -> int:
        """Bytes of a layer's recurrent state, all slots."""
        layers = self.shape.layers
        return layers[layer].state_bytes * self.spec.num_parallel if layer < len(layers) else 0

    def compute(self, copies: int, *, has_cpu_layers: bool) -> int:
        """Bytes of one device's compute buffer. Large batches copy layers from the CPU to it, one at a time."""
        embeds = is_embedding(self.facts, self.options)
        size = compute_bytes(self.shape, self.options, is_embedding=embeds, backend="cuda", copies=copies)
        return size + (self.largest_tensor if has_cpu_layers else 0)


def _experts(model: SimModel, layers: int) -> tuple[tuple[int, ...], int]:
    """Bytes of experts per layer, and the largest tensor of any block."""
    experts, largest = [0] * layers, 0
    for tensor in model.facts.tensors:
        head, _, rest = tensor.name.partition(".")
        if head != "blk":
            continue
        size, number = tensor_bytes(tensor), int(rest.partition(".")[0])
        largest = max(largest, size)
        if "_exps" in rest and number < layers - 1:
            experts[number] += size
    return tuple(experts), largest


class FootprintArithmetic:
    """`Arithmetic` by the router's own footprint.

    The options are for replaying recordings of a stand-in runner. `image_bytes` is its figure for the projector's graph
    (None = the footprint's own). `forgets_num_gpu`: every layer is put on the GPU if all fit, in spite of num_gpu.
    """

    def __init__(self, *, image_bytes: int | None = None, forgets_num_gpu: bool = False) -> None:
        self._image_bytes, self._forgets_num_gpu = image_bytes, forgets_num_gpu

    def projector_bytes(self, model: SimModel) -> int:
        """Bytes of the tower's weights and of its largest image."""
        if self._image_bytes is not None:
            return model.projector_bytes + self._image_bytes
        return projector_bytes(model.facts, shape_of(model.facts).weights)

    def plan(self, spec: RunnerSpec, free: Sequence[int]) -> RunnerPlan:
        """As `Arithmetic`."""
        costs = _Costs(spec)
        if costs.options.is_kv_quantized and not spec.flash_attention:
            raise LoadFailure("llama_init_from_model: V cache quantization requires flash_attn")
        layout = self._place(costs, free)
        found = buffers_of(layout)
        if spec.has_projector and free:
            found += (Buffer("projector", 0, self.projector_bytes(spec.model), self._image(spec.model)),)
        on_gpu = sum(layout.weights)
        return RunnerPlan(found, layout.is_full, on_gpu, sum(costs.weights) - on_gpu, _host_bytes(costs, layout))

    def _image(self, model: SimModel) -> int:
        return worst_image_bytes(model.facts) if self._image_bytes is None else self._image_bytes

    def _place(self, costs: _Costs, free: Sequence[int]) -> Layout:
        spec, devices, layers = costs.spec, len(free), len(costs.weights)
        if spec.num_gpu == 0 or not free:
            return layout_of(costs, (CPU,) * layers, devices)
        extra = self.projector_bytes(spec.model) if spec.has_projector else 0
        targets = [spec.target_bytes + (extra if d == 0 else 0) for d in range(devices)]
        if spec.num_gpu < 0 and spec.fit:
            return fit(costs, free, targets)
        if self._forgets_num_gpu and spec.fit and (whole := fit(costs, free, targets)).is_full:
            return whole
        offloaded = layers if spec.num_gpu < 0 else spec.num_gpu  # the fit does not change an explicit number
        return layout_of(costs, by_share(layers, offloaded, free), devices)


def _host_bytes(costs: _Costs, layout: Layout) -> int:
    """Bytes on the CPU by the log: weights left there, the last cache line, outputs."""
    on_cpu = [il for il, own in enumerate(layout.owners) if own == CPU]
    caches = [sum(costs.cache(il, sliding=sliding) for il in on_cpu) for sliding in (False, True)]
    on_gpu = sum(layout.weights)
    mapped = sum(costs.weights) - on_gpu + costs.shape.weights.host_bytes
    weights = min(mapped, costs.spec.model.blob_bytes - on_gpu)  # Ollama counts at most the file's size
    return weights + (caches[1] or caches[0]) + costs.facts.vocab * OUTPUT_BYTES_PER_TOKEN * costs.spec.num_parallel
