"""`ollama-router simulate`: a simulated Ollama on virtual GPUs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from ollama_simulator.machine.foreign import ForeignStep, parse_script, play
from ollama_simulator.machine.gpu_metrics import serve_metrics
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.models.library import Library, canonical_tags, known_tags, real_library, tiny_library
from ollama_simulator.run_log import log_to
from ollama_simulator.server import DEFAULT_TAGS, SimConfig, SimulatedOllama
from router.cli.sizes import mib_of
from router.core.ollama.options import ServerSettings
from router.errors import ConfigError, RouterError


def simulate(
    gpu: Annotated[
        list[str] | None, typer.Option(help="Size of a virtual card, in MiB or as 24GiB; repeat for more; 0: none.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address of the simulated Ollama.")] = "127.0.0.1:11434",
    models: Annotated[str | None, typer.Option(help="Installed models, comma-separated.")] = None,
    library: Annotated[str | None, typer.Option(help="all: all known models; tiny: the scripted ones.")] = None,
    load_mib_per_s: Annotated[float, typer.Option(help="Speed of loads, in MiB/s.")] = 3000.0,
    tokens_per_s: Annotated[float | None, typer.Option(help="Speed on the GPU; default: by model size.")] = None,
    cpu_tokens_per_s: Annotated[float | None, typer.Option(help="Speed on the CPU; default: by model size.")] = None,
    parallel: Annotated[int, typer.Option(help="OLLAMA_NUM_PARALLEL of the server.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Directory for vgpu.json, state and log.")] = None,
    gpu_metrics: Annotated[str | None, typer.Option(help="Address for metrics like DCGM exporter's.")] = None,
    visible: Annotated[
        str | None, typer.Option(help="CUDA_VISIBLE_DEVICES of the server: which cards it sees, such as 1,0.")
    ] = None,
    foreign_script: Annotated[
        Path | None, typer.Option(help="File with lines 'SECONDS CARD MIB': memory of other programs.")
    ] = None,
) -> None:
    """Run a simulated Ollama until Ctrl-C. With --run-dir the cards are those of its vgpu.json."""
    sizes = [size for size in (mib_of(text, may_be_none=True) for text in gpu or ("24564",)) if size > 0]
    speeds = Speeds(load_mib_per_s, tokens_per_s, cpu_tokens_per_s)
    cards = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(sizes))
    config = SimConfig(
        machine=Machine.of_visible(cards, _visible(visible, len(cards)), speeds=speeds),
        library=_library(models, library),
        settings=ServerSettings(num_parallel=parallel),
        seed=seed,
        run_dir=run_dir,
        keep_seen=100,
        on_event=log_to(_prepared(run_dir, cards, speeds) / "log") if run_dir is not None else None,
    )
    with asyncio.Runner() as runner:
        runner.run(_serve(config, listen, gpu_metrics, _script(foreign_script, len(sizes))))


def _visible(text: str | None, cards: int) -> list[int]:
    """Return the numbers of the cards that the server sees, in its order. Raises ConfigError."""
    if text is None:
        return list(range(cards))
    numbers = [int(part) if part.strip().isdigit() else -1 for part in text.split(",") if part.strip()]
    if len(set(numbers)) < len(numbers) or any(not 0 <= number < cards for number in numbers):
        raise ConfigError(f"--visible {text}: allowed are different numbers below {cards}, such as 1,0")
    return numbers


def _library(models: str | None, library: str | None) -> Library:
    """Return the installed models. Raises ConfigError for an unknown tag."""
    if library not in (None, "all", "tiny"):
        raise ConfigError(f"--library: unknown {library!r}; allowed: all, tiny")
    if library == "tiny":
        return tiny_library()
    tags = [tag.strip() for tag in models.split(",") if tag.strip()] if models is not None else list(DEFAULT_TAGS)
    try:
        return real_library(canonical_tags() if library == "all" else tags)
    except KeyError as error:
        raise ConfigError(f"--models: unknown {error.args[0]!r}; known: {', '.join(known_tags())}") from None


def _script(path: Path | None, cards: int) -> tuple[ForeignStep, ...]:
    if path is None:
        return ()
    try:
        steps = parse_script(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--foreign-script {path}: {error}") from None
    if any(not 0 <= step.card < cards for step in steps):
        raise ConfigError(f"--foreign-script {path}: there are only {cards} cards")
    return steps


def _prepared(run_dir: Path, cards: tuple[CardSpec, ...], speeds: Speeds) -> Path:
    """Create the run directory and its vgpu.json; an existing file is left unchanged."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "vgpu.json"
    if not path.exists():
        keys = ("name", "description", "total_mib", "foreign_mib", "compute", "context_mib")
        devices = [{key: getattr(card, key) for key in keys} for card in cards]
        chosen = {"tokens_per_s": speeds.tokens_per_s, "cpu_tokens_per_s": speeds.cpu_tokens_per_s}
        config = {"devices": devices, "load_mib_per_s": speeds.load_mib_per_s}
        config |= {key: value for key, value in chosen.items() if value is not None}
        if speeds.tokens_per_s is None:
            config |= {"gpu_gb_per_s": speeds.gpu_gb_per_s, "cpu_gb_per_s": speeds.cpu_gb_per_s}
        path.write_text(json.dumps(config, indent=1))
    return run_dir


async def _serve(config: SimConfig, listen: str, gpu_metrics: str | None, script: tuple[ForeignStep, ...]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = SimulatedOllama(config)
    async with AsyncExitStack() as stack:
        try:
            await server.start(*_address(listen))
            stack.push_async_callback(server.stop)
            if gpu_metrics is not None:
                metrics = await serve_metrics(server.cards, *_address(gpu_metrics))
                stack.callback(metrics.close)
        except OSError as error:
            places = " or ".join(filter(None, (listen, gpu_metrics)))
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error
            raise RouterError(f"cannot listen on {places}: {why}; name another address by --listen") from None
        foreign = asyncio.create_task(play(server.cards, script))
        stack.callback(foreign.cancel)
        cards = ", ".join(f"{gpu.total_bytes >> 20} MiB" for gpu in server.engine.gpus()) or "none"
        print(
            f"simulated Ollama on {server.url}; cards: {cards}; models: {len(server.library.models)}", file=sys.stderr
        )
        await stop.wait()


def _address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"{text!r}: expected HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
