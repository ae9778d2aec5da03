"""What each layer keeps between tokens: KV cells (full or sliding) and recurrent state.

The rules are in docs/memory.md, "KV cache" and "Recurrent state".

Tensors, if they are known, decide which layers attend and which are recurrent; metadata fills in the rest. If neither
says, the largest case is assumed: full attention on every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from router.core.memory.architectures import Architecture
from router.core.memory.weights import row_bytes
from router.core.ollama.model import ModelFacts

_RECURRENT = ("ssm_", "shortconv.", "time_mix_", "kda_")
_ATTENDING = ("attn_k.", "attn_qkv.", "attn_kv_a_mqa.", "attn_kv.")


class LayerCache(msgspec.Struct, frozen=True, gc=False):
    """The cache of one layer; the garbage collector need not look at it, as at the tensors of `ModelFacts`.

    The widths of a K and a V cell are in elements (0 = no KV cache), `state_bytes` is its recurrent state per sequence.
    """

    k_width: int = 0
    v_width: int = 0
    is_sliding: bool = False
    state_bytes: int = 0

    def cell_bytes(self, kv_type: str) -> float:
        """Return the bytes of one cell (one token of one slot)."""
        return row_bytes(kv_type, self.k_width) + row_bytes(kv_type, self.v_width)


def layer_caches(facts: ModelFacts, arch: Architecture) -> tuple[LayerCache, ...]:
    """Return the cache of each block, in order.

    Blocks for multi-token prediction are included: they have one unless the architecture filters them.
    """
    blocks = int(facts.value("block_count", 0))
    named = _tensor_names(facts, blocks)
    sliding = sliding_layers(facts, arch, blocks)
    own = blocks - (0 if arch.has_own_nextn_cache else int(facts.value("nextn_predict_layers", 0)))
    owners = _kv_owners(facts, arch, blocks)
    state = _state_bytes(facts)
    recurrent, attending = _mixers(facts, arch, named, blocks)
    found = []
    for il in range(blocks):
        k_width, v_width = _widths(facts, named, il, sliding[il])
        has_kv = arch.has_cache and il < min(own, owners) and attending[il]
        found.append(
            LayerCache(
                k_width if has_kv else 0,
                v_width if has_kv and not is_mla(facts) else 0,
                sliding[il],
                state if recurrent[il] else 0,
            )
        )
    return tuple(found)


def sliding_layers(facts: ModelFacts, arch: Architecture, blocks: int) -> list[bool]:
    """Return which layers keep only a window: by the file's pattern, else the architecture's; none without a window."""
    if window(facts, arch) <= 0 or arch.source == "none" or arch.period == 1:
        return [False] * blocks
    if arch.sliding_blocks and arch.sliding_blocks != blocks - int(facts.value("nextn_predict_layers", 0)):
        return [False] * blocks
    pattern = facts.value("attention.sliding_window_pattern")
    if isinstance(pattern, Sequence) and not isinstance(pattern, str) and pattern:
        return [bool(pattern[il % len(pattern)]) for il in range(blocks)]
    period = int(pattern) if isinstance(pattern, int | float) and not isinstance(pattern, bool) else arch.period
    if period <= 1:
        return [False] * blocks
    if arch.is_full_first:
        return [il % period != 0 for il in range(blocks)]
    return [il % period < period - 1 for il in range(blocks)]


def window(facts: ModelFacts, arch: Architecture) -> int:
    """Return the tokens in the sliding window; 0 = the model does not slide."""
    named = facts.value("attention.sliding_window")
    if named is not None and int(named) == 0:
        return 0
    if named is None and arch.needs_window:
        return 0
    return arch.window if arch.is_window_fixed or named is None else int(named)


def is_mla(facts: ModelFacts) -> bool:
    """Return whether the file has compressed (latent) attention: K only, no V."""
    return bool(facts.value("attention.key_length_mla")) and bool(facts.value("attention.value_length_mla"))


def head_size(facts: ModelFacts, which: str, *, is_sliding: bool = False) -> int:
    """Return the elements per head of "key" or "value"."""
    if is_sliding and (sliding := facts.value(f"attention.{which}_length_swa")):
        return int(sliding)
    if length := facts.value(f"attention.{which}_length"):
        return int(length)
    heads = largest(facts.value("attention.head_count", 0))
    return int(facts.value("embedding_length", 0)) // heads if heads else 0


def largest(value: Any) -> int:
    """Return the largest of a number or an array of numbers; 0 for anything else."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return max((int(entry) for entry in value), default=0)
    return int(value) if isinstance(value, int | float) else 0


def per_layer(value: Any, il: int) -> int | None:
    """Return entry `il` of an array, or the number itself; None if there is neither."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return int(value[il]) if il < len(value) else None
    return int(value) if isinstance(value, int | float) else None


def _tensor_names(facts: ModelFacts, blocks: int) -> list[dict[str, int]]:
    """Return for each block: tensor name after ``blk.N.`` → its rows (the second dimension of its shape)."""
    found: list[dict[str, int]] = [{} for _ in range(blocks)]
    for tensor in facts.tensors:
        head, _, rest = tensor.name.partition(".")
        number, _, name = rest.partition(".")
        if head == "blk" and number.isdecimal() and int(number) < blocks:
            found[int(number)][name] = tensor.shape[1] if len(tensor.shape) > 1 else 1
    return found


def _widths(facts: ModelFacts, named: list[dict[str, int]], il: int, is_sliding: bool) -> tuple[int, int]:
    """Return the elements of one K and one V cell of layer `il`."""
    key, value = (head_size(facts, which, is_sliding=is_sliding) for which in ("key", "value"))
    heads = per_layer(facts.value("attention.head_count_kv"), il)
    if heads is None:
        rows = named[il].get("attn_k.weight", 0)
        fallback = per_layer(facts.value("attention.head_count"), il) or 0
        heads = rows // key if rows and key else fallback
    return heads * key, heads * value


def _mixers(
    facts: ModelFacts, arch: Architecture, named: list[dict[str, int]], blocks: int
) -> tuple[list[bool], list[bool]]:
    """Return for each layer whether it is recurrent and whether it attends.

    Tensors decide; if they name no mixer, metadata does.
    """
    recurrent = [any(name.startswith(_RECURRENT) for name in names) for names in named]
    attending = [
        any(name.startswith("attn_k.") for name in names)
        or (not is_recurrent and any(name.startswith(_ATTENDING) for name in names))
        for names, is_recurrent in zip(named, recurrent, strict=True)
    ]
    if not any(recurrent) and not any(attending):
        return _mixers_by_metadata(facts, blocks)
    if arch.source == "none":  # its tensors may have names that are unknown here
        return recurrent, [attends or not state for attends, state in zip(attending, recurrent, strict=True)]
    return recurrent, attending


def _mixers_by_metadata(facts: ModelFacts, blocks: int) -> tuple[list[bool], list[bool]]:
    has_state = _state_bytes(facts) > 0
    listed = facts.value("attention.recurrent_layers")
    heads = facts.value("attention.head_count_kv")
    interval = int(facts.value("full_attention_interval", 0))
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        recurrent = [bool(listed[il]) if il < len(listed) else False for il in range(blocks)]
    elif interval:
        recurrent = [(il + 1) % interval != 0 for il in range(blocks)]
    elif isinstance(heads, Sequence) or heads == 0:
        recurrent = [has_state and per_layer(heads, il) == 0 for il in range(blocks)]
    else:
        return [has_state] * blocks, [True] * blocks
    return recurrent, [not state for state in recurrent]


def _kv_owners(facts: ModelFacts, arch: Architecture, blocks: int) -> int:
    """Return how many layers, from the first, own a KV cache; the others share theirs."""
    if arch.kv_layers:
        return min(arch.kv_layers, blocks)
    return blocks - int(facts.value("attention.shared_kv_layers", 0))


def _state_bytes(facts: ModelFacts) -> int:
    """Return the recurrent state of one layer and sequence in bytes, f32 (llama-hparams.cpp, n_embd_r + n_embd_s)."""
    embd = int(facts.value("embedding_length", 0))
    conv = max(0, int(facts.value("ssm.conv_kernel", 0)) - 1)
    heads = largest(facts.value("attention.head_count", 0))
    if wkv := int(facts.value("wkv.head_size", 0)):
        return 4 * embd * (wkv + int(facts.value("token_shift_count", 2)))
    if kernel := int(facts.value("shortconv.l_cache", 0)):
        return 4 * embd * (kernel - 1)
    if kda := int(facts.value("kda.head_dim", 0)):
        return 4 * heads * kda * (3 * (conv or 3) + kda)
    inner, size = int(facts.value("ssm.inner_size", 0)), int(facts.value("ssm.state_size", 0))
    return 4 * (conv * (inner + 2 * int(facts.value("ssm.group_count", 0)) * size) + inner * size)
