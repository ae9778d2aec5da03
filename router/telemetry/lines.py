"""Lines to a file descriptor, written by a thread of its own: a reader that has stopped reading stops nobody else."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

BUFFER_BYTES = 4 << 20
POLL_MS = 200

PAUSE_S = 0.05
"""Pause after a write, in which lines collect: each turn of the thread costs the event loop a part of its own."""


class LineWriter:
    """Writes batches of lines to `fd`, in order. Never raises, and never blocks its caller.

    At most `buffer_bytes`, which may be changed at any time, wait for a slow reader. Lines beyond that, and lines that
    cannot be written (a full disk, a closed pipe), are dropped; how many is said in a line of its own as soon as lines
    can be written again.
    """

    def __init__(
        self,
        fd: int = 2,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        pause_s: float = PAUSE_S,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self.buffer_bytes = buffer_bytes
        self._fd = fd
        self._write = write
        self._pause_s = pause_s
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes that wait or are being written
        self._unsaid = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def __call__(self, lines: bytes) -> None:
        """Have `lines`, which end with a line break, written as one piece."""
        with self._changed:
            if self._closing.is_set() or self._size + len(lines) > self.buffer_bytes:
                self._drop(lines)
                return
            self._waiting.append(lines)
            self._size += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Write what waits, for at most `timeout_s`; drop what comes later."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _drop(self, lines: bytes) -> None:
        count = lines.count(b"\n")
        self.dropped += count
        self._unsaid += count

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
                lines = b"".join(self._waiting)
                self._waiting.clear()
                unsaid, self._unsaid = self._unsaid, 0
            if not (lines or unsaid):
                return
            left = self._written((_notice(unsaid) if unsaid else b"") + lines)
            with self._changed:
                self._size -= len(lines)
                if left and lines:
                    self._drop(left[-len(lines) :])
                    self._unsaid += unsaid if len(left) > len(lines) else 0
            self._closing.wait(self._pause_s)

    def _written(self, data: bytes) -> bytes:
        """Write `data`; return what could not be written."""
        while data:
            try:
                data = data[self._write(self._fd, data) :]
            except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                _wait_writable(self._fd)
            except OSError:
                break
        return data


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(POLL_MS)


def _notice(count: int) -> bytes:
    line = {
        "ts": time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime()),
        "level": "warning",
        "msg": "log lines were dropped, because they could not be written",
        "count": count,
    }
    return msgspec.json.encode(line) + b"\n"
