"""Free memory from a command that prints nvidia-smi's CSV, here or on another machine (`ssh gpu1 nvidia-smi …`)."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

from router.adapters.gpu.nvml import UNKNOWN_CONTEXT_BYTES
from router.adapters.gpu.reading import CachedReading, Cards, ProbeReading, amount_bytes, card_number, usable
from router.core.masking import masked
from router.core.ollama.runner import Gpu
from router.errors import ProbeError

QUERY = ("--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap", "--format=csv")
_COLUMNS = ("index", "uuid", "name", "memory.total", "memory.free", "compute_cap")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9, "": 1 << 20}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_HEADING = re.compile(r"([a-z_.]+)(?:\s*\[(\w+)\])?")
_NO_DEVICE = "No devices were found"
_MOST_LINES = _MOST_COMMAS = 4000  # each takes a while on the loop
_PART_BYTES = 1 << 16
_END_S = 1.0


class CommandProbe:
    """Runs `argv` at most once per `cache_s`. `QUERY` is appended to a command that ends in a bare `nvidia-smi`.

    The header line (with or without units) names the columns; without one they are those of `QUERY`. Raises ProbeError
    for a command that fails, runs longer than `timeout_s`, prints more than `max_bytes`, or no card whose memory is
    known.
    """

    name = "command"
    is_live = True

    def __init__(
        self, argv: Sequence[str], *, cache_s: float = 1.0, timeout_s: float = 5.0, max_bytes: int = 1 << 20
    ) -> None:
        is_bare = bool(argv) and argv[-1].rpartition("/")[2] == "nvidia-smi"
        self._argv = (*argv, *QUERY) if is_bare else tuple(argv)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._cached = CachedReading(self._read_cards, cache_s)

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        return await self._cached.get(is_fresh=is_fresh)

    async def aclose(self) -> None:
        await self._cached.aclose()

    async def _read_cards(self) -> Cards:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # so that what it started can be ended with it
            )
        except (OSError, ValueError) as exc:
            raise ProbeError(f"the probe's command cannot run: {exc}") from exc
        is_over = False
        readers = [asyncio.create_task(self._read_whole(pipe)) for pipe in (process.stdout, process.stderr)]
        try:
            async with asyncio.timeout(self._timeout_s):
                output, errors = await asyncio.gather(*readers)
                await process.wait()
                is_over = True
        except TimeoutError:
            raise ProbeError(f"{self._argv[0]} did not end in {self._timeout_s:g} s") from None
        finally:
            for reader in readers:
                reader.cancel()
            await _end(process, is_over=is_over)  # also on cancellation, so that no process outlives its reading
        if _NO_DEVICE in output:
            return (), ()
        if process.returncode != 0:
            reason = (errors.strip() or output.strip()).split("\n")[0]
            raise ProbeError(f"{self._argv[0]} ended with status {process.returncode}: {masked(reason)[:200]}")
        return parse_csv(output), ()

    async def _read_whole(self, stream: asyncio.StreamReader | None) -> str:
        found = bytearray()
        while stream is not None and (part := await stream.read(_PART_BYTES)):
            found += part
            if len(found) > self._max_bytes:
                raise ProbeError(f"{self._argv[0]} printed more than {self._max_bytes} bytes")
        return found.decode("utf-8", "replace")


async def _end(process: asyncio.subprocess.Process, *, is_over: bool) -> None:
    """Close a process, and kill it with its children if it is not over: these may hold its output when it has exited.

    asyncio considers a process ended when its pipes are closed too, and a child that left the group may hold them.
    """
    if not is_over:
        with suppress(ProcessLookupError, PermissionError):  # it exited between the check and the signal
            os.killpg(process.pid, signal.SIGKILL)
    process._transport.close()  # type: ignore[attr-defined]  # there is no public way
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            await process.wait()


def parse_csv(text: str) -> tuple[Gpu, ...]:
    """Return the cards in nvidia-smi's CSV, without those whose memory is unknown (``[N/A]``, ``[GPU is lost]``)."""
    if text.count("\n") > _MOST_LINES:
        raise ProbeError(f"the probe's output has more than {_MOST_LINES} lines")
    if text.count(",") > _MOST_COMMAS:
        raise ProbeError(f"the probe's output has more than {_MOST_COMMAS} commas")
    rows = [[cell.strip() for cell in line.split(",")] for line in text.split("\n") if "," in line]
    if not rows:
        raise ProbeError(f"no CSV in the probe's output: {masked(text.strip()[:10000])[:100]!r}")
    at = next((number for number, row in enumerate(rows) if any(cell.startswith("memory.") for cell in row)), None)
    if at is None:
        columns, units = list(_COLUMNS), [""] * len(_COLUMNS)
    else:  # lines above the header are skipped: a login shell may print a greeting there
        headings = [_HEADING.fullmatch(cell) for cell in rows[at]]
        columns = [heading[1] if heading else "" for heading in headings]
        units = [(heading[2] or "") if heading else "" for heading in headings]
    gpus: list[Gpu] = []
    for row in rows if at is None else rows[at + 1 :]:
        cells = dict(zip(columns, row, strict=False))
        gpu = _gpu(len(gpus), cells, dict(zip(columns, units, strict=False)))
        if gpu is not None:
            gpus.append(gpu)
    if not gpus:
        raise ProbeError("the probe's output names no card whose memory is known")
    return usable(gpus)


def _gpu(position: int, cells: Mapping[str, str], units: Mapping[str, str]) -> Gpu | None:
    total, free, used = (
        _amount(cells.get(column, ""), units.get(column, ""))
        for column in ("memory.total", "memory.free", "memory.used")
    )
    if free is None and total is not None and used is not None:
        free = total - used - (_amount(cells.get("memory.reserved", ""), units.get("memory.reserved", "")) or 0)
    if total is None or free is None:
        return None
    number = card_number(cells.get("index", ""))
    index = position if number is None else number
    compute = cells.get("compute_cap", "")
    return Gpu(
        index=index,
        uuid=cells.get("uuid") or cells.get("gpu_uuid") or f"gpu-{index}",
        name=cells.get("name") or cells.get("gpu_name") or "GPU",
        total_bytes=total,
        free_bytes=max(0, free),
        context_bytes=UNKNOWN_CONTEXT_BYTES,
        compute=compute if re.fullmatch(r"[0-9]+\.[0-9]+", compute) else "",
    )


def _amount(cell: str, unit: str) -> int | None:
    """Return an amount in bytes, None for anything but a number. The default unit is the header's, else MiB."""
    match = _AMOUNT.fullmatch(cell)
    if match is None or (scale := _UNITS.get(match[2] or unit)) is None:
        return None
    return amount_bytes(match[1], scale)
