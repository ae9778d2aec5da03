"""systemd is told when the router is ready, reloads and stops, and that its loop runs; the units are valid."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from ollama_simulator.clock import run_virtual
from router.cli.notify import ServiceManager
from tests.config.keys.process import START_S, ollama, served
from tests.http.raw_upstream import answer

UNITS = Path(__file__).parents[2] / "config/systemd"
SERVICE = (UNITS / "ollama-router.service").read_text()
RELOADED, NOT_RELOADED = '"msg":"the configuration was reloaded: ', "the configuration was not reloaded"


@contextmanager
def manager_at(address):
    """Provide a socket as systemd's: what it receives is read by `said`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        yield sock


def said(sock):
    """Return the messages since the last call, as mappings."""
    found = []
    while True:
        try:
            text = sock.recv(4096).decode()
        except BlockingIOError:
            return found
        found.append(dict(line.split("=", 1) for line in text.splitlines()))


def test_messages_reach_a_socket_of_a_path_or_of_an_abstract_name(tmp_path):
    """And the variables are gone, so that no child process uses them."""
    for address, name in ((str(tmp_path / "s"), str(tmp_path / "s")), ("\0or-test", "@or-test")):
        env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "x"}
        with manager_at(address) as sock:
            manager = ServiceManager(env)
            manager.ready("listens")
            manager.reloading()
            manager.stopping()
            ready, reloading, stopping = said(sock)
        assert env == {"HOME": "x"}
        assert ready == {"READY": "1", "STATUS": "listens"}
        assert (reloading["RELOADING"], reloading["MONOTONIC_USEC"].isdecimal()) == ("1", True)
        assert stopping["STOPPING"] == "1"


@pytest.mark.parametrize("interval", ["", "x", "0", "-1", "9" * 5000])
def test_an_interval_that_is_none_is_no_watchdog(interval):
    """The environment may say anything."""
    assert ServiceManager({"WATCHDOG_USEC": interval}).watchdog_s is None


def test_without_a_socket_or_with_one_that_is_gone_nothing_happens(tmp_path):
    for env in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "x" * 500}):
        ServiceManager(env).ready("listens")


@pytest.mark.parametrize(
    ("env", "count"),
    [({"WATCHDOG_USEC": "10000000"}, 5), ({}, 0), ({"WATCHDOG_USEC": "0"}, 0), ({"WATCHDOG_USEC": "soon"}, 0),
     ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, 0)],
)  # fmt: skip
def test_the_watchdog_hears_of_the_loop_twice_in_its_time(env, count, tmp_path):
    """If it is meant for this process."""

    async def story(sock):
        watching = asyncio.create_task(ServiceManager({**env, "NOTIFY_SOCKET": str(tmp_path / "s")}).watch())
        await asyncio.sleep(24)
        watching.cancel()
        return [message["WATCHDOG"] for message in said(sock)]

    with manager_at(str(tmp_path / "s")) as sock:
        assert run_virtual(story(sock)) == ["1"] * count


@pytest.mark.real_time
async def test_a_router_tells_ready_reloading_and_stopping(tmp_path, monkeypatch):
    """Ready again also after a reload that failed: systemd would wait for it otherwise."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
    file = tmp_path / "router.yaml"
    file.write_text("telemetry: { headers: true }")
    with manager_at(str(tmp_path / "s")) as sock:
        async with ollama(answer(b"{}")) as upstream, asyncio.timeout(START_S):
            async with served(upstream.url, tmp_path, file=file, WATCH_FILES="false") as router:
                (ready,) = await some(sock, 1)
                assert (ready["READY"], router.url in ready["STATUS"]) == ("1", True)
                for text, outcome in (("telemetry: { headers: false }", RELOADED), ("nonsense: 1", NOT_RELOADED)):
                    file.write_text(text)
                    router.reload()
                    await router.says(outcome)
                    assert [next(iter(message)) for message in await some(sock, 2)] == ["RELOADING", "READY"]
                router.stop()
                assert [next(iter(message)) for message in await some(sock, 1)] == ["STOPPING"]
                assert await router.process.wait() == 0


async def some(sock, count):
    """Return the next `count` messages."""
    loop = asyncio.get_running_loop()
    texts = [(await loop.sock_recv(sock, 4096)).decode() for _ in range(count)]
    return [dict(line.split("=", 1) for line in text.splitlines()) for text in texts]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_are_valid(tmp_path):
    """systemd finds nothing wrong with them, once the program that they start exists; nor with the drop-ins."""
    for unit in UNITS.glob("ollama-router.*"):
        text = unit.read_text().replace("/usr/local/bin/ollama-router", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "ollama.service").write_text("[Service]\nExecStart=/bin/true\n")
    names = sorted(str(path) for path in tmp_path.iterdir())
    for unit, name in (("ollama-router.socket", "ollama-router.socket.conf"), ("ollama.service", "ollama.conf")):
        (tmp_path / f"{unit}.d").mkdir()
        (tmp_path / f"{unit}.d" / "x.conf").write_text((UNITS / "drop-in" / name).read_text())
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "ollama" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_service_has_few_rights():
    """systemd's own judgement of its exposure, 0 to 10: below 3 is what it calls OK at least."""
    command = ["systemd-analyze", "security", "--offline=yes", str(UNITS / "ollama-router.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot: {done.stderr}")
    assert float(found[1]) < 3.0, done.stdout


def test_the_service_gives_requests_the_time_to_end():
    """More than `timeouts.shutdown_s`, and the kinds of the messages that it sends."""
    assert re.search(r"^Type=notify$", SERVICE, re.MULTILINE)
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", SERVICE, re.MULTILINE)[1]) > 30
    assert int(re.search(r"^WatchdogSec=(\d+)$", SERVICE, re.MULTILINE)[1]) >= 10
