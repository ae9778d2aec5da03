"""The input of `fit` and `advise`: model, cards and settings, from command line, file, server and probe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.adapters.gpu.detect import detect_probe
from router.adapters.ollama import OllamaClient
from router.cli.sizes import mib_of
from router.core.advice.nearest import nearest
from router.core.memory.fit_target import fit_target_bytes
from router.core.memory.footprint import MemoryOptions
from router.core.memory.placement import Card
from router.core.memory.weights import BLOCKS
from router.core.ollama.derived_names import is_derived
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.options import ServerSettings, automatic_num_ctx, clamped, merged
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import MIB
from router.errors import BadRequest, ConfigError, ModelNotFound, ProbeError

DEFAULT_UPSTREAM = "http://127.0.0.1:11434"
DEFAULT_NUM_CTX = 32768  # the router's own `defaults.num_ctx`
_RESERVED_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command line; None means the default of the model, the server or the router."""

    gpus: Sequence[str]
    num_ctx: int | None = None
    num_batch: int | None = None
    num_parallel: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A model on a machine. `installed` are the server's other models; () if the model came from a file."""

    facts: ModelFacts
    installed: tuple[ModelFacts, ...]
    options: MemoryOptions
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """An Ollama and its cards: what is installed there, as idle as it can be."""

    url: str
    version: str
    installed: tuple[ModelFacts, ...]
    gpus: tuple[Gpu, ...]

    def question(self, facts: ModelFacts, num_ctx: int) -> Question:
        """Return the question whether a model runs on the cards with `num_ctx` tokens."""
        cards = _cards(self.gpus, facts, self.version)
        return Question(facts, self.installed, _options(facts, self.gpus, Settings((), num_ctx)), cards)


def read_site(upstream: str, gpus: Sequence[str]) -> Site:
    """Return what is installed at `upstream`, and the given or probed cards. Raises ConfigError or UpstreamError."""
    url = _url(upstream)
    found = tuple(_gpu(at, text) for at, text in enumerate(gpus)) or asyncio.run(_probed(is_idle=True))
    version, installed = asyncio.run(_installed(url))
    return Site(url, version, installed, found)


async def _installed(url: str) -> tuple[str, tuple[ModelFacts, ...]]:
    client = OllamaClient(url)
    try:
        rows = [row for row in await client.tags() if not is_derived(str(row.get("name") or row.get("model")))]
        names = [str(row.get("name") or row.get("model")) for row in rows]
        shown = [ModelFacts.of_show(row, await client.show(name)) for row, name in zip(rows, names, strict=True)]
        return await client.version(), tuple(shown)
    finally:
        await client.aclose()


@dataclass(frozen=True, slots=True)
class Subject:
    """The facts of the model; those from a file come without other models and without the server's version."""

    facts: ModelFacts
    installed: tuple[ModelFacts, ...] = ()
    version: str = ""


def read_question(model: str, upstream: str, settings: Settings, *, with_installed: bool = False) -> Question:
    """Return the input of `examine` and `advise`. Raises ConfigError (exit code 2) for invalid input."""
    _check(settings)
    if Path(model).is_file():
        source = Subject(_from_file(Path(model)))
    else:
        source = asyncio.run(_from_server(model, _url(upstream), with_installed))
    gpus = tuple(_gpu(at, text) for at, text in enumerate(settings.gpus)) or asyncio.run(_probed(settings.is_idle))
    cards = _cards(gpus, source.facts, source.version)
    return Question(source.facts, source.installed, _options(source.facts, gpus, settings), cards)


def _cards(gpus: Sequence[Gpu], facts: ModelFacts, version: str) -> tuple[Card, ...]:
    margin = fit_target_bytes(facts, version)
    return tuple(Card(gpu.index, gpu.free_bytes, gpu.context_bytes, margin) for gpu in gpus)


def _check(settings: Settings) -> None:
    if settings.kv_type.upper() not in BLOCKS:
        allowed = "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl"
        raise ConfigError(f"--kv-type {settings.kv_type}: not a cache type; allowed are {allowed}")
    if MemoryOptions(256, kv_type=settings.kv_type).is_kv_quantized and not settings.flash_attention:
        raise ConfigError(f"--kv-type {settings.kv_type} requires flash attention: llama.cpp does not load it without")


def _options(facts: ModelFacts, gpus: Sequence[Gpu], settings: Settings) -> MemoryOptions:
    """Return the memory options: the command line's, else the Modelfile's, else the router's default context."""
    server = ServerSettings(num_parallel=settings.num_parallel, kv_type=settings.kv_type)
    default = min(DEFAULT_NUM_CTX, automatic_num_ctx(gpus, server))
    launch = merged(facts, LoadOptions(num_ctx=settings.num_ctx, num_batch=settings.num_batch), server, default)
    return MemoryOptions(
        num_ctx=clamped(launch.num_ctx, facts),
        num_batch=launch.num_batch,
        num_parallel=launch.num_parallel,
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
    )


def _from_file(path: Path) -> ModelFacts:
    """Read a saved answer of `/api/show`. One without tensors is refused, because its size is unknown."""
    try:
        show: Any = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: not JSON: {exc}") from None
    if not isinstance(show, dict) or not isinstance(show.get("model_info"), dict):
        raise ConfigError(f"{path}: not an answer of /api/show: it has no model_info")
    size = show.get("size")
    facts = ModelFacts.of_show({"name": path.stem, "size": size if isinstance(size, int) else 0}, show)
    if not facts.tensors and not facts.size_bytes:
        raise ConfigError(f'{path}: it lists no tensors; request it with {{"model": …, "verbose": true}}')
    return facts


async def _from_server(model: str, upstream: str, with_installed: bool) -> Subject:
    client = OllamaClient(upstream)
    try:
        key, rows = _key(model), await client.tags()
        found = [row for row in rows if key_of(str(row.get("name") or row.get("model"))) == key]
        if not found:
            near = nearest(model, (str(row.get("name") or row.get("model")) for row in rows))
            hint = f" (did you mean {near}?)" if near else ""
            raise ModelNotFound(f"{model} is neither a file nor installed at {upstream}{hint}")
        facts = ModelFacts.of_show(found[0], await client.show(model, verbose=True))
        others = [row for row in rows if row is not found[0]] if with_installed else []
        shown = [ModelFacts.of_show(row, await client.show(str(row["name"]), verbose=True)) for row in others]
        return Subject(facts, tuple(shown), await client.version())
    finally:
        await client.aclose()


def _key(model: str) -> str:
    try:
        return key_of(model)
    except BadRequest:
        raise ConfigError(f"{model} is neither a file nor a model name") from None


def _url(upstream: str) -> str:
    """Return the URL for OLLAMA_HOST, which may lack a scheme, or be the wildcard address that the server binds."""
    url = upstream if "://" in upstream else f"http://{upstream}"
    return url.replace("//0.0.0.0", "//127.0.0.1")


def _gpu(index: int, text: str) -> Gpu:
    """Return a card with this much free memory."""
    size = mib_of(text) * MIB
    return Gpu(index, f"GPU-{index}", "card", size, size)


async def _probed(is_idle: bool) -> tuple[Gpu, ...]:
    probe = detect_probe()
    if probe is None:
        raise ConfigError("no GPU was found on this machine; specify the cards: --gpu 24GiB [--gpu 24GiB]")
    try:
        gpus = (await probe.read()).gpus
    except ProbeError as exc:
        raise ConfigError(f"the GPUs cannot be read: {exc.message}; specify them: --gpu 24GiB") from None
    finally:
        await probe.aclose()
    return tuple(_idle(gpu) for gpu in gpus) if is_idle else gpus


def _idle(gpu: Gpu) -> Gpu:
    """Return the card as if it were idle; the driver's reserve is not free even then."""
    free = max(gpu.free_bytes, gpu.total_bytes - _RESERVED_BYTES)
    return Gpu(gpu.index, gpu.uuid, gpu.name, gpu.total_bytes, free, gpu.context_bytes, gpu.compute)
