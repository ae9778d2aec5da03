"""How an Ollama server may be set up, as far as that changes what every load takes and the API does not show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from router.core.ollama.options import ServerSettings

_KV_TYPES = ("f16", "q8_0", "q4_0")
_PLAIN_KV_TYPES = ("f32", "f16", "bf16")
_SLOTS = (1, 2, 3, 4, 6, 8)


class Setup(NamedTuple):
    """OLLAMA_NUM_PARALLEL, OLLAMA_KV_CACHE_TYPE and OLLAMA_FLASH_ATTENTION of a server."""

    num_parallel: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True

    def changes_in(self, other: Setup) -> int:
        """Return how many settings differ in `other`."""
        return sum(one != another for one, another in zip(self, other, strict=True))

    def variables_of(self, other: Setup) -> str:
        """Return the environment that makes this setup `other`."""
        texts = {
            "OLLAMA_NUM_PARALLEL": str(other.num_parallel),
            "OLLAMA_KV_CACHE_TYPE": other.kv_type,
            "OLLAMA_FLASH_ATTENTION": str(int(other.flash_attention)),
        }
        pairs = zip(texts.items(), self, other, strict=True)
        return " and ".join(f"{name}={text}" for (name, text), one, another in pairs if one != another)


def setup_in(settings: ServerSettings) -> Setup:
    """Return the setup by these settings."""
    return Setup(settings.num_parallel, settings.kv_type, settings.flash_attention != "off")


def with_setup(settings: ServerSettings, setup: Setup, fit_target_bytes: int) -> ServerSettings:
    """Return the settings of a server that is set up so, with this fit target."""
    is_same = (settings.flash_attention != "off") == setup.flash_attention
    flash = settings.flash_attention if is_same else ("on" if setup.flash_attention else "off")
    return replace(
        settings,
        num_parallel=setup.num_parallel,
        kv_type=setup.kv_type,
        flash_attention=flash,
        fit_target_bytes=fit_target_bytes,
    )


def key_of(setup: Setup) -> str:
    """Return the setup as a key of `Observation.alternatives`."""
    return f"{setup.num_parallel}/{setup.kv_type}/{'fa' if setup.flash_attention else '-'}"


def setup_of(key: str) -> Setup:
    """Return the setup of a key."""
    slots, kind, flash = key.split("/")
    return Setup(int(slots), kind, flash == "fa")


def likely_setups(assumed: Setup) -> Iterator[Setup]:
    """Yield `assumed`, then the setups that a load is compared with: quantized caches need flash attention."""
    yield assumed
    for slots in sorted({assumed.num_parallel, *_SLOTS}):
        for kind in dict.fromkeys((assumed.kv_type, *_KV_TYPES)):
            for flash in (True, False) if kind in _PLAIN_KV_TYPES else (True,):
                if Setup(slots, kind, flash) != assumed:
                    yield Setup(slots, kind, flash)
