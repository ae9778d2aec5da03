"""Runs the shell commands of a page as they stand, in a network of its own: `unshare --net python blocks.py …`.

In that network a simulated Ollama has Ollama's address, so that the commands find what they would find on a machine
with one 24 GB card. A program that stays up (`serve`) is put into the background. Prints what each command printed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MARKED = re.compile(r"<!-- (run|not run): ([^\n]*?) -->\n```sh\n(.*?)```", re.DOTALL)
STAYS = re.compile(r"ollama-router serve\b")
OLLAMA = ("127.0.0.1", 11434)
READY = "http://127.0.0.1:11436/readyz"
GPU_METRICS = "127.0.0.1:11499"
START_S = 120.0
PROGRAM = f"""#!/bin/sh
case "$1" in init) set -- "$@" --gpu 24GiB;; esac  # the card that this machine does not have
PYTHONPATH={ROOT} exec {sys.executable} -m router "$@"
"""
SIMULATED = (
    "simulate",
    "--gpu",
    "24GiB",
    "--library",
    "all",
    "--load-mib-per-s",
    "200000",
    "--gpu-metrics",
    GPU_METRICS,
)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (run or not run, name or reason, commands) of each marked block of shell commands."""
    return [(kind, text, commands) for kind, text, commands in MARKED.findall(page.read_text())]


def unmarked(page: Path) -> int:
    """Return how many blocks of shell commands say neither that they are run nor why not."""
    return len(re.findall(r"^```sh$", page.read_text(), re.MULTILINE)) - len(blocks(page))


def program_of(commands: str) -> str:
    """Return the commands as a program: what stays up goes to the background, and is waited for."""
    lines = []
    for line in commands.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+# .*$", "", line)
        if STAYS.search(line):
            line = f"{line} > serve.log 2>&1 & until curl -sf {READY} > ready.json; do kill -0 $!; sleep 0.2; done"
        lines.append(line)
    return "set -e\n" + "\n".join(lines)


def bring_up_loopback() -> None:
    """Do what `ip link set lo up` does."""
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING


def wait_for(address: tuple[str, int]) -> None:
    """Wait until somebody listens there."""
    until_s = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(address, 1).close()
            return
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a person who has installed the router."""
    program = folder / "bin" / "ollama-router"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA", "PYTHON"))}
    probe = "OLLAMA_ROUTER_BACKENDS__LOCAL__PROBE__"
    return {
        **kept,
        "PATH": f"{program.parent}:{kept['PATH']}",
        "HOME": str(folder),
        f"{probe}KIND": "prometheus",
        f"{probe}URL": f"http://{GPU_METRICS}/metrics",
        "OLLAMA_ROUTER_SWITCH__SETTLE_S": "0.05",
    }


class Shell:
    """Runs blocks one after another; what a block has put into the background stays until the next one that serves."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder, self._env = folder, env
        self._groups: list[int] = []

    def run(self, name: str, commands: str) -> None:
        """Run a block, and print what it printed. Raises CalledProcessError."""
        if STAYS.search(commands):
            self.close()
        output = self._folder / f"{name}.out"
        with output.open("w") as file:  # a pipe would stay open as long as what is in the background
            argv = ["sh", "-c", program_of(commands)]
            process = subprocess.Popen(
                argv, cwd=self._folder, env=self._env, stdout=file, stderr=file, start_new_session=True
            )
            self._groups.append(process.pid)
            code = process.wait(START_S)
        print(f"== {name}: {code}\n{output.read_text()}", flush=True)
        if code:
            raise subprocess.CalledProcessError(code, commands)

    def close(self) -> None:
        """End what is in the background."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        while any(has_members(group) for group in self._groups):
            time.sleep(0.1)
        self._groups.clear()


def has_members(group: int) -> bool:
    """Return True while a process of the group is alive."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main(folder: Path, starts_router: bool, page: Path) -> None:
    """Run a page beside a simulated Ollama, and a router if the page does not start one itself."""
    bring_up_loopback()
    env, log = environment(folder), (folder / "simulate.log").open("w")
    ollama = subprocess.Popen([str(folder / "bin" / "ollama-router"), *SIMULATED], env=env, stderr=log)
    shell = Shell(folder, env)
    try:
        wait_for(OLLAMA)
        if starts_router:
            shell.run("serve", "ollama-router serve\n")
        for kind, name, commands in blocks(page):
            if kind == "run":
                shell.run(name, commands)
    finally:
        shell.close()
        ollama.terminate()
        ollama.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "router", Path(sys.argv[3]))
