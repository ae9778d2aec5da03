"""The probes other than NVML: a command's CSV, a Prometheus page, sysfs, static values; and their shared cache."""

from __future__ import annotations

import asyncio
import sys

import httpx
import pytest
import respx

from router.adapters.gpu.amd import AmdSysfsProbe
from router.adapters.gpu.command import QUERY, CommandProbe, parse_csv
from router.adapters.gpu.detect import StaticProbe
from router.adapters.gpu.prometheus import PrometheusProbe, parse_metrics
from router.adapters.gpu.reading import CachedReading
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.errors import ProbeError

HEADER = "index, uuid, name, memory.total [MiB], memory.free [MiB], compute_cap"
A5000 = "0, GPU-1a, NVIDIA RTX A5000, 24564 MiB, 24240 MiB, 8.6"


def sizes(gpus):
    return [(gpu.index, gpu.total_bytes // MIB, gpu.free_bytes // MIB) for gpu in gpus]


def test_the_csv_of_the_query_is_parsed():
    """Every column becomes the field of its name."""
    (gpu,) = parse_csv(f"{HEADER}\n{A5000}\n")
    assert gpu == Gpu(0, "GPU-1a", "NVIDIA RTX A5000", 24564 * MIB, 24240 * MIB, 457 * MIB, "8.6")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (A5000, [(0, 24564, 24240)]),
        ("1, GPU-2, B, 100, 50, 8.6\r\n3, GPU-3, C, 200, 20, 9.0\r\n", [(1, 100, 50), (3, 200, 20)]),
        ("memory.free [MiB], memory.total [MiB]\n50 MiB, 100 MiB", [(0, 100, 50)]),
        ("memory.free [MiB], memory.total [MiB]\n50, 100", [(0, 100, 50)]),
        ("memory.free [GiB], memory.total [GiB]\n1.5, 2", [(0, 2048, 1536)]),
        ("memory.free, memory.total\n1 GiB, 2 GiB", [(0, 2048, 1024)]),
        ("memory.total [MiB], memory.used [MiB]\n100 MiB, 30 MiB", [(0, 100, 70)]),
        ("memory.total [MiB], memory.used [MiB], memory.reserved [MiB]\n100, 30, 5", [(0, 100, 65)]),
        ("memory.total [MiB], memory.used [MiB]\n100, 130", [(0, 100, 0)]),
        (f"{HEADER}\n0, GPU-1, A, [N/A], [N/A], 8.6\n1, GPU-2, B, 100 MiB, 50 MiB, [N/A]", [(1, 100, 50)]),
        (f"{HEADER}\n[GPU is lost], GPU-1, A, [GPU is lost], [GPU is lost], x\n{A5000}", [(0, 24564, 24240)]),
        (f"{HEADER}\n[N/A], [N/A], A, 100 MiB, 50 MiB, 8.6", [(0, 100, 50)]),
        (f"Warning: a banner of the login\n{HEADER}\n{A5000}", [(0, 24564, 24240)]),
        (f"a banner, with a comma\n{HEADER}\n{A5000}", [(0, 24564, 24240)]),
        ("memory.total [parsec], memory.free [MiB]\n100, 50", None),
        (f"{HEADER}\n", None),
        ("Unable to determine the device handle", None),
        ("", None),
    ],
)
def test_columns_may_come_in_any_order_and_unit(text, expected):
    """With or without a header; a card without figures is skipped, and it is an error if none remains."""
    if expected is None:
        with pytest.raises(ProbeError):
            parse_csv(text)
    else:
        assert sizes(parse_csv(text)) == expected


async def run(code, **settings):
    probe = CommandProbe((sys.executable, "-c", code), **settings)
    try:
        return await probe.read()
    finally:
        await probe.aclose()


@pytest.mark.real_time
async def test_cards_are_read_from_the_output_of_a_command():
    """Any program that prints the CSV can be used."""
    reading = await run(f"print('''{HEADER}\n{A5000}''')", timeout_s=30.0)
    assert sizes(reading.gpus) == [(0, 24564, 24240)]


@pytest.mark.real_time
async def test_no_devices_is_not_an_error():
    """nvidia-smi reports it with its own exit status."""
    assert (await run("print('No devices were found'); raise SystemExit(6)", timeout_s=30.0)).gpus == ()


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import sys; sys.exit('NVIDIA-SMI has failed')", "status 1: NVIDIA-SMI has failed"),
        ("print('cannot talk to the driver'); raise SystemExit(9)", "status 9: cannot talk"),
        ("print('hello')", "no CSV"),
    ],
)
async def test_the_error_of_a_failed_command_quotes_its_output(code, text):
    """The first line that it wrote, on standard error or output."""
    with pytest.raises(ProbeError, match=text):
        await run(code, timeout_s=30.0)


@pytest.mark.real_time
async def test_a_command_that_hangs_is_killed_at_the_deadline():
    """The reading fails in time, and no process is left."""
    with pytest.raises(ProbeError, match=r"did not end in 0\.2 s"):
        await run("import time; time.sleep(600)", timeout_s=0.2)


async def test_a_missing_program_is_a_probe_error():
    """A program that is not installed does not crash the router."""
    with pytest.raises(ProbeError, match="cannot run"):
        await CommandProbe(("/nonexistent/nvidia-smi",)).read()


def test_a_bare_nvidia_smi_gets_the_query():
    """`ssh gpu1 nvidia-smi` is a sufficient configuration; a command with arguments is used unchanged."""
    assert CommandProbe(("ssh", "gpu1", "/usr/bin/nvidia-smi"))._argv[3:] == QUERY
    assert CommandProbe(("nvidia-smi", "--query-gpu=x"))._argv == ("nvidia-smi", "--query-gpu=x")


DCGM = """
# HELP DCGM_FI_DEV_FB_FREE Framebuffer memory free (in MiB).
# TYPE DCGM_FI_DEV_FB_FREE gauge
DCGM_FI_DEV_FB_FREE{gpu="1",UUID="GPU-b",device="nvidia1",modelName="NVIDIA A100-SXM4-40GB",Hostname="n1"} 100
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA \\"A\\" 100",Hostname="n1"} 40000
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA \\"A\\" 100",Hostname="n1"} 536
DCGM_FI_DEV_FB_USED{gpu="1",UUID="GPU-b",device="nvidia1",modelName="NVIDIA A100-SXM4-40GB",Hostname="n1"} 4.0e+02
DCGM_FI_DEV_FB_RESERVED{gpu="1",UUID="GPU-b"} 7
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a"} 40
DCGM_FI_DEV_FB_USED{gpu="2",UUID="GPU-c",Hostname="n1"} 5
"""


def test_dcgm_metrics_are_parsed():
    """Cards are ordered by number, totals are free plus used, and cards without a free figure are skipped."""
    gpus = parse_metrics(DCGM)
    assert sizes(gpus) == [(0, 40536, 40000), (1, 500, 100)]
    assert [gpu.uuid for gpu in gpus] == ["GPU-a", "GPU-b"]
    assert gpus[1].name == "NVIDIA A100-SXM4-40GB"


def test_dcgm_total_is_preferred_and_mig_instances_are_cards():
    """A reported total takes precedence over the sum; each MIG instance is a card of its own."""
    text = (
        'DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a",GPU_I_ID="2"} 50\n'
        'DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a",GPU_I_ID="1"} 40\n'
        'DCGM_FI_DEV_FB_TOTAL{gpu="0",UUID="GPU-a",GPU_I_ID="1"} 99\n'
    )
    assert [(gpu.uuid, gpu.total_bytes // MIB) for gpu in parse_metrics(text)] == [("GPU-a/1", 99), ("GPU-a/2", 50)]


def test_dcgm_without_labels_or_numbers_is_handled():
    """A card without a UUID gets one by its position; NaN and text are not figures."""
    assert parse_metrics('DCGM_FI_DEV_FB_FREE{x="y"} 5')[0].uuid == "gpu-0"
    for text in ("", 'DCGM_FI_DEV_FB_FREE{gpu="0"} NaN', 'DCGM_FI_DEV_FB_FREE{gpu="0"} x'):
        with pytest.raises(ProbeError, match="shows no"):
            parse_metrics(text)


@respx.mock
async def test_a_page_is_read_once_per_cache_time():
    """Two readings within that time cause one request."""
    route = respx.get("http://dcgm.test/metrics").respond(text=DCGM)
    probe = PrometheusProbe("http://dcgm.test/metrics", cache_s=60.0)
    assert (await probe.read()) is (await probe.read())
    assert route.call_count == 1
    await probe.aclose()


@respx.mock
@pytest.mark.parametrize(
    "answer", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.Response(503), httpx.Response(200)]
)
async def test_a_page_that_cannot_be_read_is_a_probe_error(answer):
    """Whether the connection, the status or the content is wrong."""
    respx.get("http://dcgm.test/metrics").mock(side_effect=[answer])
    probe = PrometheusProbe("http://dcgm.test/metrics")
    with pytest.raises(ProbeError):
        await probe.read()
    await probe.aclose()


def amd_card(root, number, total, used, **files):
    """Create a card as amdgpu shows it: sysfs links it from the DRM class to its PCI device."""
    device = root / f"sys/devices/0000:0{9 - number}:00.0"
    device.mkdir(parents=True)
    link = root / f"sys/class/drm/card{number}"
    link.mkdir(parents=True)
    (link / "device").symlink_to(device)
    for name, text in {"mem_info_vram_total": total, "mem_info_vram_used": used, **files}.items():
        (device / name).write_text(f"{text}\n")


@pytest.mark.real_time
async def test_amd_cards_are_in_the_order_of_their_pci_addresses(tmp_path):
    """Not of their DRM numbers, as in ROCm; an integrated GPU's slice of main memory is not a card."""
    amd_card(tmp_path, 0, 512 * MIB, 1)
    amd_card(tmp_path, 1, 24560 * MIB, 560 * MIB, product_name="Radeon RX 7900 XTX", unique_id="ab12")
    amd_card(tmp_path, 2, 16368 * MIB, 20000 * MIB)
    probe = AmdSysfsProbe(tmp_path, timeout_s=30.0)
    gpus = (await probe.read()).gpus
    assert sizes(gpus) == [(0, 16368, 0), (1, 24560, 24000)]
    assert [(gpu.name, gpu.uuid) for gpu in gpus] == [("AMD GPU", "0000:07:00.0"), ("Radeon RX 7900 XTX", "GPU-ab12")]
    await probe.aclose()


@pytest.mark.real_time
async def test_an_amd_card_that_cannot_be_read_is_a_probe_error(tmp_path):
    """A card in reset has an empty file."""
    amd_card(tmp_path, 0, 24560 * MIB, "")
    probe = AmdSysfsProbe(tmp_path, timeout_s=30.0)
    with pytest.raises(ProbeError, match="sysfs"):
        await probe.read()
    await probe.aclose()


@pytest.mark.real_time
async def test_a_machine_without_amd_cards_gives_an_empty_reading(tmp_path):
    """It is not an error."""
    probe = AmdSysfsProbe(tmp_path, timeout_s=30.0)
    assert (await probe.read()).gpus == ()
    await probe.aclose()


async def test_static_cards_are_reported_unchanged():
    """The reading is the configured card."""
    card = Gpu(0, "u", "n", 2, 1)
    probe = StaticProbe((card,))
    assert (await probe.read()).gpus == (card,)
    await probe.aclose()


async def test_cancelling_one_reader_does_not_cancel_the_others():
    """The reading continues for them, and they get its failure."""
    release = asyncio.Event()

    async def read_cards():
        await release.wait()
        raise ProbeError("gone")

    cached = CachedReading(read_cards, 0.0)
    leaver, stayer = asyncio.create_task(cached.get()), asyncio.create_task(cached.get())
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(ProbeError, match="gone"):
        await stayer
    await cached.aclose()
