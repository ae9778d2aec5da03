"""A router in a process of its own, which reports how it is when it is asked for it.

    python -m tests.fuzz.router_process '{"backends.local.url": …}'

It prints its addresses as a JSON line, and one more line with its state for each line that it reads.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil

from router.app import Running, running
from router.cli.garbage import calm_collector
from router.cli.serve import prefer_the_loop
from router.config import load_config
from router.telemetry import Answered, Event, Finished

TICK_S = 0.004
MOST_KEPT = 20

MOST_SAID, MOST_OF_WORDS = 100, 300
WORDS = ("status", "outcome", "phase", "cause", "reason", "error", "text")
"""The fields of events that say what has happened."""


class Lag:
    """How long this process has held the loop, whatever else the machine does.

    `lag_s` is by how much a tick was late, without the time for which the loop's thread waited for a processor, and at
    most the time of a processor that all threads have used: one that has the interpreter's lock holds the loop as well.
    `by_loop_s` is the processor time of the loop's own thread, and `late_s` by how much the tick was late by the clock.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waits = waits_of(threading.get_native_id())
        self._due_s = self._loop.time()
        self._used_s, self._by_loop_s, self._waited_s = self._spent()
        self._worst = dict.fromkeys(("lag_s", "by_loop_s", "late_s"), 0.0)
        self._tick()

    def _spent(self) -> tuple[float, float, float]:
        return time.process_time(), time.thread_time(), self._waits()

    def _tick(self) -> None:
        now_s, (used_s, by_loop_s, waited_s) = self._loop.time(), self._spent()
        late_s = now_s - self._due_s
        held_s = min(late_s - (waited_s - self._waited_s), used_s - self._used_s)
        found = held_s, min(late_s, by_loop_s - self._by_loop_s), late_s
        self._worst = {name: max(worst, one) for (name, worst), one in zip(self._worst.items(), found, strict=True)}
        self._used_s, self._by_loop_s, self._waited_s = used_s, by_loop_s, waited_s
        self._due_s = now_s + TICK_S
        self._loop.call_at(self._due_s, self._tick)

    def taken(self) -> dict[str, float]:
        """Return the worst of each since the last call."""
        worst, self._worst = self._worst, dict.fromkeys(self._worst, 0.0)
        return worst


def waits_of(thread: int) -> Callable[[], float]:
    """Return what says for how long a thread was ready to run and had no processor; 0 where the kernel does not say."""
    try:
        file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)
    except OSError:
        return float
    # `os.pread` would give up the interpreter's lock, which it takes a while to get back from a busy thread.
    read, text = ctypes.PyDLL(None).pread, ctypes.create_string_buffer(100)

    def waited_s() -> float:
        read(file, text, len(text) - 1, 0)
        return int(text.value.split()[1]) / 1e9

    return waited_s


class Faults(logging.Handler):
    """Keeps tracebacks, from the log and from the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.note(record.getMessage() + "\n" + "".join(traceback.format_exception(*record.exc_info)))

    def of_loop(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.note(str(context["message"]) + "".join(traceback.format_exception(error) if error else ()))

    def note(self, text: str) -> None:
        if len(self.seen) < MOST_KEPT:
            self.seen.append(text)


class Events:
    """Counts how often the end of each request was reported, and collects what has happened, without names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.said: set[str] = set()

    def on(self, event: Event) -> None:
        if isinstance(event, (Finished, Answered)) and event.request_id:  # what is no request has no id
            self.counts[event.request_id] += 1
        if len(self.said) < MOST_SAID:
            self.said.add(shape(event))

    def taken(self) -> tuple[int, list[str]]:
        """Return the number of requests that have ended since the last call, and those reported twice."""
        counts, self.counts = self.counts, Counter()
        return len(counts), [name for name, count in counts.items() if count > 1]

    def taken_said(self) -> list[str]:
        """Return what has happened since the last call."""
        said, self.said = self.said, set()
        return sorted(said)


def shape(event: Event) -> str:
    """Return an event's kind and words, without numbers and what is quoted: equal for what takes the same way."""
    words = [str(getattr(event, name, "")) for name in WORDS]
    return re.sub(r"""\d+|'[^']*'|"[^"]*\"""", "#", " ".join([type(event).__name__, *words]))[:MOST_OF_WORDS]


async def state(service: Running, lag: Lag, faults: Faults, events: Events) -> dict[str, Any]:
    await asyncio.sleep(2 * TICK_S)  # a tick that is due must have run
    service.router.telemetry.flush()
    ended, twice = events.taken()
    return {
        **lag.taken(),
        "faults": faults.seen,
        "ended": ended,
        "twice": twice,
        "said": events.taken_said(),
        "rss_bytes": psutil.Process().memory_info().rss,
        "connections": service.clients.open_connections,
        "upstream": service.router.backend.relay.open_connections,  # type: ignore[attr-defined]
        "tasks": len(asyncio.all_tasks()),
    }


async def main() -> None:
    loop, faults, events = asyncio.get_running_loop(), Faults(), Events()
    logging.getLogger().addHandler(faults)
    loop.set_exception_handler(faults.of_loop)
    options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:", **json.loads(sys.argv[1])}
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with running(load_config(env={}, options=options), hooks=[events]) as service:
        calm_collector()
        prefer_the_loop()
        print(json.dumps({"url": service.url, "admin": service.admin_url}), flush=True)
        lag = Lag()
        while await reader.readline():
            print(json.dumps(await state(service, lag, faults, events)), flush=True)


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # where it hangs, if it does
    asyncio.run(main())
