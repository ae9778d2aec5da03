"""NVML through the real nvidia-ml-py, against a stub of the driver's library that fails and hangs as it is told."""

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
    """The stub, built here and loaded under the name that nvidia-ml-py asks for."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the NVML stub")
    if pynvml.nvmlLib is not None:
        pytest.skip("a real NVML is loaded in this process")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    loaded = ctypes.CDLL(str(path))
    loaded.stub_free.argtypes = [ctypes.c_ulonglong]
    yield loaded
    loaded.stub_fault(b"nvmlInitWithFlags", EVERY_DEVICE, LIBRARY_NOT_FOUND, 0)  # for tests that follow: no NVML here


@pytest.fixture
def stub(library):
    """One healthy card of 24 GiB."""
    library.stub_reset()
    yield library
    library.stub_reset()


@pytest.fixture
async def probe(stub):
    """A probe that reads anew each time."""
    found = NvmlProbe(cache_s=0.0, timeout_s=30.0)
    yield found
    await found.aclose()


async def test_a_card_is_read(stub, probe):
    """The driver's own free figure, UUID, capability, and the context from its multiprocessors (82 on an RTX 3090)."""
    reading = await probe.read()
    assert reading.gpus == (Gpu(0, "GPU-0", "Stub RTX", 24576 * MIB, 20000 * MIB, (40 + 3 * 82) * MIB, "8.6"),)
    assert reading.taken_at_s <= asyncio.get_running_loop().time()


async def test_no_card_is_a_reading_without_cards(stub, probe):
    """That there is no GPU is a finding, not an error."""
    stub.stub_cards(0, -1, 0)
    assert (await probe.read()).gpus == ()


async def test_processes_are_named_where_the_driver_names_them(stub, probe):
    """An unknown name is empty, unknown memory is None."""
    stub.stub_cards(1, -1, 2)
    processes = (GpuProcess(0, 100, "python3", 512 * MIB), GpuProcess(0, 101, "", None))
    assert (await probe.read()).processes == processes


async def test_mig_instances_stand_in_place_of_their_card(stub, probe):
    """A divided card runs nothing itself, and shows what is free in each instance."""
    stub.stub_cards(1, 2, 0)
    gpus = (await probe.read()).gpus
    assert [(gpu.index, gpu.uuid, gpu.free_bytes) for gpu in gpus] == [
        (0, "MIG-0-1", 5000 * MIB),
        (1, "MIG-0-2", 5000 * MIB),
    ]


async def test_a_divided_card_without_instances_is_no_card(stub, probe):
    """Nothing can run there."""
    stub.stub_cards(1, 0, 0)
    assert (await probe.read()).gpus == ()


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetUUID"])
@pytest.mark.parametrize("code", EVERY_ERROR)
async def test_every_error_of_nvml_is_a_probe_error_h1(stub, probe, function, code):
    """Whatever call fails in whatever way; and when the driver is back, so are the cards."""
    stub.stub_fault(function.encode(), EVERY_DEVICE, code, 0)
    with pytest.raises(ProbeError, match="NVML"):
        await probe.read()
    stub.stub_reset()
    assert len((await probe.read()).gpus) == 1


@pytest.mark.parametrize("code", EVERY_ERROR)
async def test_every_error_of_the_memory_call_h1(stub, probe, code):
    """An old driver is asked the old way; everything else says that the memory is unknown."""
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
async def test_what_not_every_driver_supports_is_not_needed(stub, probe, function, code):
    """Memory is read without capability, cores, MIG or processes."""
    stub.stub_cards(1, -1, 1)
    stub.stub_fault(function.encode(), EVERY_DEVICE, code, 0)
    assert (await probe.read()).gpus[0].free_bytes == 20000 * MIB


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo_v2"])
@pytest.mark.parametrize("code", [GPU_IS_LOST, NOT_SUPPORTED])
async def test_a_lost_card_does_not_hide_the_others(stub, probe, function, code):
    """The remaining cards count from zero, as CUDA counts them."""
    stub.stub_cards(3, -1, 0)
    stub.stub_fault(function.encode(), 1, code, 0)
    assert [(gpu.index, gpu.uuid) for gpu in (await probe.read()).gpus] == [(0, "GPU-0"), (1, "GPU-2")]


async def test_a_handle_that_fails_otherwise_fails_the_reading(stub, probe):
    """An error that says nothing about the card may hide one that Ollama uses."""
    stub.stub_fault(b"nvmlDeviceGetHandleByIndex_v2", 0, 999, 0)
    with pytest.raises(ProbeError, match="NVML"):
        await probe.read()


async def test_nvml_is_set_up_once_and_again_after_an_error(stub, probe):
    """A reloaded driver needs a new start, even when the old one cannot be ended."""
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


async def test_a_reading_is_kept_for_its_time(stub):
    """Readers in between share it; there is one call for all who ask at once."""
    probe = NvmlProbe(cache_s=60.0, timeout_s=30.0)
    first, second = await asyncio.gather(probe.read(), probe.read())
    stub.stub_free(1)
    assert first is second is await probe.read()
    await probe.aclose()


def test_a_hung_driver_delays_nobody_twice_h2(stub):
    """One deadline for the first, an error at once for the rest, one thread in all."""
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


async def test_a_driver_that_hung_recovers_by_itself_h2(stub):
    """Once the call has returned, the next reading has the card."""
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
    """The cards of a reading, none where it fails."""
    try:
        return (await probe.read()).gpus
    except ProbeError:
        return ()


async def test_closing_during_a_reading_ends_it(stub):
    """Shutdown does not wait for the driver."""
    stub.stub_fault(b"nvmlDeviceGetCount_v2", EVERY_DEVICE, 0, UNTIL_RESET_MS)
    probe = NvmlProbe(cache_s=0.0, timeout_s=30.0)
    reader = asyncio.create_task(probe.read())
    await asyncio.sleep(0.01)
    await probe.aclose()
    with pytest.raises(asyncio.CancelledError):
        await reader


@pytest.mark.parametrize(("multiprocessors", "expected_mib"), [(0, 457), (28, 124), (82, 286), (128, 424), (188, 600)])
def test_context_bytes(multiprocessors, expected_mib):
    """Near what was measured from an RTX 3060 to a 4090, with a cap."""
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
def test_detection(stub, tmp_path, function, code, expected):
    """A driver that fails may recover; without one there is no NVML probe."""
    stub.stub_fault(function.encode(), EVERY_DEVICE, code, 0)
    found = detect_probe(root=str(tmp_path))
    assert found is None if expected is None else isinstance(found, expected)


def test_detection_without_a_visible_card(stub, tmp_path):
    """The upstream may see cards that this container does not: its own answers must tell."""
    stub.stub_cards(0, -1, 0)
    assert detect_probe(root=str(tmp_path)) is None


def test_detection_of_an_amd_card(stub, tmp_path):
    """Where NVML has no card, sysfs may have one, also one that cannot be read yet."""
    stub.stub_cards(0, -1, 0)
    device = tmp_path / "sys/class/drm/card0/device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text("?")
    assert isinstance(detect_probe(root=str(tmp_path)), AmdSysfsProbe)
