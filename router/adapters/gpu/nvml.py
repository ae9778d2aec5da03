"""Free memory of NVIDIA cards through NVML, in process (nvidia-ml-py)."""

from __future__ import annotations

from typing import Any

from router.adapters.gpu.host import RESERVE_BYTES, host_memory
from router.adapters.gpu.library import pynvml
from router.adapters.gpu.reading import CachedReading, Cards, DeadlineThread, GpuProcess, ProbeReading, usable
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.errors import ProbeError

# Return codes of nvml.h, part of the driver's ABI.
NOT_SUPPORTED, NO_PERMISSION, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST, VERSION_MISMATCH = (
    3,
    4,
    12,
    13,
    15,
    25,
)
_MIG_ENABLED = 1
UNKNOWN_CONTEXT_BYTES = 457 * MIB  # Ollama's own constant
_MAX_CONTEXT_BYTES = 600 * MIB
# Cores per multiprocessor by compute capability (CUDA C Programming Guide); 128 for those not listed.
_CORES = {"6.0": 64, "7.0": 64, "7.2": 64, "7.5": 64, "8.0": 64, "3.0": 192, "3.5": 192, "3.7": 192}
# Compute capabilities and names of the chips that share the CPU's memory: Jetson (Nano to Thor), DGX Spark.
_UNIFIED_COMPUTE = {"5.3", "6.2", "7.2", "8.7", "10.1", "11.0", "12.1"}
_UNIFIED_NAMES = ("GB10", "JETSON", "TEGRA", "XAVIER", "ORIN", "THOR")
# A card with one of these errors has no memory we can read: it fell off the bus, has none of its own, or access is
# denied.
_SKIPPED = {GPU_IS_LOST, NOT_SUPPORTED, NO_PERMISSION}


def context_bytes(multiprocessors: int) -> int:
    """Return the bytes that the driver context of one more process takes on a card; 0 multiprocessors = unknown.

    Measured: docs/memory.md, "Driver context".
    """
    if multiprocessors <= 0:
        return UNKNOWN_CONTEXT_BYTES
    return min((40 + 3 * multiprocessors) * MIB, _MAX_CONTEXT_BYTES)


class NvmlProbe:
    """The cards in the driver's order (by PCI address), with the MIG instances of a divided card in its place.

    A reading is cached for `cache_s`. NVML is initialized again after any error, so that a reloaded driver is found.
    Cards that are lost are skipped; it is an error only if no card remains. A chip that shares the CPU's memory, of
    which NVML reports none, has what the host has available less `reserve_bytes`.
    """

    name = "nvml"
    is_live = True

    def __init__(self, *, cache_s: float = 0.05, timeout_s: float = 0.25, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._reserve_bytes = reserve_bytes
        self._thread = DeadlineThread("NVML", timeout_s)
        self._cached = CachedReading(self._read_cards, cache_s)
        self._is_ready = False
        self._fixed: dict[str, tuple[str, int]] = {}  # UUID → (compute capability, context bytes)
        self._names: dict[int, str] = {}

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        return await self._cached.get(is_fresh=is_fresh)

    async def aclose(self) -> None:
        await self._cached.aclose()
        self._thread.close()

    async def _read_cards(self) -> Cards:
        cards: Cards = await self._thread.run(self._read_all)
        return cards

    def _read_all(self) -> Cards:
        """Return all cards and processes. Runs in the probe's thread, because the driver may hang."""
        try:
            if not self._is_ready:
                pynvml.nvmlInit()
                self._is_ready = True
            return self._cards()
        except (pynvml.NVMLError, ValueError) as exc:
            self._forget()
            raise ProbeError(f"NVML: {exc}") from exc

    def _forget(self) -> None:
        """Shut NVML down; the next reading initializes it again."""
        if self._is_ready:
            self._is_ready = False
            self._fixed.clear()
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                pass  # not initialized any more

    def _cards(self) -> Cards:
        handles = [handle for index in range(pynvml.nvmlDeviceGetCount()) for handle in _devices(index)]
        gpus: list[Gpu] = []
        processes: list[GpuProcess] = []
        for handle in handles:
            try:
                gpus.append(self._gpu(len(gpus), handle))
            except pynvml.NVMLError as exc:
                if exc.value not in _SKIPPED:
                    raise
            else:
                processes += self._processes(len(gpus) - 1, handle)
        if handles and not gpus:
            raise ProbeError("NVML: no card's memory can be read")
        return usable(gpus), tuple(processes)

    def _gpu(self, index: int, handle: Any) -> Gpu:
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        if uuid not in self._fixed:
            self._fixed[uuid] = _compute_and_context(handle)
        compute, context = self._fixed[uuid]
        name = str(pynvml.nvmlDeviceGetName(handle))
        is_unified = compute in _UNIFIED_COMPUTE or any(word in name.upper() for word in _UNIFIED_NAMES)
        total, free = self._shared(handle) if is_unified else _memory(handle)
        return Gpu(index, uuid, name, total, free, context, compute)

    def _shared(self, handle: Any) -> tuple[int, int]:
        """Return total and free bytes of a chip that shares the CPU's memory: of that, llama.cpp takes the host's."""
        host = host_memory()
        if host is None:
            return _memory(handle)
        return host.total_bytes, max(0, host.available_bytes - self._reserve_bytes)

    def _processes(self, index: int, handle: Any) -> list[GpuProcess]:
        """Return the processes on a card; in a container the driver may list none."""
        found = {}
        for kind in ("Compute", "Graphics"):
            for process in _optional(f"nvmlDeviceGet{kind}RunningProcesses_v3", handle) or ():
                used = process.usedGpuMemory
                found[process.pid] = GpuProcess(index, process.pid, self._process_name(process.pid), used)
        return list(found.values())

    def _process_name(self, pid: int) -> str:
        if pid not in self._names:
            if len(self._names) > 1000:
                self._names.clear()
            self._names[pid] = str(_optional("nvmlSystemGetProcessName", pid) or "")
        return self._names[pid]


def _devices(index: int) -> list[Any]:
    """Return the card, or its MIG instances if it is divided: a divided card runs nothing itself."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as exc:
        if exc.value in _SKIPPED:
            return []
        raise
    mode = _optional("nvmlDeviceGetMigMode", handle)
    if not mode or mode[0] != _MIG_ENABLED:
        return [handle]
    most = _optional("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    instances = [_optional("nvmlDeviceGetMigDeviceHandleByIndex", handle, number) for number in range(most)]
    return [instance for instance in instances if instance is not None]


def _memory(handle: Any) -> tuple[int, int]:
    """Return total and free bytes. Version 2 of the call, since driver 510, reports the driver's reserve separately."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as exc:
        if exc.value not in (FUNCTION_NOT_FOUND, VERSION_MISMATCH):
            raise
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return int(memory.total), int(memory.free)


def _compute_and_context(handle: Any) -> tuple[str, int]:
    found = _optional("nvmlDeviceGetCudaComputeCapability", handle)
    compute = f"{found[0]}.{found[1]}" if found else ""
    cores = _optional("nvmlDeviceGetNumGpuCores", handle) or 0
    return compute, context_bytes(int(cores) // _CORES.get(compute, 128))


def _optional(function: str, *arguments: Any) -> Any:
    """Return the result of a call that not every driver or card supports, None if it is not supported."""
    try:
        return getattr(pynvml, function)(*arguments)
    except (pynvml.NVMLError, AttributeError):
        return None
