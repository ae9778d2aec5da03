"""`ollama-router serve`: run the router until SIGTERM or SIGINT.

The configuration is read again on SIGHUP, when one of its files changes, and by `POST /router/reload`.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from router.app import Running, Sockets
from router.cli.activation import address_of, inherited_sockets
from router.cli.files import raise_limit
from router.cli.garbage import calm_collector, collect_when_quiet
from router.cli.generations import Generations
from router.cli.notify import ServiceManager
from router.cli.sources import Sources
from router.cli.watching import watch
from router.config import Config, config_file
from router.telemetry import LineWriter, LogHook, Notified, RecordLines, Supervisor, Telemetry

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
    options: dict[str, object] = {
        "listen": listen,
        "admin": admin,
        "insecure_no_auth": insecure_no_auth or None,
        "backends.local.url": upstream,
    }
    options = {key: value for key, value in options.items() if value is not None}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the router can reload, it must not be killed by a reload
    manager = ServiceManager(os.environ)
    sockets, files = inherited_sockets(os.environ), raise_limit()
    if sockets.clients:
        options["listen"] = address_of(sockets.clients)
    if sockets.admin:
        options["admin"] = address_of(sockets.admin)
    sources = Sources(config, options, files)
    warnings: list[str] = []
    sources.say = warnings.append
    loaded = sources.load()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(loaded, sources, sockets, warnings, manager, config_file(config)))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            places = f"{loaded.listen.host}:{loaded.listen.port} or {loaded.admin.host}:{loaded.admin.port}"
            cure = "name other addresses by --listen and --admin, or by listen and admin in the configuration"
            print(f"cannot listen on {places}: {os.strerror(error.errno)}; {cure}", file=sys.stderr)
            raise typer.Exit(1) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop, None if it is not installed (it does not exist for every platform)."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


async def _serve(
    config: Config,
    sources: Sources,
    sockets: Sockets,
    warnings: list[str],
    manager: ServiceManager,
    file: Path | None,
) -> None:
    writer = LineWriter(buffer_bytes=config.telemetry.log_buffer_bytes)

    def say(text: str) -> None:
        LogHook(config.telemetry.log_level, sink=writer).on(Notified(text, level="warning"))

    for text in warnings:
        say(text)
    sources.say = say
    logging.getLogger().addHandler(RecordLines(writer))

    def log(config: Config) -> LogHook:
        return LogHook(config.telemetry.log_level, sink=writer, fields=config.telemetry.log_fields)

    def on_start(service: Running) -> None:
        calm_collector()
        writer.buffer_bytes = service.config.telemetry.log_buffer_bytes
        writer(f"ollama-router listens on {service.url}, admin on {service.admin_url}\n".encode())

    def on_settled(service: Running) -> None:
        manager.ready(f"listens on {service.url}, admin on {service.admin_url}")

    generations = Generations(sources.load, log, on_start, on_settled)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _in_turn, manager.stopping, generations.stop)

    def reload(*, if_changed: bool = False) -> None:
        manager.reloading()
        generations.reload(if_changed=if_changed)

    loop.add_signal_handler(signal.SIGHUP, reload)
    prefer_the_loop()
    upkeep = Supervisor(Telemetry([log(config)]))
    upkeep.keep("service_manager", manager.watch)
    upkeep.keep("garbage", collect_when_quiet)
    upkeep.keep("file_watch", lambda: watch(generations.files_of(file), partial(reload, if_changed=True)))
    try:
        await generations.run(config, sockets)
    finally:
        upkeep.cancel()
        writer.close(LAST_LINES_S)


def _in_turn(*steps: Callable[[], object]) -> None:
    for step in steps:
        step()


def prefer_the_loop() -> None:
    """Let threads give way to the loop after a millisecond instead of five: a reload reads its files in a thread."""
    sys.setswitchinterval(0.001)
