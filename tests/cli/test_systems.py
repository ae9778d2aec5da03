"""Other systems, as far as they can be tried on this one: what they lack is hidden before anything is imported."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from router.cli.main import COMMANDS, NEED_SIGNALS
from tests.config.keys.play import get
from tests.config.keys.process import ollama, served
from tests.http.raw_upstream import answer

ROOT = Path(__file__).parent.parent.parent
HIDE = """
import os, select, signal, socket, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for module, names in NAMES.items():
    for name in names.split():
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
os.process_cpu_count = os.cpu_count  # that of Python 3.13 was made for the system that it really runs on
"""
LINUX_ONLY = {
    "os": "O_PATH O_TMPFILE eventfd memfd_create pidfd_open posix_fadvise posix_fallocate sched_getaffinity "
    "sched_setaffinity splice copy_file_range getrandom",
    "select": "epoll",
    "socket": "SOCK_CLOEXEC SOCK_NONBLOCK TCP_INFO TCP_QUICKACK TCP_USER_TIMEOUT TCP_DEFER_ACCEPT SO_BINDTODEVICE "
    "SO_PEERCRED SO_INCOMING_CPU AF_NETLINK AF_PACKET AF_VSOCK",
    "signal": "SIGPWR SIGSTKFLT SIGRTMIN SIGRTMAX sigtimedwait sigwaitinfo",
}
UNIX_ONLY = {
    "os": "getuid geteuid getgid getegid O_NONBLOCK O_CLOEXEC pread pwrite fchmod chown killpg fork setsid getpgid",
    "select": "poll",
    "socket": "AF_UNIX",
    "signal": "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGQUIT SIGCHLD SIGALRM pthread_sigmask",
}
MACOS: tuple[set[str], list[dict[str, str]]] = (set(), [LINUX_ONLY])
WINDOWS = {"fcntl", "grp", "pwd", "resource", "termios", "uvloop"}, [LINUX_ONLY, UNIX_ONLY]


def hiding(system: tuple[set[str], list[dict[str, str]]]) -> str:
    """Return the text of a program that makes this Python look like one of another system."""
    modules, groups = system
    names = {module: " ".join(group.get(module, "") for group in groups) for module in LINUX_ONLY}
    return f"MODULES, NAMES = {modules!r}, {names!r}\n{HIDE}"


def on_windows(*args: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `ollama-router ARGS` where the names that Windows lacks are hidden."""
    code = f"{hiding(WINDOWS)}\nsys.argv = ['ollama-router', *{args!r}]\nfrom router.cli.main import run\nrun()"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.parametrize("command", NEED_SIGNALS)
def test_a_command_that_windows_cannot_run_says_so_in_one_line(command: str) -> None:
    """With the exit code of a failure, and where it does run."""
    done = on_windows(command)
    said = f"ollama-router {command} does not run on Windows: run it in WSL 2 or in Docker\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_the_other_commands_can_be_imported_on_windows() -> None:
    """They ask a router or an Ollama elsewhere, or read and write configurations."""
    modules = [target.partition(":")[0] for name, target in COMMANDS.items() if name not in NEED_SIGNALS]
    code = f"{hiding(WINDOWS)}\nimport importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint('all')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "all\n", done.stderr


def test_configurations_and_keys_are_made_and_checked_on_windows(tmp_path: Path) -> None:
    """Such as for a router in a container."""
    (tmp_path / "router.yaml").write_text("teams: teams/*.yaml\n")
    (tmp_path / "teams").mkdir()
    made = on_windows("keys", "new", "--team", "web", "--file", "teams/web.yaml", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    checked = on_windows("check", "router.yaml", folder=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "web" in checked.stdout


def test_every_module_can_be_imported_without_what_only_linux_has() -> None:
    """As on macOS, which has the rest of Unix."""
    paths = [path for top in ("router", "ollama_simulator") for path in sorted((ROOT / top).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    names.remove("router.__main__")
    code = f"{hiding(MACOS)}\nimport importlib\nfor name in {names!r}: importlib.import_module(name)\nprint('all')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "all\n", done.stderr


@pytest.mark.real_time
async def test_serve_starts_reloads_and_ends_without_what_only_linux_has(tmp_path: Path) -> None:
    """Its loop polls, no file below /sys or /proc is needed, and its signals are those of every Unix."""
    (tmp_path / "sitecustomize.py").write_text(hiding(MACOS))
    runner = ("env", f"PYTHONPATH={tmp_path}:{ROOT}")

    async def never(visit):  # type: ignore[no-untyped-def]
        await visit.say(answer(b'{"error":"no"}'))

    async with ollama(never) as upstream, served(upstream.url, tmp_path, runner=runner) as router:
        async with asyncio.timeout(60):
            assert (await get(router.url, "/")).body == b"Ollama is running"
            router.reload()
            await router.says("the configuration was reloaded")
            router.stop()
            assert await router.process.wait() == 0
