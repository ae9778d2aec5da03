"""What clients of a front see while a name server says other addresses of its nodes: prints it as JSON at the end.

usage, where /etc/resolv.conf may be replaced: python -m tests.e2e.names FOLDER. The front asks the system's resolver.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.app import Running, running
from router.config import load_config
from router.planning.stage import stage
from tests.config.keys.play import MIDDLE, SMALL, SPEEDS, hello, send
from tests.e2e.processes import free_port

NAME, SERVER = "nodes.llm.test", "127.0.0.153"
NODES = {"a": "127.0.0.21", "b": "127.0.0.22", "c": "127.0.0.23"}
KEY = "the-key-of-this-fleet-0123456789"
CLIENTS, DEADLINE_S = 4, 120.0
QUERY, A, NO_ERROR, SERVFAIL, NXDOMAIN = 0x0100, 1, 0, 2, 3


@dataclass
class Facts:
    """Answers by the node and status, in each phase; and of the long stream: its node, and whether it was whole."""

    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    stream: tuple[str, bool] = ("", False)


class NameServer(asyncio.DatagramProtocol):
    """Answers for `NAME` by `addresses`, or with the error `code`; with `is_silent` not at all."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.code, self.is_silent = NO_ERROR, False
        self.asked = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked += 1
        if self.is_silent or self._transport is None:
            return
        end = data.index(b"\0", 12) + 5
        question, (kind,) = data[12:end], struct.unpack("!H", data[end - 4 : end - 2])
        found = self.addresses if kind == A and self.code == NO_ERROR else []
        head = struct.pack("!HHHHHH", *struct.unpack("!H", data[:2]), 0x8180 | self.code, 1, len(found), 0, 0)
        rows = [struct.pack("!HHHIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton(address) for address in found]
        self._transport.sendto(head + question + b"".join(rows), addr)


class Trial:
    """The front, its nodes, the name server, and clients that ask all the time."""

    def __init__(self, front: Running, names: NameServer) -> None:
        self._front, self._names = front, names
        self._seen: Counter[str] = Counter()
        self.facts = Facts()

    async def client(self) -> None:
        while True:
            reply = await send(self._front.url, "POST", "/api/generate", hello(SMALL))
            is_whole = reply.status == 200 and b'"done":true' in reply.body
            self._seen[reply.headers.get("x-router-backend", "") if is_whole else f"{reply.status} {reply.body!r}"] += 1
            await asyncio.sleep(0.02)

    async def stream(self) -> None:
        """Read a long answer of another model."""
        reply = await send(self._front.url, "POST", "/api/generate", hello(MIDDLE, tokens=800))
        self.facts.stream = reply.headers.get("x-router-backend", ""), b'"done":true' in reply.body

    async def phase(self, name: str, *nodes: str, code: int = NO_ERROR, is_silent: bool = False) -> None:
        """Let the server say other addresses; wait until the front uses those nodes, and note who answers then."""
        before = self._names.asked
        self._names.addresses = [NODES[node] for node in nodes] if code == NO_ERROR else []
        self._names.code, self._names.is_silent = code, is_silent
        async with asyncio.timeout(DEADLINE_S):
            while nodes and self._used() != set(nodes):  # noqa: ASYNC110 (the front tells nobody)
                await asyncio.sleep(0.05)
            while self._names.asked < before + 4:  # noqa: ASYNC110 (the resolver asks when it likes)
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # what was sent before is answered
        self._seen.clear()
        await asyncio.sleep(1.0)
        self.facts.answers[name] = dict(self._seen)

    def _used(self) -> set[str]:
        return {node.name for node in self._front.router.routes.members.usable()}  # type: ignore[union-attr]

    async def failed(self, asking: list[asyncio.Task[None]]) -> None:
        """Raise what ended a client."""
        for task in asking:
            task.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found), found


async def observe(folder: Path) -> Facts:
    """Let nodes come and go by name, and the name itself."""
    (folder / "key").write_text(KEY)
    (folder / "sha256").write_text(hashlib.sha256(KEY.encode()).hexdigest())
    port, plain = free_port(), {"defaults.auto_chains": "off"}
    async with AsyncExitStack() as stack:
        for name, address in NODES.items():
            sim = SimConfig(machine=Machine(cards=(CardSpec(),), speeds=SPEEDS), models=(MIDDLE, SMALL))
            node = {"node.name": name, "node.key_sha256_file": str(folder / "sha256"), "listen": f"{address}:{port}"}
            await stack.enter_async_context(stage(sim, {**plain, **node}))
        loop, names = asyncio.get_running_loop(), NameServer()
        transport, _ = await loop.create_datagram_endpoint(lambda: names, (SERVER, 53))
        stack.callback(transport.close)
        names.addresses = [NODES["a"]]
        found: dict[str, Any] = {"kind": "node", "key_file": str(folder / "key")}
        found |= {"discover.dns": NAME, "discover.every_s": 0.2, "discover.port": port}
        options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", **plain}
        options |= {f"backends.pool.{key}": value for key, value in found.items()}
        front = await stack.enter_async_context(running(load_config(env={}, options=options)))
        return await play(Trial(front, names))


async def play(trial: Trial) -> Facts:
    """Play the phases while clients ask."""
    asking = [asyncio.create_task(trial.client()) for _ in range(CLIENTS)]
    await trial.phase("one", "a")
    streaming = asyncio.create_task(trial.stream())
    await asyncio.sleep(0.3)
    await trial.phase("two", "a", "b")
    await trial.phase("first gone", "b", "c")
    await streaming
    await trial.phase("no such name", code=NXDOMAIN)
    await trial.phase("server fails", code=SERVFAIL)
    await trial.phase("server silent", is_silent=True)
    await trial.phase("others", "a")
    await trial.phase("all", "a", "b", "c")
    await trial.failed(asking)
    return trial.facts


def main(folder: Path) -> None:
    """Use our own name server here, which must be a mount namespace of our own."""
    (folder / "resolv.conf").write_text(f"nameserver {SERVER}\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", str(folder / "resolv.conf"), "/etc/resolv.conf"], check=True)
    print(json.dumps(asdict(asyncio.run(observe(folder)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
