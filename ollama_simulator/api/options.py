"""The options of a request and of a model: runner options, sampling limits, type checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.core.ollama.runner import LoadOptions

INTEGERS = [
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "num_thread",
    "draft_num_predict",
    "main_gpu",
]
FLOATS = ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"]


class OptionError(Exception):
    """An option of the wrong type; the text is Ollama's."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The limits of an answer. `num_predict` ≤ 0 = no limit; `num_keep` tokens survive truncation of the prompt."""

    num_predict: int = -1
    num_keep: int = 4
    seed: int = -1
    stop: tuple[str, ...] = ()
    repeat_last_n: int = 64
    repeat_penalty: float = 1.1

    @property
    def refusal(self) -> str:
        """What llama-server says about values out of range, "" if it takes them."""
        for field, value, least in (("repeat_last_n", self.repeat_last_n, 0), ("n_keep", self.num_keep, -1)):
            sent = (value + (1 << 31)) % (1 << 32) - (1 << 31)
            if sent < least:
                range_text = f"Value must be between {least} <= value <= {(1 << 31) - 1}, but got {sent}"
                return f"Field '{field}': {range_text}"
        if self.repeat_penalty <= 0:
            return "Failed to initialize samplers: penalty_repeat must be finite and greater than 0"
        return ""


def merged(model: Mapping[str, Any], request: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a model's options, overridden by the request's; checked as in `Options.FromMap`. Raises OptionError."""
    values: dict[str, Any] = {}
    for source in (model, request or {}):
        for key, value in source.items():
            if value is not None and _known(key):
                values[key] = _checked(key, value)
    return values


def _known(key: str) -> bool:
    return key in INTEGERS or key in FLOATS or key in ("stop", "use_mmap")


def _checked(key: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in INTEGERS:
        if not is_number:
            raise OptionError(f'option "{key}" must be of type integer')
        return int(value)
    if key in FLOATS:
        if not is_number:
            raise OptionError(f'option "{key}" must be of type float32')
        return float(value)
    if key == "use_mmap":
        if not isinstance(value, bool):
            raise OptionError(f'option "{key}" must be of type boolean')
        return value
    if not isinstance(value, list):
        raise OptionError(f'option "{key}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise OptionError(f'option "{key}" must be of an array of strings')
    return value


def runner_options(values: Mapping[str, Any], shift: bool | None) -> LoadOptions:
    """Return the options that a runner is started with; None = automatic."""
    num_ctx = values.get("num_ctx")
    return LoadOptions(
        num_ctx=max(4, num_ctx) if num_ctx is not None else None,
        num_batch=values.get("num_batch"),
        num_gpu=values.get("num_gpu"),
        main_gpu=values.get("main_gpu"),
        num_thread=values.get("num_thread") or None,
        use_mmap=values.get("use_mmap"),
        draft_num_predict=values.get("draft_num_predict"),
        shift=shift,
    )


def sampling(values: Mapping[str, Any]) -> Sampling:
    """Return the options that limit an answer."""
    return Sampling(
        num_predict=values.get("num_predict", -1),
        num_keep=values.get("num_keep", 4),
        seed=values.get("seed", -1),
        stop=tuple(values.get("stop") or ()),
        repeat_last_n=values.get("repeat_last_n", 64),
        repeat_penalty=values.get("repeat_penalty", 1.1),
    )
