"""The reading of a probe of free memory, and what most probes share: a single-flight cache and a thread for calls that
may hang."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router.core.ollama.runner import Gpu
from router.errors import ProbeError


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a card. `name` is "" and `used_bytes` None if the driver does not report them."""

    gpu_index: int
    pid: int
    name: str
    used_bytes: int | None

    @property
    def may_be_runner(self) -> bool:
        """True if it may be Ollama's: it is named like Ollama or llama.cpp, or has no name that the driver knows."""
        return not self.name or "llama" in self.name


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """The cards at `taken_at_s` (loop time). An empty tuple means that there is no GPU, which is not an error."""

    gpus: tuple[Gpu, ...]
    taken_at_s: float
    processes: tuple[GpuProcess, ...] = ()


class VramProbe(Protocol):
    """Reads free memory and decides nothing. `name` is shown by `explain`."""

    name: str
    is_live: bool
    """True if readings follow what happens on the cards; False if they are fixed values."""

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        """Return the cards; a cached reading unless `is_fresh`. Raises ProbeError within the probe's deadline."""

    async def aclose(self) -> None:
        """Release the device."""


Cards = tuple[tuple[Gpu, ...], tuple[GpuProcess, ...]]

PARTS_AT_ONCE = 500
"""Thousands of tiny pieces of an answer may have come at one time: others get their turn in between."""

MAX_CARDS = 256
"""More cards than this are no machine, but a page that went wrong; each decision looks at every card."""

MAX_CARD_BYTES = 1 << 50
_MAX_DIGITS = 5


def usable(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return the cards whose memory is known, each UUID once; () only for ().

    A card of 0 bytes does not say what Ollama can use: memory that is shared with the CPU is reported so. Raises
    ProbeError if no card is left, or if a figure contradicts itself.
    """
    known: dict[str, Gpu] = {}
    for gpu in gpus:
        if not 0 <= gpu.free_bytes <= gpu.total_bytes <= MAX_CARD_BYTES:
            raise ProbeError(f"{gpu.name[:80]}: {_short(gpu.free_bytes)} of {_short(gpu.total_bytes)} bytes free")
        if gpu.total_bytes:
            known.setdefault(gpu.uuid, gpu)
    if gpus and not known:
        raise ProbeError("no card's memory is known")
    if len(known) > MAX_CARDS:
        raise ProbeError(f"{len(known)} cards are listed, more than {MAX_CARDS}")
    return tuple(known.values())


def _short(number: int) -> str:
    return f"{number:.3g}" if abs(number) < 1 << 900 else "too many"


def card_number(text: str) -> int | None:
    """Return the number of a card as a probe prints it, None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def amount_bytes(text: str, unit_bytes: int) -> int | None:
    """Return an amount as a probe prints it in units of `unit_bytes`, None for text and NaN.

    Raises ProbeError for an amount that no card has.
    """
    try:
        amount = float(text) * unit_bytes if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    if math.isnan(amount):
        return None
    if not 0 <= amount <= MAX_CARD_BYTES:
        raise ProbeError(f"{text[:40]} is no amount of memory")
    return int(amount)


class CachedReading:
    """Calls `read_cards` at most once per `cache_s` for all callers. Cancelling one caller does not cancel the others.

    A caller that asks for a fresh reading gets one that began after its call.
    """

    def __init__(self, read_cards: Callable[[], Awaitable[Cards]], cache_s: float) -> None:
        self._read_cards = read_cards
        self._cache_s = cache_s
        self._latest: ProbeReading | None = None
        self._reading: asyncio.Task[ProbeReading] | None = None

    async def get(self, *, is_fresh: bool = False) -> ProbeReading:
        if is_fresh and self._reading is not None and not self._reading.done():
            await asyncio.wait([self._reading])  # it began before this call, and may have seen an older state
        now_s = asyncio.get_running_loop().time()
        if not is_fresh and self._latest is not None and now_s - self._latest.taken_at_s < self._cache_s:
            return self._latest
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._take(now_s))
            # Retrieve the exception even if all callers were cancelled: asyncio logs one that nobody retrieved.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._reading)

    async def _take(self, now_s: float) -> ProbeReading:
        try:
            gpus, processes = await self._read_cards()
        except Exception as error:  # whatever a driver or a page contains, a reading fails in one way only
            why = error.message if isinstance(error, ProbeError) else f"the cards cannot be read: {error!r:.200}"
        else:
            self._latest = ProbeReading(gpus, now_s, processes)
            return self._latest
        # Not while that error is handled: one of asyncio refers to this task, and the task to what it ends with.
        raise ProbeError(why)

    async def aclose(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


class DeadlineThread:
    """Runs calls that may hang, one at a time, in one daemon thread.

    A call that exceeds `timeout_s` raises ProbeError; until it returns, further calls are refused immediately. A hung
    driver therefore blocks one thread, delays a caller by at most one deadline, and does not keep the process alive.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_busy = False

    async def run(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns. Raises what it raises, or ProbeError if it or an earlier call takes too long."""
        if self._is_busy:
            raise ProbeError(f"{self._name} still hangs in an earlier call")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._is_busy = True
        self._jobs.put(lambda: self._deliver(loop, done, call))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(done)
        except TimeoutError:
            done.add_done_callback(lambda future: future.exception())
            raise ProbeError(f"{self._name} did not answer in {self._timeout_s:g} s") from None

    def close(self) -> None:
        """End the thread as soon as its call returns."""
        self._jobs.put(None)
        self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _deliver(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        try:
            result, error = call(), None
        except Exception as exc:  # raised again in the caller
            result, error = None, exc
        self._is_busy = False
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, done, result, error)


def _settle(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if done.done():  # the caller was cancelled
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
