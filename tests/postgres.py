"""A real PostgreSQL for tests, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

psycopg = pytest.importorskip("psycopg")
HOMES = [str(home / "bin") for home in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)]
INITDB = shutil.which("initdb", path=os.pathsep.join([*HOMES, os.environ.get("PATH", "")]))
is_there = pytest.mark.skipif(INITDB is None, reason="PostgreSQL is not installed")


class Server:
    """A PostgreSQL of its own in a folder, reached by a socket there; it refuses to run as root."""

    def __init__(self, folder: Path) -> None:
        assert INITDB is not None
        self.folder, self._data, self._bin = folder, folder / "data", Path(INITDB).resolve().parent
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        self._run("initdb", "-A", "trust", "-E", "UTF8", "--no-sync", "-U", "router", "-D", str(self._data))

    @property
    def url(self) -> str:
        return f"postgresql://router:secret-word@/postgres?host={self.folder}"

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "-w", "-D", str(self._data), "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-D", str(self._data), "-m", "immediate", "stop")

    def kill(self) -> None:
        """End it as a crash does: all of its processes at once, in the middle of what they do."""
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)

    def ask(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            found: list[tuple[object, ...]] = cursor.fetchall() if cursor.description else []
            return found

    def _run(self, program: str, *arguments: str) -> None:
        user = self._user if os.geteuid() == 0 else None
        subprocess.run([self._bin / program, *arguments], check=True, user=user, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def running() -> Iterator[Server]:
    """Provide a server with an empty database; skip the test where none can be started (no user for it, say)."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has at most 107 bytes
    try:
        found = Server(folder)
        found.start()
    except (subprocess.CalledProcessError, OSError, KeyError) as error:
        shutil.rmtree(folder)
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    try:
        yield found
    finally:
        with suppress(subprocess.CalledProcessError):
            found.stop()
        shutil.rmtree(folder)
