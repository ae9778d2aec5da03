"""How a SQLite file that two routers may share is opened: private, checked for its version, patient with the other."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

BUSY_S = 2.0
"""How long to wait for another process that holds the file."""
_RETRY_S = 0.01
_ONLY_OWNER = 0o600


class NewerForm(Exception):
    """The file was written by a newer version of the router."""


def open_shared(
    path: Path | None, newest: int, prepare: Callable[[sqlite3.Connection, int], None]
) -> sqlite3.Connection:
    """Open the file in WAL mode and without implicit transactions, creating it and its folder if they are missing.

    Without a path it is a database in memory, which closing it deletes.
    `prepare` is given the connection and the file's version, and brings its tables to the version `newest`; it may be
    called again, and another router may do the same meanwhile. Raises NewerForm for a file of a later version, which
    is left as it is, OSError, and sqlite3.Error.
    """
    if path is None:
        connection = _connected(":memory:")
        prepare(connection, 0)
        return connection
    path.parent.mkdir(parents=True, exist_ok=True)
    keep_private(path)
    until = time.monotonic() + BUSY_S
    while True:
        connection = _connected(path)
        try:
            prepare(connection, _checked_version(connection, newest))
        except BaseException as exc:
            connection.close()
            # SQLite itself does not wait while another one turns the file to WAL mode, or is the last to close it.
            if not _is_held(exc) or time.monotonic() >= until:
                raise
            time.sleep(_RETRY_S)
        else:
            return connection


def _connected(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)


def _is_held(exc: BaseException) -> bool:
    """Whether the fault is that another connection holds the file; the extended codes share the low byte."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _checked_version(connection: sqlite3.Connection, newest: int) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest:  # before anything is written to it
        raise NewerForm(f"it is of version {version}, this router knows versions up to {newest}")
    if version < 0:
        raise sqlite3.DatabaseError(f"schema version {version}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return int(version)


def keep_private(path: Path) -> None:
    """Create the file if it is missing, and let only its owner read it; SQLite's files beside it get the same mode.

    It says which models are used here. A file of another owner is left as it is. Raises OSError for what is no regular
    file: a device, such as /dev/null, is everybody's, and must be neither closed to others nor renamed as corrupt.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _ONLY_OWNER)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if stat.S_IMODE(found.st_mode) & ~_ONLY_OWNER and found.st_uid == os.geteuid():
            os.fchmod(descriptor, _ONLY_OWNER)
    finally:
        os.close(descriptor)
