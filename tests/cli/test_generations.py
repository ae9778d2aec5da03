"""The routers that follow each other in one process, without a process of its own."""

import asyncio
import gc
import itertools
import threading
import weakref
from contextlib import asynccontextmanager

import pytest

from router.cli.garbage import calm_collector
from router.cli.generations import Generations
from router.config import load_config
from router.errors import ReloadRefused
from router.telemetry import LogHook
from tests.config.keys.play import get

pytestmark = pytest.mark.real_time

OPTIONS = {
    "listen": "127.0.0.1:0",
    "admin": "127.0.0.1:0",
    "backends.local.url": "http://127.0.0.1:9",
    "store.path": ":memory:",
}


def alternating():
    """Return what loads a configuration that no running router can take over from the one before."""
    numbers = itertools.count()
    return lambda: load_config(None, options={**OPTIONS, "telemetry.headers": bool(next(numbers) % 2)})


@asynccontextmanager
async def generations(load=None, on_settled=lambda _service: None):
    """Provide generations, what has started, and the lines of the log; each reload needs a next router."""
    load = load or alternating()
    services, lines = asyncio.Queue(), []

    def on_start(service):
        calm_collector()
        services.put_nowait(service)

    before = gc.get_threshold()
    them = Generations(load, lambda _: LogHook("info", sink=lines.append), on_start, on_settled)
    task = asyncio.create_task(them.run(load_config(None, options=OPTIONS)))
    try:
        async with asyncio.timeout(60):
            yield them, services, lines
    finally:
        them.stop()
        await task
        gc.set_threshold(*before)
        gc.unfreeze()


async def logged(lines, text):
    while not any(text in line for line in lines):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_a_router_that_was_replaced_leaves_no_memory_behind():
    """By the reload after the next one at the latest."""
    alive = []
    async with generations() as (them, services, lines):
        for _ in range(5):
            alive.append(weakref.ref((await services.get()).router))
            lines.clear()
            them.reload()
            await logged(lines, b"the configuration was reloaded")
            while len(them._alive) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await services.get()
        assert sum(router() is not None for router in alive) <= 1


async def test_a_start_that_fails_for_any_reason_changes_nothing_d4():
    """Also if it is a fault of the router's own; the log says that, and the next reload is taken."""
    faults = [ZeroDivisionError("what nobody thought of")]

    def load():
        if faults:
            raise faults.pop()
        return load_config(None, options=OPTIONS)

    async with generations(load) as (them, services, lines):
        service = await services.get()
        them.reload()
        await logged(lines, b"what nobody thought of")
        assert (await get(service.url, "/")).status == 200
        them.reload()
        await logged(lines, b"the configuration was reloaded")


async def test_the_admin_pages_of_a_router_that_was_replaced_are_gone_d3():
    """Although a request of it is under way: who asks after a reload sees the new router, and no drain."""
    async with generations() as (them, services, lines):
        old = await services.get()
        _, writer = await asyncio.open_connection("127.0.0.1", old.clients.port)
        writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        while not old.clients.tasks():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        admin = old.admin.url
        them.reload()
        await logged(lines, b"the configuration was reloaded")
        await asyncio.sleep(0.2)
        assert old.clients.tasks()
        assert not old.admin._servers
        assert (await get(admin, "/healthz")).status == 200
        writer.close()


async def test_a_router_that_is_told_to_stop_as_it_starts_is_not_reported_as_ready():
    """Its listeners may be closed by then, and it ends without an error."""
    settled = []
    log = LogHook("info", sink=lambda _line: None)
    them = Generations(alternating(), lambda _: log, lambda _service: them.stop(), settled.append)
    async with asyncio.timeout(60):
        await them.run(load_config(None, options=OPTIONS))
    assert settled == []


async def test_a_router_that_is_told_to_stop_within_a_reload_starts_no_other_one():
    """The files were still being read."""
    reading, stopped = asyncio.Event(), threading.Event()
    loop, alternate = asyncio.get_running_loop(), alternating()

    def load():
        loop.call_soon_threadsafe(reading.set)
        stopped.wait(60)
        return alternate()

    async with generations(load) as (them, services, _lines):
        await services.get()
        asked = them.reload()
        await reading.wait()
        them.stop()
        stopped.set()
        with pytest.raises(ReloadRefused, match="shutting down"):
            await asked
        assert services.empty()
