"""A file of lines that is rotated by size. Several writers may share it, also of different processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

_ONLY_OWNER = 0o600


class RotatedFile:
    """Appends to `path`; at `max_bytes` it becomes `path.1`, and so on up to `path.{keep}`, the oldest.

    `write` is for a `LineWriter`, which calls it from its thread. Raises OSError if the lines cannot be written, and
    leaves no part of a line then. `report` is called in that thread, once until lines can be written again.
    """

    def __init__(
        self, path: str | Path, max_bytes: int, keep: int, *, report: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._path = Path(path)
        self._max_bytes, self._keep = max_bytes, keep
        self._report = report
        self._file = -1
        self.error = ""

    def write(self, _fd: int, lines: bytes) -> int:
        """Append `lines`, all of them; return their length."""
        try:
            self._append(lines)
        except OSError as exc:
            self.close()
            if not self.error:
                self._report(f"the audit {self._path} cannot be written, its lines are lost: {exc.strerror or exc}")
            self.error = str(exc)
            raise
        self.error = ""
        return len(lines)

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, lines: bytes) -> None:
        self._lock()
        try:
            while (size := os.fstat(self._file).st_size) and size + len(lines) > self._max_bytes:
                self._rotate()
                self.close()
                self._lock()  # a new file, which other writers may have filled already
            self._put(lines, size)
        finally:
            if self._file >= 0:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock(self) -> None:
        """Open and lock the file that `path` names now: another writer may have rotated the one that was open."""
        while True:
            if self._file < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self._path, flags, _ONLY_OWNER)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                    return
            except FileNotFoundError:  # moved away by somebody else
                pass
            self.close()

    def _rotate(self) -> None:
        """Move each file to its next number; the last one is replaced."""
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)
        if self._keep == 0:
            self._path.unlink()

    def _put(self, lines: bytes, size: int) -> None:
        """Write at the end of a file of `size` bytes; all of the lines or none."""
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # a writer was killed within its last line
            lines = b"\n" + lines
        try:
            data = lines
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, size)  # the disk is full: no half of a line
            raise
