"""Pages, outputs and files that are malformed, endless or hostile: each is a ProbeError, in time and within limits."""

from __future__ import annotations

import asyncio
import gzip
import sys
from pathlib import Path

import pytest

from ollama_simulator.clock import run_virtual
from router.adapters.gpu.amd import read_sysfs
from router.adapters.gpu.command import CommandProbe, parse_csv
from router.adapters.gpu.prometheus import PrometheusProbe, parse_metrics
from router.adapters.gpu.reading import CachedReading
from router.errors import ProbeError
from tests.adapters.gpu.test_probes import A5000, HEADER, amd_card
from tests.http.raw_upstream import raw_upstream

MANY = "9" * 5000
NUMBERS = ["-1", "1e999", "-inf", "inf", "nan", MANY, f"-{MANY}", f"1e{MANY}", "1e30", "0x10", "", "½", "٣", "1_0", "0"]
GOOD = 'DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a"} 100\nDCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a"} 50\n'


def parsed(parse, text):
    """Return the cards of `text`, None if it is a ProbeError; any other error fails the test."""
    try:
        return parse(text)
    except ProbeError:
        return None


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_is_no_amount_is_a_probe_error(number):
    """Whatever prints it; an amount of 0 is unknown memory, not an empty card."""
    for text in (
        f'DCGM_FI_DEV_FB_FREE{{gpu="0"}} {number}',
        f'{GOOD}DCGM_FI_DEV_FB_FREE{{gpu="0",UUID="GPU-a"}} {number}',
    ):
        cards = parsed(parse_metrics, text)  # the last line is no figure, or it is 0
        assert cards is None or [card.total_bytes for card in cards] in ([150 << 20], [50 << 20])
    for row in (f"0, GPU-1, A, {number} MiB, 50 MiB, 8.6", f"0, GPU-1, A, 100 MiB, {number} MiB, 8.6"):
        cards = parsed(parse_csv, f"{HEADER}\n{row}")
        assert cards is None or [card.free_bytes for card in cards] == [0]


@pytest.mark.parametrize("index", NUMBERS)
def test_an_index_that_is_no_number_breaks_nothing(index):
    """The place in the list stands for it."""
    assert len(parse_csv(f"{HEADER}\n{index}, GPU-1, A, 100 MiB, 50 MiB, 8.6")) == 1
    assert len(parse_metrics(f'DCGM_FI_DEV_FB_FREE{{gpu="{index}",UUID="GPU-a"}} 5')) == 1


def test_more_free_than_there_is_is_a_probe_error():
    """No figure of such a page can be believed."""
    for parse, text in (
        (parse_metrics, 'DCGM_FI_DEV_FB_FREE{gpu="0"} 5\nDCGM_FI_DEV_FB_TOTAL{gpu="0"} 4'),
        (parse_csv, f"{HEADER}\n0, GPU-1, A, 100 MiB, 101 MiB, 8.6"),
    ):
        with pytest.raises(ProbeError, match="free"):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [
        'DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a"} 0\nDCGM_FI_DEV_FB_TOTAL{gpu="0",UUID="GPU-a"} 0',
        'DCGM_FI_DEV_FB_FREE{gpu="0"} 0\nDCGM_FI_DEV_FB_USED{gpu="0"} 0\nDCGM_FI_DEV_FB_RESERVED{gpu="0"} 0',
    ],
)
def test_a_total_of_nothing_is_unknown_memory(text):
    """A GB10 behind an exporter: not a card that has 0 GiB, and not a machine without cards."""
    with pytest.raises(ProbeError, match="known"):
        parse_metrics(text)
    for row in ("[N/A], [N/A]", "[Not Supported], [Not Supported]", "0 MiB, 0 MiB"):
        with pytest.raises(ProbeError, match="known"):
            parse_csv(f"{HEADER}\n0, GPU-1, NVIDIA GB10, {row}, 12.1")


@pytest.mark.parametrize(
    "line",
    [
        "DCGM_FI_DEV_FB_FREE{" * 11_000,
        "DCGM_FI_DEV_FB_FREE{" + "}" * 220_000,
        "DCGM_FI_DEV_FB_FREE{" + "a" * 220_000,
        "DCGM_FI_DEV_FB_FREE{" + 'a="' * 73_000 + "} 5",
        "DCGM_FI_DEV_FB_FREE{" + 'a="b",' * 36_000 + "} 5",
        'DCGM_FI_DEV_FB_FREE{a="' + "\\" * 220_000 + "} 5",
        'DCGM_FI_DEV_FB_FREE{a="' + '\\"' * 110_000 + "} 5",
        "DCGM_FI_DEV_FB_FREE{" + " , " * 73_000 + "} 5",
        'DCGM_FI_DEV_FB_FREE{gpu="0"}' + " " * 220_000,
        'DCGM_FI_DEV_FB_FREE{gpu="0"} ' + "1" * 220_000,
        " " * 220_000 + "DCGM_FI_DEV_FB_FREE",
        "memory.total," + "a." * 110_000 + "[",
        f"{HEADER}\n0, GPU, A, " + "1" * 220_000 + "x, 50 MiB, 8.6",
        f"{HEADER}\n0, GPU, A, 1" + " " * 220_000 + "!, 50 MiB, 8.6",
        f"{HEADER}\n" + "," * 220_000,
        ",\n" * 110_000,
    ],
    ids=range(16),
)
def test_a_long_line_is_read_in_one_pass_h9(line):
    """It took seconds to minutes where each of its parts was tried from each place."""
    for parse in (parse_metrics, parse_csv):
        for text in (line, f"{GOOD}{line}", f"{line}\n{GOOD}", f"{HEADER}\n{A5000}\n{line}"):
            parsed(parse, text)


def test_thousands_of_cards_are_no_machine():
    """Each decision looks at every card."""
    page = "\n".join(f'DCGM_FI_DEV_FB_FREE{{gpu="{number}",UUID="GPU-{number}"}} 5' for number in range(1000))
    with pytest.raises(ProbeError, match="1000 cards"):
        parse_metrics(page)


FREE = "DCGM_FI_DEV_FB_FREE"


@pytest.mark.parametrize("line", [FREE + "{} 1", FREE + '{gpu="0"} 1', FREE + " 1", FREE])
def test_a_page_of_countless_figures_is_refused_before_it_is_read_h9(line):
    """Also if all are of one card: each takes a while on the loop."""
    with pytest.raises(ProbeError, match="more than 2048 figures"):
        parse_metrics(f"{line}\n" * 2049)


@pytest.mark.parametrize("text", ["," * 4001, ",\x0b" * 5000, "\n" * 4001, "0,GPU-a,n,100 MiB,50 MiB,8.0\x85" * 1000])
def test_output_of_countless_cells_is_refused_before_it_is_read_h9(text):
    """In whatever lines."""
    with pytest.raises(ProbeError, match=r"more than 4000 (lines|commas)"):
        parse_csv(text)


def test_a_card_that_is_listed_twice_counts_once():
    """Two exporters, or a command that prints its table again: the memory is there once."""
    assert len(parse_csv(f"{HEADER}\n{A5000}\n{A5000}")) == 1


# --- answers ---------------------------------------------------------------------------------------------------------


def page_error(script, **settings):
    """Return what reading a page says that `script` serves, and after how many seconds."""

    async def story():
        loop = asyncio.get_running_loop()
        async with raw_upstream(script) as server:
            probe = PrometheusProbe(f"{server.url}/metrics", timeout_s=2.0, **settings)
            started_s = loop.time()
            with pytest.raises(ProbeError) as caught:
                await probe.read()
            took_s = loop.time() - started_s
            await probe.aclose()
        return caught.value.message, took_s

    return run_virtual(story())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def test_a_page_that_drips_ends_at_the_deadline_h9():
    """Each part comes within the timeout, the whole never."""

    async def drip(visit):
        await visit.say(HEAD + b"\r\n")
        for _ in range(1000):
            await visit.say(b"# ")
            await asyncio.sleep(0.5)

    message, took_s = page_error(drip)
    assert "2 s" in message
    assert took_s == pytest.approx(2.0, abs=0.5)


def test_a_page_that_never_ends_is_cut_off():
    """At its limit, however fast it comes."""

    async def flood(visit):
        await visit.say(HEAD + b"\r\n")
        while True:
            await visit.say(b"#" * 65536)

    message, _ = page_error(flood)
    assert "1048576 bytes" in message


def test_a_compressed_page_is_refused():
    """It was not asked for, and a few kilobytes of it could be gigabytes."""
    bomb = gzip.compress(b"#" * (64 << 20))

    async def answer(visit):
        assert b"accept-encoding: identity" in visit.head.lower()
        await visit.say(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)

    message, _ = page_error(answer)
    assert "encoding" in message


@pytest.mark.parametrize("head", [b"\xff\xfe\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b""])
def test_what_is_no_http_is_a_probe_error(head):
    """A port of something else."""

    async def answer(visit):
        await visit.say(head)
        visit.writer.close()

    page_error(answer)


async def command_error(code, **settings):
    probe = CommandProbe((sys.executable, "-c", code), **settings)
    with pytest.raises(ProbeError) as caught:
        await probe.read()
    await probe.aclose()
    return caught.value.message


@pytest.mark.real_time
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_command_that_prints_without_end_is_killed(stream):
    """At the limit of its output; nothing of it is kept."""
    code = f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"
    assert "more than 1048576 bytes" in await command_error(code, timeout_s=60.0)


@pytest.mark.real_time
async def test_a_child_of_the_command_does_not_hold_the_reading(tmp_path):
    """It inherits the output, and lives longer than the command: the deadline counts, and the child is ended too."""
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    assert "did not end in 3 s" in await command_error(code, timeout_s=3.0)
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(30):
        while is_running(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_running(pid):
    """Return True unless the process has ended, whoever is to take note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.real_time
async def test_output_that_is_no_text_is_a_probe_error():
    """Bytes of anything."""
    assert "no card" in await command_error("import sys; sys.stdout.buffer.write(bytes(range(256)))", timeout_s=30.0)


@pytest.mark.parametrize("text", ["", "x", "-5", MANY, "1e5", "\x00", "٣" * 40, "9" * 19])
def test_a_file_of_the_kernel_without_an_amount_is_a_probe_error(tmp_path, text):
    """In each of the files that are read."""
    for number, name in enumerate(
        ("mem_info_vram_total", "mem_info_vram_used", "mem_info_gtt_total", "mem_info_gtt_used")
    ):
        root = tmp_path / str(number)
        amd_card(root, 0, 512 << 20, 1, mem_info_gtt_total=16 << 30, mem_info_gtt_used=0)
        (root / "sys/devices/0000:09:00.0" / name).write_text(text)
        with pytest.raises(ProbeError):
            read_sysfs(root)


async def test_whatever_a_probe_raises_is_a_probe_error():
    """The state of Ollama is read beside it, and must not be lost for it."""

    async def read_cards():
        raise RecursionError("deep")

    with pytest.raises(ProbeError, match="RecursionError"):
        await CachedReading(read_cards, 0.0).get()
