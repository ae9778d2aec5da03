"""The compute buffer: what llama.cpp's graph needs besides weights and caches (docs/memory.md, "Compute buffer").

Its peak is the largest of a few moments: the feed-forward of one block, the state-space mixer, the dequantised cache of
the CUDA backend, the logits of an embedding run, the KQ matrix without flash attention. The masks are added to it:
once, or four times when several devices work in a pipeline.
"""

from __future__ import annotations

from router.core.memory.options import ComputeBackend, MemoryOptions
from router.core.memory.shape import Shape

_F32 = 4
_F16 = 2


def compute_bytes(
    shape: Shape, options: MemoryOptions, *, is_embedding: bool, backend: ComputeBackend, copies: int
) -> int:
    """Return the bytes of the compute buffer on one device.

    `copies` is 4 in a pipeline over several devices, else 1.
    """
    u = options.ubatch * _F32
    masks = _mask_bytes(shape, options)
    graph = shape.graph
    peaks = [u * graph.body]
    if graph.mixer:
        peaks.append(u * graph.mixer + options.num_parallel * shape.layer_state_bytes)
    if options.is_kv_quantized and backend in {"cuda", "rocm"}:
        is_parallel = any(layer.k_width and layer.state_bytes for layer in shape.layers)
        beside = 2 * graph.embedding + 2 * graph.query_rows + (graph.parallel_mixer if is_parallel else 0)
        peaks.append(_widest_cache_f16(shape, options) + u * beside)
    if is_embedding and shape.arch.has_lm_head:
        peaks.append(u * (graph.vocabulary + 2 * graph.embedding))
    if not options.flash_attention:
        masks *= 2
        peaks.append(_kq_bytes(shape, options))
    inputs = masks + (u * graph.embedding if copies > 1 else 0)
    return copies * inputs + max(peaks)


def _mask_bytes(shape: Shape, options: MemoryOptions) -> int:
    if not shape.arch.has_cache:
        return len(shape.mask_kinds) * options.ubatch * options.ubatch * _F16
    return sum(_cells(shape, options, kind) for kind in shape.mask_kinds) * options.ubatch * _F16


def _cells(shape: Shape, options: MemoryOptions, is_sliding: bool) -> int:
    return options.sliding_cells(shape.window) if is_sliding else options.cells


def _widest_cache_f16(shape: Shape, options: MemoryOptions) -> int:
    """Return the bytes of one layer's K and V as f16, to which CUDA's attention kernels convert a quantised cache."""
    widths = ((layer.k_width + layer.v_width) * _cells(shape, options, layer.is_sliding) for layer, _ in shape.kinds)
    return max(widths, default=0) * options.num_parallel * _F16


def _kq_bytes(shape: Shape, options: MemoryOptions) -> int:
    """Return the bytes of attention without flash attention: the KQ matrix of all heads, and what lives beside it."""
    graph, u = shape.graph, options.ubatch * _F32
    cells = options.cells if shape.arch.has_cache else options.ubatch
    widest = max((layer.k_width + layer.v_width for layer in shape.layers), default=0)
    return graph.heads * cells * u + u * (graph.attention_off + widest)
