"""Free memory of AMD cards from sysfs (`mem_info_vram_*` of the amdgpu driver); needs no library."""

from __future__ import annotations

from pathlib import Path

from router.adapters.gpu.nvml import UNKNOWN_CONTEXT_BYTES
from router.adapters.gpu.reading import CachedReading, Cards, DeadlineThread, ProbeReading
from router.core.ollama.runner import Gpu
from router.errors import ProbeError

# A card with less is an integrated GPU whose "VRAM" is a slice of main memory.
_MIN_VRAM_BYTES = 1 << 30


class AmdSysfsProbe:
    """The amdgpu cards below `root`, in the order of their PCI addresses, which is ROCm's order."""

    name = "amd"
    is_live = True

    def __init__(self, root: str | Path = "/", *, cache_s: float = 0.05, timeout_s: float = 0.25) -> None:
        self._root = Path(root)
        self._thread = DeadlineThread("sysfs", timeout_s)
        self._cached = CachedReading(self._read_cards, cache_s)

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        return await self._cached.get(is_fresh=is_fresh)

    async def aclose(self) -> None:
        await self._cached.aclose()
        self._thread.close()

    async def _read_cards(self) -> Cards:
        gpus: tuple[Gpu, ...] = await self._thread.run(lambda: read_sysfs(self._root))
        return gpus, ()


def read_sysfs(root: Path) -> tuple[Gpu, ...]:
    """Return the cards, () if there is no amdgpu card. Raises ProbeError if a card cannot be read."""
    devices = sorted({path.parent.resolve() for path in root.glob("sys/class/drm/card*/device/mem_info_vram_total")})
    try:
        memory = [(device, _number(device / "mem_info_vram_total")) for device in devices]
        cards = [(device, total) for device, total in memory if total >= _MIN_VRAM_BYTES]
        return tuple(_gpu(index, device, total) for index, (device, total) in enumerate(cards))
    except (OSError, ValueError) as exc:
        raise ProbeError(f"sysfs: {exc}") from exc


def _gpu(index: int, device: Path, total: int) -> Gpu:
    free = max(0, total - _number(device / "mem_info_vram_used"))
    unique = _text(device / "unique_id")
    name = _text(device / "product_name") or "AMD GPU"
    return Gpu(index, f"GPU-{unique}" if unique else device.name, name, total, free, UNKNOWN_CONTEXT_BYTES)


def _number(path: Path) -> int:
    return int(path.read_text().strip())


def _text(path: Path) -> str:
    """Return the content of an optional file, "" if the card does not have it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
