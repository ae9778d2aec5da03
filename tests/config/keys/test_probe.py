"""`backends.*.probe`: how free memory is read."""

import asyncio
import os
import threading
import time
from contextlib import suppress

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import Speeds
from router.core.units import MIB
from tests.config.keys.page import metrics_page
from tests.config.keys.play import ALONE, BIG, MIDDLE, SMALL, cards, compare, hello, memory_mode, routed, seen

pytestmark = pytest.mark.real_time  # of the tests that play no story: commands and threads that no loop knows

PROBE = "backends.local.probe"
FAST = Speeds(load_mib_per_s=1e6, tokens_per_s=1000)


async def read_by(probe):
    """The same, under a real clock, of a router whose probe is configured so."""
    config = {**ALONE, **{f"{PROBE}.{key}": value for key, value in probe.items()}}
    async with routed(config, has_probe=None) as one:
        return await cards(one)


def stated(**card):
    """The configuration of a probe that only states one card."""
    return {"kind": "static", "gpus": [{"total_mib": 24564, **card}]}


def compare_stated(*found):
    """What the router sees of each of these cards, and what becomes of a request for a big model."""

    async def story(one):
        return await cards(one), (await one.ask(hello(BIG))).status

    return compare(story, PROBE, [stated(**card) for card in found], has_probe=None)


@pytest.mark.key("backends.*.probe.gpus.*.total_mib")
def test_a_stated_card_has_total_mib():
    """Too little for the model, or enough."""
    found = compare_stated({"total_mib": 8192}, {"total_mib": 24564})
    assert found == [([("GPU", 8192, 8192)], 503), ([("GPU", 24564, 24564)], 200)]


@pytest.mark.key("backends.*.probe.gpus.*.free_mib")
def test_of_a_stated_card_free_mib_are_free():
    """All of it where the key is null."""
    found = compare_stated({"free_mib": 8192}, {"free_mib": None})
    assert found == [([("GPU", 24564, 8192)], 503), ([("GPU", 24564, 24564)], 200)]


@pytest.mark.key("backends.*.probe.gpus.*.name")
def test_a_stated_card_has_its_name():
    """As the state shows it."""
    found = [names[0][0] for names, _ in compare_stated({"name": "RTX A5000"}, {})]
    assert found == ["RTX A5000", "GPU"]


CSV = "index, uuid, name, memory.total [MiB], memory.free [MiB]\n0, GPU-0, {name}, {total} MiB, {free} MiB\n"


def csv_command(folder, name="command", total=16000, free=15000):
    """A command that prints nvidia-smi's CSV for one card."""
    file = folder / f"{name}.csv"
    file.write_text(CSV.format(name=name, total=total, free=free))
    return ["cat", str(file)]


def sysfs(root, total=16384, used=384):
    """A root folder in which the kernel shows one amdgpu; it returns the folder of that device."""
    device = root / "sys" / "class" / "drm" / "card0" / "device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text(str(total * MIB))
    (device / "mem_info_vram_used").write_text(str(used * MIB))
    (device / "product_name").write_text(root.name)
    return device


@pytest.mark.key("backends.*.probe.kind")
async def test_kind_says_how_free_memory_is_read(tmp_path):
    """The other keys of the probe stay the same."""
    sysfs(tmp_path / "amd")
    async with metrics_page() as page:
        probe = {**stated(name="stated"), "command": csv_command(tmp_path), "url": page.url}
        probe |= {"root": str(tmp_path / "amd")}
        found = {kind: await read_by({**probe, "kind": kind}) for kind in ("static", "command", "prometheus", "amd")}
        found["none"] = await read_by({**probe, "kind": "none"})
    assert found == {
        "static": [("stated", 24564, 24564)],
        "command": [("command", 16000, 15000)],
        "prometheus": [("page", 24564, 24564)],
        "amd": [("amd", 16384, 16000)],
        "none": None,
    }


@pytest.mark.key("backends.*.probe.command")
async def test_the_command_is_run(tmp_path):
    """Each prints another card."""
    commands = [csv_command(tmp_path, name) for name in ("one", "two")]
    found = [await read_by({"kind": "command", "command": command}) for command in commands]
    assert found == [[("one", 16000, 15000)], [("two", 16000, 15000)]]


@pytest.mark.key("backends.*.probe.url")
def test_the_page_at_url_is_read():
    """One of two."""

    async def hits():
        found = []
        for index in (0, 1):
            async with metrics_page() as first, metrics_page() as second:
                await read_by({"kind": "prometheus", "url": (first, second)[index].url})
                found.append((first.hits > 0, second.hits > 0))
        return found

    assert run_virtual(hits()) == [(True, False), (False, True)]


@pytest.mark.key("backends.*.probe.root")
async def test_the_cards_under_root_are_read(tmp_path):
    """Each of two folders holds another one."""
    for name, total in (("small", 8192), ("large", 16384)):
        sysfs(tmp_path / name, total)
    found = [await read_by({"kind": "amd", "root": str(tmp_path / name)}) for name in ("small", "large")]
    assert found == [[("small", 8192, 7808)], [("large", 16384, 16000)]]


@pytest.mark.key("backends.*.probe.cache_s")
async def test_a_reading_of_a_command_is_used_again_for_cache_s(tmp_path):
    """While the world is read many times."""
    command = ["sh", "-c", f"echo >> {tmp_path}/runs; {' '.join(csv_command(tmp_path))}"]
    often = {**ALONE, "snapshot.ps_interval_s": 0.02, "snapshot.probe_interval_s": 0.02}
    often |= {f"{PROBE}.kind": "command", f"{PROBE}.command": command}
    runs = []
    for cache_s in (0, 1000):
        (tmp_path / "runs").write_text("")
        async with routed({**often, f"{PROBE}.cache_s": cache_s}, has_probe=None) as one:
            for _ in range(1500):
                if len(seen(one, "/api/ps")) >= 5:
                    break
                await asyncio.sleep(0.02)
        runs.append(len((tmp_path / "runs").read_text()))
    assert runs[0] >= 4
    assert runs[1] == 1


@pytest.mark.key("backends.*.probe.max_bytes")
async def test_output_of_more_than_max_bytes_is_not_read(tmp_path):
    """A router that starts with such a command knows no free memory."""
    probe = {"kind": "command", "command": csv_command(tmp_path)}
    found = [await read_by({**probe, "max_bytes": most}) for most in (32, 1024)]
    assert found == [None, [("command", 16000, 15000)]]


@pytest.mark.key("backends.*.probe.reserve_mib")
async def test_of_memory_shared_with_the_cpu_reserve_mib_are_kept_for_the_host(tmp_path):
    """An APU with little VRAM and much GTT has what the host has available less this."""
    device = sysfs(tmp_path, total=512, used=0)
    (device / "mem_info_gtt_total").write_text(str(65536 * MIB))
    (device / "mem_info_gtt_used").write_text("0")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {98304 << 10} kB\nMemAvailable: {20000 << 10} kB\n")
    found = [await read_by({"kind": "amd", "root": str(tmp_path), "reserve_mib": kept}) for kept in (0, 4000)]
    assert found == [[(tmp_path.name, 65536, 20000)], [(tmp_path.name, 65536, 16000)]]


async def test_what_fits_the_memory_of_an_apu_is_served_even_if_its_counters_stand_still(tmp_path):
    """Where ROCm's allocations do not show in sysfs, the second load shows that, and memory is unknown."""
    device = sysfs(tmp_path, total=4096, used=300)
    (device / "mem_info_gtt_total").write_text(str(98304 * MIB))
    (device / "mem_info_gtt_used").write_text(str(1024 * MIB))
    config = {**ALONE, f"{PROBE}.kind": "amd", f"{PROBE}.root": str(tmp_path)}
    async with routed(config, cards=(98304,), has_probe=None, speeds=FAST) as one:
        statuses = [(await one.ask(hello(model))).status for model in (SMALL, BIG, MIDDLE)]
        assert (statuses, await memory_mode(one)) == ([200, 200, 200], "verify")


@pytest.mark.key("backends.*.probe.timeout_s")
def test_a_reading_that_takes_longer_than_timeout_s_counts_as_lost():
    """The page takes three seconds; less than two are never allowed for one."""

    async def story(one, page):
        page.delay_s = 3.0
        await asyncio.sleep(8)
        return await memory_mode(one)

    assert compare(story, f"{PROBE}.timeout_s", [0.25, 5], {"snapshot.stale_after_s": 5}, page=True) == [
        "verify",
        "probe",
    ]


async def test_a_reading_of_an_amd_card_may_take_timeout_s(tmp_path):
    """Half a second, of the ten that are allowed."""
    used = sysfs(tmp_path / "slow") / "mem_info_vram_used"
    used.unlink()
    os.mkfifo(used)
    is_over = threading.Event()

    def feed():
        while not is_over.wait(0.05):
            with suppress(OSError):  # nobody reads now
                pipe = os.open(used, os.O_WRONLY | os.O_NONBLOCK)
                time.sleep(0.5)
                os.write(pipe, b"0")
                os.close(pipe)

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        found = await read_by({"kind": "amd", "root": str(tmp_path / "slow"), "timeout_s": 10})
    finally:
        is_over.set()
        feeding.join()
    assert found == [("slow", 16384, 16384)]
