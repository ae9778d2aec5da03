"""The start: clients can connect at once, and an Ollama that hangs holds up neither it nor its end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AbstractAsyncContextManager, suppress

import pytest

from ollama_simulator.clock import run_virtual
from router.app import running
from router.config import load_config
from tests.config.keys.play import connect, get, hello, send
from tests.fakes import server_that

CONTROL_S = 6.0


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def silent_ollama() -> AbstractAsyncContextManager[str]:
    """Provide the URL of an Ollama that accepts connections and answers nothing."""
    return server_that(lambda reader, _writer: reader.read())


async def serve(upstream: str, port: int) -> None:
    """Run a router until it is cancelled."""
    options = {
        "listen": f"127.0.0.1:{port}",
        "admin": "127.0.0.1:0",
        "store.path": ":memory:",
        "backends.local.url": upstream,
        "backends.local.probe.kind": "none",
        "timeouts.control_s": CONTROL_S,
    }
    async with running(load_config(env={}, options=options)):
        await asyncio.Event().wait()


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_clients_can_connect_before_ollama_has_answered() -> None:
    """They see that the router is not ready; a request waits for the first state, and gets one clear answer."""

    async def story() -> None:
        async with silent_ollama() as upstream:
            url = f"http://127.0.0.1:{(port := free_port())}"
            router = asyncio.create_task(serve(upstream, port))
            await asyncio.sleep(0.1)
            assert (await get(url, "/")).status == 200
            assert (await get(url, "/readyz")).json()["ready"] is False
            reply = await send(url, "POST", "/api/generate", hello("llama3.2:3b"))
            assert reply.status in (502, 504)
            assert "did not answer GET /api/ps in time" in reply.json()["error"]
            assert CONTROL_S - 1 < now_s() < CONTROL_S + 2
            router.cancel()
            await asyncio.gather(router, return_exceptions=True)

    run_virtual(story())


@pytest.mark.parametrize("has_client", [False, True])
def test_a_start_can_be_cancelled_while_ollama_hangs(has_client: bool) -> None:
    """It ends at once: waiting clients are told, the port is free again, and no task is left."""

    async def story() -> None:
        async with silent_ollama() as upstream:
            port, before = free_port(), asyncio.all_tasks()
            router = asyncio.create_task(serve(upstream, port))
            await asyncio.sleep(0.5)
            url, asking = f"http://127.0.0.1:{port}", None
            if has_client:
                asking = asyncio.create_task(send(url, "POST", "/api/generate", hello("llama3.2:3b")))
                await asyncio.sleep(0.5)
            started_s = now_s()
            router.cancel()
            with suppress(asyncio.CancelledError):
                await router
            assert now_s() - started_s < 1
            if asking is not None:
                assert (await asking).status == 503
            with pytest.raises(ConnectionError):
                await connect(url)
            await asyncio.sleep(0.1)
            left = [task for task in asyncio.all_tasks() - before if "accept" not in repr(task)]
            assert left == []

    run_virtual(story())
