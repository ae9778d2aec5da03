"""AMD's APUs, whose memory is the host's: by what ROCm and llama.cpp give Ollama of it."""

from __future__ import annotations

import pytest

from router.adapters.gpu.amd import read_sysfs
from router.adapters.gpu.host import HostMemory, host_memory
from router.core.units import GIB, MIB
from tests.adapters.gpu.test_probes import amd_card

GFX1151, GFX1103, GFX1100 = 110501, 110003, 110000


def apu(root, number=0, *, vram=4 * GIB, vram_used=300 * MIB, gtt=96 * GIB, gtt_used=GIB, **files):
    amd_card(root, number, vram, vram_used, mem_info_gtt_total=gtt, mem_info_gtt_used=gtt_used, **files)


def has(root, available_gib, total_gib=128):
    (root / "proc").mkdir(exist_ok=True)
    text = f"MemTotal: {total_gib << 20} kB\nMemFree: 5 kB\nMemAvailable:   {int(available_gib * (1 << 20))} kB\n"
    (root / "proc/meminfo").write_text(text)


def kfd(root, number, target):
    """Let KFD know the chip of a card."""
    render = root / f"sys/class/drm/renderD{128 + number}"
    render.mkdir(parents=True)
    (render / "device").symlink_to(root / f"sys/devices/0000:0{9 - number}:00.0")
    node = root / f"sys/class/kfd/kfd/topology/nodes/{number + 1}"
    node.mkdir(parents=True)
    (node / "properties").write_text(
        f"cpu_cores_count 0\ndrm_render_minor {128 + number}\ngfx_target_version {target}\n"
    )


def sizes(gpus):
    return [(round(gpu.total_bytes / GIB, 1), round(gpu.free_bytes / GIB, 1)) for gpu in gpus]


def test_an_apu_has_its_larger_pool_less_what_is_used_of_both(tmp_path):
    """A carve-out of 4 GiB and a GTT of 96: ROCm serves a runner from the GTT."""
    apu(tmp_path)
    assert sizes(read_sysfs(tmp_path)) == [(96, 94.7)]


@pytest.mark.parametrize("vram_mib", [64, 512, 1024, 2048, 4096])
def test_any_small_carve_out_is_an_apu(tmp_path, vram_mib):
    """Firmware offers 64 MiB to 4 GiB."""
    apu(tmp_path, vram=vram_mib * MIB, vram_used=0, gtt_used=0)
    assert sizes(read_sysfs(tmp_path)) == [(96, 96)]


def test_an_apu_has_no_more_than_the_host_has_available(tmp_path):
    """For llama.cpp that is the free memory of such a chip; a reserve is kept for the host."""
    apu(tmp_path)
    has(tmp_path, 27.5)
    assert sizes(read_sysfs(tmp_path, 2 * GIB)) == [(96, 25.5)]
    assert sizes(read_sysfs(tmp_path, 0)) == [(96, 27.5)]
    has(tmp_path, 120)
    assert sizes(read_sysfs(tmp_path, 2 * GIB)) == [(96, 94.7)]
    has(tmp_path, 1)
    assert sizes(read_sysfs(tmp_path, 2 * GIB)) == [(96, 0)]


def test_a_large_carve_out_is_known_by_its_chip(tmp_path):
    """96 of 128 GiB carved out: llama.cpp has 27.5 available (ollama issue 16462)."""
    apu(tmp_path, vram=96 * GIB, vram_used=0, gtt=16 * GIB, gtt_used=0)
    kfd(tmp_path, 0, GFX1151)
    has(tmp_path, 27.5)
    (gpu,) = read_sysfs(tmp_path, 0)
    assert (sizes([gpu]), gpu.is_optional) == ([(96, 27.5)], False)


@pytest.mark.parametrize("name", ["mem_info_vram_vendor", "board_info"])
def test_a_real_card_with_little_memory_is_no_apu(tmp_path, name):
    """As in Ollama: an APU has neither of these files."""
    apu(tmp_path, gtt=64 * GIB, **{name: "samsung"})
    has(tmp_path, 1)
    assert sizes(read_sysfs(tmp_path)) == [(4, 3.7)]


def test_an_apu_beside_a_real_card_does_not_count_unless_ollama_uses_it(tmp_path):
    """By default only gfx1151 is used; the others would only shift the numbers."""
    for number, target, expected in ((0, GFX1103, [24]), (1, GFX1151, [96, 24])):
        root = tmp_path / str(number)
        amd_card(root, 0, 24 * GIB, 0, mem_info_gtt_total=64 * GIB, board_info="x")
        apu(root, 1)
        kfd(root, 0, GFX1100)
        kfd(root, 1, target)
        assert [size for size, _ in sizes(read_sysfs(root))] == expected


def test_an_apu_alone_may_be_one_that_ollama_ignores(tmp_path):
    """Only with OLLAMA_IGPU_ENABLE; where a load then uses no VRAM, there is no GPU."""
    apu(tmp_path)
    assert [gpu.is_optional for gpu in read_sysfs(tmp_path)] == [True]
    kfd(tmp_path, 0, GFX1103)
    assert [gpu.is_optional for gpu in read_sysfs(tmp_path)] == [True]


@pytest.mark.parametrize(
    "text", ["", "x", "MemTotal: 5 kB", "MemTotal: x kB\nMemAvailable: 1 kB", "MemAvailable: 9 kB\nMemTotal: 5 kB"]
)
def test_a_host_whose_memory_cannot_be_read_limits_nothing(tmp_path, text):
    """Nor does one without /proc."""
    assert host_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(text)
    assert host_memory(tmp_path) is None
    has(tmp_path, 5)
    assert host_memory(tmp_path) == HostMemory(128 * GIB, 5 * GIB)
