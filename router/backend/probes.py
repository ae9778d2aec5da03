"""Builds the probe of each backend from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import TypedDict
from urllib.parse import urlsplit

from router.adapters.gpu.amd import AmdSysfsProbe
from router.adapters.gpu.command import CommandProbe
from router.adapters.gpu.detect import StaticProbe, detect_probe
from router.adapters.gpu.nvml import NvmlProbe
from router.adapters.gpu.prometheus import PrometheusProbe
from router.adapters.gpu.reading import VramProbe
from router.config import Config, Probe, StaticGpu
from router.core.ollama.runner import Gpu
from router.core.units import MIB

MAX_CACHE_S = 0.05
"""Upper bound for the cache time of a local probe: each switch needs current readings."""

MIN_COMMAND_TIMEOUT_S, MIN_HTTP_TIMEOUT_S = 5.0, 2.0
"""Lower bounds for the timeout of a probe that starts a process, or sends a request."""


class _Local(TypedDict):
    """The settings of a probe that reads this machine."""

    cache_s: float
    timeout_s: float
    reserve_bytes: int


def build_probe(probe: Probe) -> VramProbe | None:
    """Return the configured probe, None if there is nothing to read (verify mode)."""
    cache_s, timeout_s = min(probe.cache_s, MAX_CACHE_S), probe.timeout_s
    command_s, http_s = max(timeout_s, MIN_COMMAND_TIMEOUT_S), max(timeout_s, MIN_HTTP_TIMEOUT_S)
    local: _Local = {"cache_s": cache_s, "timeout_s": timeout_s, "reserve_bytes": probe.reserve_mib * MIB}
    builders: dict[str, Callable[[], VramProbe | None]] = {
        "auto": lambda: detect_probe(**local),
        "nvml": lambda: NvmlProbe(**local),
        "command": lambda: CommandProbe(
            probe.command, cache_s=probe.cache_s, timeout_s=command_s, max_bytes=probe.max_bytes
        ),
        "prometheus": lambda: PrometheusProbe(
            str(probe.url), cache_s=cache_s, timeout_s=http_s, max_bytes=probe.max_bytes
        ),
        "amd": lambda: AmdSysfsProbe(probe.root, **local),
        "static": lambda: StaticProbe(tuple(_static(index, gpu) for index, gpu in enumerate(probe.gpus))),
        "none": lambda: None,
    }
    return builders[probe.kind]()


def build_probes(config: Config) -> dict[str, VramProbe | None]:
    """Return the probe of each backend.

    Of several, one on another host has none unless its kind is set: this machine's cards are not its cards.
    """
    found: dict[str, VramProbe | None] = {}
    for name, section in config.backends.items():
        is_elsewhere = len(config.backends) > 1 and section.probe.kind == "auto" and not _is_here(section.url)
        found[name] = None if section.gpus == "none" or is_elsewhere else build_probe(section.probe)
    return found


def _is_here(url: str) -> bool:
    """Return whether a URL is surely one of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _static(index: int, gpu: StaticGpu) -> Gpu:
    free_mib = gpu.total_mib if gpu.free_mib is None else gpu.free_mib
    return Gpu(index, f"static-{index}", gpu.name, gpu.total_mib * MIB, free_mib * MIB)
