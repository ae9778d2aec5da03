"""The probes of free memory under one protocol, and the choice of the one for this machine."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from router.adapters.gpu.amd import AmdSysfsProbe, read_sysfs
from router.adapters.gpu.command import CommandProbe
from router.adapters.gpu.host import RESERVE_BYTES
from router.adapters.gpu.library import pynvml
from router.adapters.gpu.nvml import LIBRARY_NOT_FOUND, NvmlProbe
from router.adapters.gpu.prometheus import PrometheusProbe
from router.adapters.gpu.reading import GpuProcess, ProbeReading, VramProbe
from router.core.ollama.runner import Gpu
from router.errors import ProbeError

__all__ = [
    "AmdSysfsProbe",
    "CommandProbe",
    "GpuProcess",
    "NvmlProbe",
    "ProbeReading",
    "PrometheusProbe",
    "StaticProbe",
    "VramProbe",
    "detect_probe",
]

_DETECT_S = 5.0


class StaticProbe:
    """Reports the configured cards unchanged; for tests, and for memory that cannot be read."""

    name = "static"
    is_live = False

    def __init__(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:  # noqa: ARG002 (fixed values are always fresh)
        return ProbeReading(self.gpus, asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """Do nothing: there is no device to release."""


def detect_probe(
    *, cache_s: float = 0.05, timeout_s: float = 0.25, root: str = "/", reserve_bytes: int = RESERVE_BYTES
) -> VramProbe | None:
    """Return the probe for this machine's cards, None if none is visible (verify mode).

    NVML is chosen even if it fails now (driver not loaded, a lost card, a hang): it may recover, and until then the
    router reports the failure. NVML that lists no card is not chosen: the upstream may run in a container that has one.
    """
    if _has_nvidia():
        return NvmlProbe(cache_s=cache_s, timeout_s=timeout_s, reserve_bytes=reserve_bytes)
    try:
        has_amd = bool(read_sysfs(Path(root)))
    except ProbeError:  # there is a card, and it may become readable
        has_amd = True
    if not has_amd:
        return None
    return AmdSysfsProbe(root, cache_s=cache_s, timeout_s=timeout_s, reserve_bytes=reserve_bytes)


def _has_nvidia() -> bool:
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(_asks_nvml()), name="NVML detection", daemon=True)
    asking.start()
    asking.join(_DETECT_S)
    return not found or found[0]  # a driver that hangs is a driver: the probe's own deadlines deal with it


def _asks_nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        return bool(exc.value != LIBRARY_NOT_FOUND)
    try:
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except pynvml.NVMLError:
        return True
    finally:
        pynvml.nvmlShutdown()
