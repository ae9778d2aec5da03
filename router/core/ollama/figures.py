"""Checks of the figures in a model's metadata, made once, where facts are made.

The formulas of memory rely on them: a figure that passed is a number of a possible size. Nobody vouches for the
metadata of a GGUF file. An absurd figure must neither stop the router nor occupy it; it costs its model the exact size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_BLOCKS = 2048
"""Far more blocks than any model has; each costs time and memory when the model is sized."""

MAX_SIDE = 1 << 40
MAX_SIDES = 8
"""Bounds of a tensor's shape."""

_COUNT, _WIDTH, _TOKENS = 1 << 20, 1 << 24, 1 << 40
SCALARS: dict[str, int] = {
    **dict.fromkeys(("block_count", "nextn_predict_layers", "attention.shared_kv_layers"), MAX_BLOCKS),
    **dict.fromkeys(
        (
            "expert_count", "expert_used_count", "expert_shared_count", "full_attention_interval", "token_shift_count",
            "n_deepstack_layers", "shortconv.l_cache", "ssm.conv_kernel", "ssm.group_count", "ssm.time_step_rank",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            "embedding_length", "embedding_length_per_layer_input", "vocab_size", "rope.dimension_count",
            "attention.key_length", "attention.value_length", "attention.key_length_mla", "attention.value_length_mla",
            "attention.key_length_swa", "attention.value_length_swa", "attention.kv_lora_rank", "ssm.inner_size",
            "ssm.state_size", "wkv.head_size", "kda.head_dim",
        ),
        _WIDTH,
    ),
    **dict.fromkeys(("context_length", "attention.sliding_window"), _TOKENS),
}  # fmt: skip
"""The largest value of each figure that is one number, by its key without the architecture."""

PER_LAYER: dict[str, int] = {
    "attention.head_count": _COUNT,
    "attention.head_count_kv": _COUNT,
    "attention.recurrent_layers": _COUNT,
    "attention.sliding_window_pattern": _COUNT,
    "feed_forward_length": _WIDTH,
    "expert_feed_forward_length": _WIDTH,
    "expert_shared_feed_forward_length": _WIDTH,
}
"""The same for figures that may be a list with an entry per layer."""

VISION = ("image_size", "patch_size", "feed_forward_length", "embedding_length")
"""The figures of a vision tower that are used, by the last part of their key."""

_MAX_PARAMETERS = 1e15
MAX_TEXT = 512
_HUGE = 1 << 64


class ImplausibleFigure(ValueError):
    """A figure that no model has; the text names it."""


def check_metadata(info: Mapping[str, Any]) -> None:
    """Check the figures of `model_info` that are used. Raises ImplausibleFigure."""
    arch = architecture_of(info)
    _check("general.parameter_count", info.get("general.parameter_count"), _MAX_PARAMETERS)
    for key, most in SCALARS.items():
        _check(f"{arch}.{key}", info.get(f"{arch}.{key}"), most)
    for key, most in PER_LAYER.items():
        _check_list(f"{arch}.{key}", info.get(f"{arch}.{key}"), most)
    check_vision(info)


def architecture_of(info: Mapping[str, Any]) -> str:
    """Return `general.architecture`, which the keys of figures begin with; "" if it is missing.

    Raises ImplausibleFigure if it is no name.
    """
    arch = info.get("general.architecture")
    if arch is None:
        return ""
    if not (isinstance(arch, str) and len(arch) <= MAX_TEXT):
        raise ImplausibleFigure("general.architecture is not a name")
    return arch


def check_vision(info: Mapping[str, Any]) -> None:
    """Check the figures of a vision tower, in `model_info` or `projector_info`. Raises ImplausibleFigure."""
    for key, value in info.items():
        if "vision." in key and isinstance(value, int | float):
            if key.endswith(VISION):
                _check(key, value, _WIDTH)
            elif not _is_finite(value):
                raise ImplausibleFigure(f"{key} is {_text(value)}")


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return the shape of a tensor as `/api/show` lists it. Raises ImplausibleFigure."""
    if shape is None:
        return ()
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > MAX_SIDES:
        raise ImplausibleFigure(f"the shape of tensor {name[:80]} is {_text(shape)}")
    for side in shape:
        _check_number(f"a side of tensor {name[:80]}", side, MAX_SIDE)
    return tuple(int(side) for side in shape)


def _check_list(key: str, value: object, most: float) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        _check(key, value, most)
        return
    if len(value) > MAX_BLOCKS:
        raise ImplausibleFigure(f"{key} has {len(value)} entries")
    for entry in value:
        _check_number(key, entry, most)


def _check(key: str, value: object, most: float) -> None:
    if value is not None:
        _check_number(key, value, most)


def _check_number(key: str, value: object, most: float) -> None:
    """Raise ImplausibleFigure unless `value` is a number from 0 to `most`; truth values count as 0 and 1."""
    if not isinstance(value, int | float) or not (_is_finite(value) and 0 <= value <= most):
        raise ImplausibleFigure(f"{key} is {_text(value)}")


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _text(value: object) -> str:
    if isinstance(value, int) and abs(value) >= _HUGE:
        return "a huge number"
    return repr(value)[:40] if isinstance(value, int | float | str) else "not a number"
