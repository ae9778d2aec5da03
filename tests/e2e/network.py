"""Machines on one network: a network namespace for each, and one with a bridge between them. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TOOLS = ("ip", "curl")
START_S = 120.0
END_S = 30.0


def why_not() -> str:
    """Return why there can be no such network here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)}"
    with suppress(subprocess.CalledProcessError), network({"one": "10.0.0.1"}):
        return ""
    return "network namespaces with a bridge cannot be made here"


class Network:
    """The machines by name. Their namespaces are `prefix-NAME`, as `ip netns exec` takes them."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._names: list[str] = []
        self._folders: list[Path] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    @property
    def _switch(self) -> str:
        return self.namespace("switch")

    def make(self, addresses: Mapping[str, str]) -> None:
        """Make a machine for each name, with its address in 10.0.0.0/24."""
        self._add("switch")
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")
        for name, address in addresses.items():
            self._add(name)
            own = self.namespace(name)
            ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", own)
            ip("-n", self._switch, "link", "set", name, "master", "br0", "up")
            ip("-n", own, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", own, "link", "set", link, "up")

    def _add(self, name: str) -> None:
        ip("netns", "add", self.namespace(name))
        self._names.append(name)

    def know(self, name: str, hosts: Mapping[str, Sequence[str]]) -> None:
        """Let names be resolved on a machine, each to some addresses; `ip netns exec` puts the file in place."""
        folder = Path("/etc/netns") / self.namespace(name)
        folder.mkdir(parents=True)
        self._folders.append(folder)
        lines = [f"{address} {host}" for host, addresses in hosts.items() for address in addresses]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{line}\n" for line in lines))

    def on(self, name: str, *argv: str) -> list[str]:
        """Return the command that runs a program on a machine."""
        return ["ip", "netns", "exec", self.namespace(name), *argv]

    def start(self, name: str, *argv: str, env: Mapping[str, str], log: IO[str]) -> None:
        """Start a program on a machine; it ends with the network."""
        self._started.append(subprocess.Popen(self.on(name, *argv), env=env, stdout=log, stderr=log))

    def wait_for(self, name: str, url: str) -> None:
        """Wait until a server answers on a machine."""
        until_s = time.monotonic() + START_S
        while subprocess.run(self.on(name, "curl", "-s", "-o", "/dev/null", "-m", "5", url)).returncode:
            assert time.monotonic() < until_s, url
            time.sleep(0.2)

    def cut(self, name: str) -> None:
        """Pull the cable of a machine out of the switch: nobody is told, packets are gone."""
        ip("-n", self._switch, "link", "set", name, "down")

    def mend(self, name: str) -> None:
        ip("-n", self._switch, "link", "set", name, "up")

    def part(self, name: str, *addresses: str) -> bool:
        """Let a machine and others not reach each other, silently; return False where the kernel cannot."""
        rules = [("INPUT", "-s", one) for one in addresses] + [("OUTPUT", "-d", one) for one in addresses]
        return all(self._does(name, "iptables", "-A", *rule, "-j", "DROP") for rule in rules)

    def lose(self, name: str, part: float) -> bool:
        """Lose this part of the packets that a machine gets; return False where the kernel cannot."""
        rule = ("-m", "statistic", "--mode", "random", "--probability", str(part), "-j", "DROP")
        return self._does(name, "iptables", "-A", "INPUT", "-i", "eth0", *rule)

    def delay(self, name: str, delay_ms: int) -> bool:
        """Delay the packets that a machine sends; return False where the kernel cannot."""
        return self._does(name, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", f"{delay_ms}ms")

    def even(self, name: str) -> None:
        """Lose, delay and part nothing any more."""
        self._does(name, "iptables", "-F")
        self._does(name, "tc", "qdisc", "del", "dev", "eth0", "root")

    def _does(self, name: str, *argv: str) -> bool:
        if shutil.which(argv[0]) is None:
            return False
        return subprocess.run(self.on(name, *argv), capture_output=True).returncode == 0

    def close(self) -> None:
        """End what still runs on the machines, and remove them."""
        for name in self._names:
            end_all(self.namespace(name))
        for process in self._started:
            process.wait()
        for name in self._names:
            ip("netns", "del", self.namespace(name))
        for folder in self._folders:
            shutil.rmtree(folder)
            with suppress(OSError):  # others' are there
                folder.parent.rmdir()


@contextmanager
def network(addresses: Mapping[str, str]) -> Iterator[Network]:
    """Provide machines; raises CalledProcessError where there can be none."""
    found = Network(f"or{os.getpid()}")
    try:
        found.make(addresses)
        yield found
    finally:
        found.close()


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


def pids_in(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


def end_all(namespace: str) -> None:
    """End the programs in a namespace of ours, at last by force."""
    until_s = time.monotonic() + END_S
    for sign in (signal.SIGTERM, signal.SIGKILL):
        while found := pids_in(namespace):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, sign)
            if time.monotonic() > until_s:
                break
            time.sleep(0.1)
