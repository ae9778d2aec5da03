"""Free memory of AMD cards from sysfs (`mem_info_*` of the amdgpu driver); needs no library.

An APU has two pools, both of them main memory: the carve-out of the firmware ("VRAM") and the GTT. ROCm serves a
runner from the larger one, and llama.cpp takes the host's MemAvailable as free, so an APU has what is left of both.
Ollama uses an APU only if it is one of gfx1151, or with OLLAMA_IGPU_ENABLE; never beside a real card by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from router.adapters.gpu.host import RESERVE_BYTES, HostMemory, host_memory, read_start
from router.adapters.gpu.nvml import UNKNOWN_CONTEXT_BYTES
from router.adapters.gpu.reading import MAX_CARD_BYTES, CachedReading, Cards, DeadlineThread, ProbeReading, usable
from router.core.ollama.runner import Gpu
from router.core.units import GIB
from router.errors import ProbeError

# Ollama's rule for an APU: a small carve-out, a GTT several times as large, and neither of the files of a real card.
_MOST_CARVED_OUT_BYTES, _LEAST_GTT_BYTES, _GTT_SHARE = 4 * GIB, 8 * GIB, 4
_FILES_OF_A_CARD = ("mem_info_vram_vendor", "board_info")
# A card with less is an APU too, even with a small GTT.
_MIN_VRAM_BYTES = 1 << 30
# KFD's gfx_target_version of the APUs: gfx902, 90c, 1033, 1035, 1036, 1103, 1150, 1151, 1152, 1153.
_APUS = {90002, 90012, 100303, 100305, 100306, 110003, 110500, 110501, 110502, 110503}
_ALLOWED_APU = 110501
_NUMBER_CHARS = 20


@dataclass(frozen=True, slots=True)
class _Device:
    """One amdgpu; `pool_bytes` and `used_bytes` are VRAM and GTT. `target` is KFD's gfx_target_version, 0 = unknown."""

    path: Path
    vram_bytes: int
    gtt_bytes: int
    target: int

    @property
    def is_apu(self) -> bool:
        if self.target in _APUS:
            return True
        if any((self.path / name).exists() for name in _FILES_OF_A_CARD):
            return False
        is_small = self.vram_bytes <= _MOST_CARVED_OUT_BYTES and self.gtt_bytes >= _LEAST_GTT_BYTES
        return self.vram_bytes < _MIN_VRAM_BYTES or (is_small and self.gtt_bytes >= _GTT_SHARE * self.vram_bytes)


class AmdSysfsProbe:
    """The amdgpu cards below `root`, in the order of their PCI addresses, which is ROCm's order.

    `reserve_bytes` of the host's memory are kept from an APU.
    """

    name = "amd"
    is_live = True

    def __init__(
        self,
        root: str | Path = "/",
        *,
        cache_s: float = 0.05,
        timeout_s: float = 0.25,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self._root = Path(root)
        self._reserve_bytes = reserve_bytes
        self._thread = DeadlineThread("sysfs", timeout_s)
        self._cached = CachedReading(self._read_cards, cache_s)

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        return await self._cached.get(is_fresh=is_fresh)

    async def aclose(self) -> None:
        await self._cached.aclose()
        self._thread.close()

    async def _read_cards(self) -> Cards:
        gpus: tuple[Gpu, ...] = await self._thread.run(lambda: read_sysfs(self._root, self._reserve_bytes))
        return gpus, ()


def read_sysfs(root: Path, reserve_bytes: int = RESERVE_BYTES) -> tuple[Gpu, ...]:
    """Return the cards, () if there is no amdgpu card. Raises ProbeError if a card cannot be read."""
    try:
        paths = sorted({path.parent.resolve() for path in root.glob("sys/class/drm/card*/device/mem_info_vram_total")})
        targets = _targets(root)
        used = _used_by_ollama([_device(path, targets.get(path, 0)) for path in paths])
        host = host_memory(root) if any(device.is_apu for device in used) else None
        return usable([_gpu(index, device, host, reserve_bytes) for index, device in enumerate(used)])
    except (OSError, ValueError, RuntimeError) as exc:
        raise ProbeError(f"sysfs: {exc}") from exc


def _used_by_ollama(devices: list[_Device]) -> list[_Device]:
    """Return the cards without the APUs that Ollama ignores beside them; an APU alone is what there is."""
    cards = [device for device in devices if not device.is_apu or device.target == _ALLOWED_APU]
    return cards or devices


def _targets(root: Path) -> dict[Path, int]:
    """Return KFD's gfx_target_version by device; {} without KFD."""
    found = {}
    for node in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties"):
        try:
            pairs = (line.split() for line in read_start(node, 1 << 14).splitlines())
            values = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
            minor = int(values.get("drm_render_minor", "0")[:_NUMBER_CHARS])
            target = int(values.get("gfx_target_version", "0")[:_NUMBER_CHARS])
        except (OSError, ValueError):
            continue
        if minor and target:
            found[(root / f"sys/class/drm/renderD{minor}/device").resolve()] = target
    return found


def _device(path: Path, target: int) -> _Device:
    gtt = path / "mem_info_gtt_total"
    return _Device(path, _number(path / "mem_info_vram_total"), _number(gtt) if gtt.exists() else 0, target)


def _gpu(index: int, device: _Device, host: HostMemory | None, reserve_bytes: int) -> Gpu:
    total, used = device.vram_bytes, _number(device.path / "mem_info_vram_used")
    if device.is_apu:
        total = max(total, device.gtt_bytes)
        used += _number(device.path / "mem_info_gtt_used") if device.gtt_bytes else 0
    free = max(0, total - used)
    if device.is_apu and host is not None:
        free = max(0, min(free, host.available_bytes - reserve_bytes))
    unique = _text(device.path / "unique_id")
    uuid, name = f"GPU-{unique}" if unique else device.path.name, _text(device.path / "product_name") or "AMD GPU"
    is_optional = device.is_apu and device.target != _ALLOWED_APU
    return Gpu(index, uuid, name, total, free, UNKNOWN_CONTEXT_BYTES, is_optional=is_optional)


def _number(path: Path) -> int:
    number = int(read_start(path, _NUMBER_CHARS + 1))
    if not 0 <= number <= MAX_CARD_BYTES:
        raise ValueError(f"{path.name}: {number} bytes")
    return number


def _text(path: Path) -> str:
    """Return the content of an optional file, "" if the card does not have it."""
    try:
        return read_start(path)
    except OSError:
        return ""
