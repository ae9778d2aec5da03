"""NVML through the real nvidia-ml-py, against a stub of the driver's library that fails and hangs on demand."""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import subprocess
import threading
from pathlib import Path

import pynvml
import pytest

from ollama_simulator.clock import run_virtual
from router.adapters.gpu.amd import AmdSysfsProbe
from router.adapters.gpu.detect import detect_probe
from router.adapters.gpu.nvml import NvmlProbe, context_bytes
from router.adapters.gpu.reading import GpuProcess
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.errors import ProbeError

pytestmark = pytest.mark.real_time  # the driver is called in a thread that no loop knows

SOURCE = Path(__file__).parents[2] / "data" / "nvml_stub.c"
EVERY_DEVICE = -1
EVERY_ERROR = sorted(
    value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_") and isinstance(value, int)
)
UNTIL_RESET_MS = 600_000
LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST, NOT_SUPPORTED = 12, 13, 15, 3


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Build the stub and load it under the name that nvidia-ml-py looks up."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the NVML stub")
    if pynvml.nvmlLib is not None:
        pytest.skip("a real NVML is loaded in this process")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    loaded = ctypes.CDLL(str(path))
    loaded.stub_free.argtypes = loaded.stub_total.argtypes = [ctypes.c_ulonglong]
    yield loaded
    loaded.stub_fault(b"nvmlInitWithFlags", EVERY_DEVICE, LIBRARY_NOT_FOUND, 0)  # for tests that follow: no NVML here


@pytest.fixture
def stub(library):
    """Provide the stub with one healthy card of 24 GiB."""
    library.stub_reset()
    yield library
    library.stub_reset()


@pytest.fixture
async def probe(stub):  # noqa: ARG001 (the stub must be loaded first)
    """Provide a probe without a cache."""
    found = NvmlProbe(cache_s=0.0, timeout_s=30.0)
    yield found
    await found.aclose()


async def test_a_card_is_read(probe):
    """With the driver's own free figure, UUID, capability, and the context from its 82 multiprocessors (RTX 3090)."""
    reading = await probe.read()
    assert reading.gpus == (Gpu(0, "GPU-0", "Stub RTX", 24576 * MIB, 20000 * MIB, (40 + 3 * 82) * MIB, "8.6"),)
    assert reading.taken_at_s <= asyncio.get_running_loop().time()


async def test_a_machine_without_cards_gives_an_empty_reading(stub, probe):
    """It is not an error."""
    stub.stub_cards(0, -1, 0)
    assert (await probe.read()).gpus == ()


async def test_processes_have_names_and_memory_if_the_driver_reports_them(stub, probe):
    """An unknown name is "", unknown memory is None."""
    stub.stub_cards(1, -1, 2)
    processes = (GpuProcess(0, 100, "python3", 512 * MIB), GpuProcess(0, 101, "", None))
    for _ in range(2):  # names are kept
        assert (await probe.read()).processes == processes


async def test_mig_instances_replace_their_card(stub, probe):
    """A divided card runs nothing itself; each instance has its own free memory."""
    stub.stub_cards(1, 2, 0)
    gpus = (await probe.read()).gpus
    assert [(gpu.index, gpu.uuid, gpu.free_bytes) for gpu in gpus] == [
        (0, "MIG-0-1", 5000 * MIB),
        (1, "MIG-0-2", 5000 * MIB),
    ]


async def test_a_divided_card_without_instances_is_skipped(stub, probe):
    """Nothing can run on it."""
    stub.stub_cards(1, 0, 0)
    assert (await probe.read()).gpus == ()


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetUUID"])
@pytest.mark.parametrize("code", EVERY_ERROR)
async def test_every_error_of_nvml_is_a_probe_error_h1(stub, probe, function, code):
    """Any call may fail with any code; when the driver works again, so does the probe."""
    stub.stub_fault(function.encode(), EVERY_DEVICE, code, 0)
    with pytest.raises(ProbeError, match="NVML"):
        await probe.read()
    stub.stub_reset()
    assert len((await probe.read()).gpus) == 1


@pytest.mark.parametrize("code", EVERY_ERROR)
async def test_every_error_of_the_memory_call_is_a_probe_error_h1(stub, probe, code):
    """Except those of old drivers, for which the first version of the call is used."""
    stub.stub_fault(b"nvmlDeviceGetMemoryInfo_v2", EVERY_DEVICE, code, 0)
    if code in (FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
        assert (await probe.read()).gpus[0].free_bytes == 20000 * MIB
    else:
        with pytest.raises(ProbeError, match="NVML"):
            await probe.read()


@pytest.mark.parametrize("code", EVERY_ERROR)
@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetNumGpuCores",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlSystemGetProcessName",
    ],
)
async def test_calls_that_not_every_driver_supports_may_fail(stub, probe, function, code):
    """Memory is read without capability, cores, MIG or processes."""
    stub.stub_cards(1, -1, 1)
    stub.stub_fault(function.encode(), EVERY_DEVICE, code, 0)
    assert (await probe.read()).gpus[0].free_bytes == 20000 * MIB


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo_v2"])
@pytest.mark.parametrize("code", [GPU_IS_LOST, NOT_SUPPORTED])
async def test_a_lost_card_does_not_hide_the_others(stub, probe, function, code):
    """The remaining cards are numbered from zero, as by CUDA."""
    stub.stub_cards(3, -1, 0)
    stub.stub_fault(function.encode(), 1, code, 0)
    assert [(gpu.index, gpu.uuid) for gpu in (await probe.read()).gpus] == [(0, "GPU-0"), (1, "GPU-2")]


def meminfo(name):
    """Return a figure of this host's memory in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("reserve_mib", [0, 1024])
@pytest.mark.parametrize("how", ["not supported", "no memory"])
@pytest.mark.parametrize(
    ("name", "major", "minor"),
    [("NVIDIA GB10", 12, 1), ("Orin (nvgpu)", 8, 7), ("NVIDIA Thor", 11, 0), ("Xavier", 7, 2)],
)
async def test_a_chip_without_memory_of_its_own_has_the_hosts(stub, name, major, minor, how, reserve_mib):
    """Less a reserve: a GB10 or a Jetson shares it with the CPU, and NVML reports none."""
    stub.stub_chip(name.encode(), major, minor)
    if how == "not supported":
        stub.stub_fault(b"nvmlDeviceGetMemoryInfo_v2", EVERY_DEVICE, NOT_SUPPORTED, 0)
    else:
        stub.stub_total(0)
        stub.stub_free(0)
    probe = NvmlProbe(cache_s=0.0, timeout_s=30.0, reserve_bytes=reserve_mib * MIB)
    (gpu,) = (await probe.read()).gpus
    await probe.aclose()
    assert gpu.total_bytes == meminfo("MemTotal")
    assert abs(gpu.free_bytes - (meminfo("MemAvailable") - reserve_mib * MIB)) < 4096 * MIB


async def test_a_card_of_no_bytes_is_unknown_memory(stub, probe):
    """It is not a card that has 0 bytes, and not a machine without cards."""
    stub.stub_total(0)
    stub.stub_free(0)
    with pytest.raises(ProbeError, match="known"):
        await probe.read()


async def test_a_figure_that_contradicts_itself_is_a_probe_error(stub, probe):
    """More is free than there is."""
    stub.stub_free(24577)
    with pytest.raises(ProbeError, match="free"):
        await probe.read()


async def test_any_other_error_of_a_handle_fails_the_reading(stub, probe):
    """A card with an unspecific error may be one that Ollama uses."""
    stub.stub_fault(b"nvmlDeviceGetHandleByIndex_v2", 0, 999, 0)
    with pytest.raises(ProbeError, match="NVML"):
        await probe.read()


async def test_nvml_is_initialized_once_and_again_after_an_error(stub, probe):
    """A reloaded driver needs that, even if the shutdown of NVML fails."""
    await probe.read()
    await probe.read()
    assert stub.stub_inits() == 1
    stub.stub_fault(b"nvmlDeviceGetCount_v2", EVERY_DEVICE, 1, 0)
    stub.stub_fault(b"nvmlShutdown", EVERY_DEVICE, 1, 0)
    with pytest.raises(ProbeError):
        await probe.read()
    stub.stub_reset()
    await probe.read()
    assert stub.stub_inits() == 1


async def test_a_reading_is_cached(stub):
    """Readers within the cache time share it, and concurrent readers share one call."""
    probe = NvmlProbe(cache_s=60.0, timeout_s=30.0)
    first, second = await asyncio.gather(probe.read(), probe.read())
    stub.stub_free(1)
    assert first is second is await probe.read()
    await probe.aclose()


def test_a_hung_driver_delays_only_the_first_reader_h2(stub):
    """The first one waits for one deadline, the others fail immediately; one thread is used."""
    stub.stub_fault(b"nvmlDeviceGetCount_v2", EVERY_DEVICE, 0, UNTIL_RESET_MS)

    async def story():
        probe, now = NvmlProbe(cache_s=0.0, timeout_s=5.0), asyncio.get_running_loop().time
        with pytest.raises(ProbeError, match="did not answer"):
            await probe.read()
        assert now() == pytest.approx(5.0)
        threads = threading.active_count()
        for _ in range(100):
            with pytest.raises(ProbeError, match="still hangs"):
                await probe.read()
        assert (now(), threading.active_count()) == (pytest.approx(5.0), threads)
        await probe.aclose()

    run_virtual(story())


async def test_a_probe_recovers_from_a_hung_driver_h2(stub):
    """When the call has returned, the next reading has the card."""
    stub.stub_fault(b"nvmlDeviceGetCount_v2", EVERY_DEVICE, 0, UNTIL_RESET_MS)
    probe = NvmlProbe(cache_s=0.0, timeout_s=0.05)
    with pytest.raises(ProbeError, match="did not answer"):
        await probe.read()
    stub.stub_reset()
    async with asyncio.timeout(30):
        while not (cards := await cards_of(probe)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(cards) == 1
    await probe.aclose()


async def cards_of(probe):
    """Return the cards of a reading, () if it fails."""
    try:
        return (await probe.read()).gpus
    except ProbeError:
        return ()


async def test_closing_ends_a_reading_under_way(stub):
    """Shutdown does not wait for the driver."""
    stub.stub_fault(b"nvmlDeviceGetCount_v2", EVERY_DEVICE, 0, UNTIL_RESET_MS)
    probe = NvmlProbe(cache_s=0.0, timeout_s=30.0)
    reader = asyncio.create_task(probe.read())
    await asyncio.sleep(0.01)
    await probe.aclose()
    with pytest.raises(asyncio.CancelledError):
        await reader


@pytest.mark.parametrize(("multiprocessors", "expected_mib"), [(0, 457), (28, 124), (82, 286), (128, 424), (188, 600)])
def test_context_bytes_grow_with_the_multiprocessors(multiprocessors, expected_mib):
    """As measured from an RTX 3060 to a 4090, with an upper bound."""
    assert context_bytes(multiprocessors) == expected_mib * MIB


@pytest.mark.parametrize(
    ("function", "code", "expected"),
    [
        ("", 0, NvmlProbe),
        ("nvmlInitWithFlags", 9, NvmlProbe),
        ("nvmlDeviceGetCount_v2", 999, NvmlProbe),
        ("nvmlInitWithFlags", LIBRARY_NOT_FOUND, None),
    ],
)
def test_nvml_is_chosen_even_if_the_driver_fails_now(stub, tmp_path, function, code, expected):
    """It may recover; without a driver NVML is not chosen."""
    stub.stub_fault(function.encode(), EVERY_DEVICE, code, 0)
    found = detect_probe(root=str(tmp_path))
    assert found is None if expected is None else isinstance(found, expected)


def test_without_a_visible_card_no_probe_is_chosen(stub, tmp_path):
    """The upstream may see cards that this container does not, so loads are verified by its answers."""
    stub.stub_cards(0, -1, 0)
    assert detect_probe(root=str(tmp_path)) is None


def test_an_amd_card_is_detected(stub, tmp_path):
    """If NVML lists no card, sysfs may, even one that cannot be read yet."""
    stub.stub_cards(0, -1, 0)
    device = tmp_path / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text("?")
    assert isinstance(detect_probe(root=str(tmp_path)), AmdSysfsProbe)
