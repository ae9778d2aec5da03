"""`ollama-router serve`: run the router until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import typer

from router.app import running
from router.cli.files import raise_limit, within
from router.config import Config, load_config
from router.telemetry import LineWriter, LogHook, Notified, RecordLines

LAST_LINES_S = 2.0
"""How long the end waits until the last lines of the log are written; a reader that does not read loses them."""


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML configuration file; default: built-in defaults.")
    ] = None,
    listen: Annotated[str | None, typer.Option(help="Address for clients, e.g. 127.0.0.1:11435.")] = None,
    admin: Annotated[str | None, typer.Option(help="Address for /router/…, /metrics and the dashboard.")] = None,
    upstream: Annotated[str | None, typer.Option(help="URL of the Ollama to route to.")] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Give anonymous clients all rights on any address.")
    ] = False,
) -> None:
    """Serve Ollama's API on --listen, routed to the Ollama at --upstream."""
    options = {
        "listen": listen,
        "admin": admin,
        "insecure_no_auth": insecure_no_auth or None,
        "backends.local.url": upstream,
    }
    loaded = load_config(config, options={key: value for key, value in options.items() if value is not None})
    loaded, warning = within(loaded, raise_limit())
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(loaded, warning))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            places = f"{loaded.listen.host}:{loaded.listen.port} or {loaded.admin.host}:{loaded.admin.port}"
            print(f"cannot listen on {places}: {error.strerror}", file=sys.stderr)
            raise typer.Exit(1) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop, None if it is not installed (it does not exist for every platform)."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


async def _serve(config: Config, warning: str) -> None:
    stop, started = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(_serve_until(stop, started, config, warning))

    def on_signal() -> None:
        if not (stop.is_set() or started.is_set()):
            serving.cancel()  # the start waits for Ollama, which may hang
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


async def _serve_until(stop: asyncio.Event, started: asyncio.Event, config: Config, warning: str) -> None:
    writer = LineWriter(buffer_bytes=config.telemetry.log_buffer_bytes)
    log = LogHook(config.telemetry.log_level, sink=writer)
    if warning:
        log.on(Notified(warning, level="warning"))
    logging.getLogger().addHandler(RecordLines(writer))
    try:
        async with running(config, hooks=[log]) as service:
            started.set()
            calm_collector()
            writer(f"ollama-router listens on {service.url}, admin on {service.admin_url}\n".encode())
            await stop.wait()
            service.grace_s = config.timeouts.shutdown_s
    finally:
        log.flush()
        writer.close(LAST_LINES_S)


def calm_collector() -> None:
    """Make Python's garbage collector run rarely, and exclude the objects that exist now.

    A request leaves no reference cycles behind. With Python's defaults the collector would scan the whole heap several
    times a second under load: an eighth of the time, in pauses of 40 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
