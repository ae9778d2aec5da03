"""`ollama-router fit MODEL`: whether a model runs fully on the GPU, on which cards, with which context.

Exit codes: 0 the model fits, 1 it does not, 2 wrong usage, or the model or the cards cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from router.cli.question import DEFAULT_UPSTREAM, Settings, read_question
from router.cli.table import print_table, print_text
from router.core.advice.examine import DeviceTerms, Fit, examine
from router.core.units import GIB

MODEL = Annotated[str, typer.Argument(help="An installed model, or a file with the verbose answer of /api/show.")]
UPSTREAM = Annotated[str, typer.Option(envvar="OLLAMA_HOST", help="URL of the Ollama that has the model.")]
GPU = Annotated[
    list[str], typer.Option("--gpu", help="Free memory of a card, in MiB or as 24GiB; repeat for each card.")
]
NUM_CTX = Annotated[int | None, typer.Option(min=4, help="Context per slot, in tokens.")]
NUM_BATCH = Annotated[int | None, typer.Option(min=1, help="Batch size in tokens.")]
PARALLEL = Annotated[int, typer.Option(min=1, help="Parallel slots (OLLAMA_NUM_PARALLEL).")]
KV_TYPE = Annotated[str, typer.Option(help="Type of the KV cache (OLLAMA_KV_CACHE_TYPE).")]
FLASH = Annotated[
    bool, typer.Option("--flash-attn/--no-flash-attn", help="Use flash attention (OLLAMA_FLASH_ATTENTION).")
]
IDLE = Annotated[bool, typer.Option("--idle", help="Treat the cards of this machine as idle.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

TERMS: tuple[tuple[str, Callable[[DeviceTerms], int]], ...] = (
    ("weights", lambda device: device.weights_bytes),
    ("KV cache and state", lambda device: device.cache_bytes),
    ("compute", lambda device: device.compute_bytes),
    ("projector", lambda device: device.projector_bytes),
    ("driver context", lambda device: device.context_bytes),
    ("fit target", lambda device: device.margin_bytes),
    ("safety", lambda device: device.safety_bytes),
    ("needs", lambda device: device.need_bytes),
    ("has", lambda device: device.have_bytes),
)


def fit(
    model: MODEL,
    gpu: GPU = [],  # noqa: B006 (typer copies it)
    num_ctx: NUM_CTX = None,
    num_batch: NUM_BATCH = None,
    parallel: PARALLEL = 1,
    kv_type: KV_TYPE = "f16",
    flash_attn: FLASH = True,
    idle: IDLE = False,
    upstream: UPSTREAM = DEFAULT_UPSTREAM,
    as_json: AS_JSON = False,
) -> None:
    """Show whether MODEL runs 100 % on the GPU, and how much memory each part takes."""
    settings = Settings(tuple(gpu), num_ctx, num_batch, parallel, kv_type, flash_attn, idle)
    question = read_question(model, upstream, settings)
    found = examine(question.facts, question.options, question.cards)
    if as_json:
        print(json.dumps(as_data(found), indent=2))
    else:
        print_fit(found, Console())
    raise typer.Exit(0 if found.fits else 1)


def as_data(found: Fit) -> dict[str, Any]:
    """Return the result as plain data, all sizes in bytes."""
    known = found.known
    return {
        "model": found.model,
        "architecture": found.arch,
        "fits": found.fits,
        "options": {key: value for key, value in asdict(found.options).items() if value is not None},
        "need_bytes": found.placement.need_bytes,
        "short_bytes": found.placement.short_bytes,
        "expected_bytes": found.placement.expected_bytes,
        "largest_num_ctx": found.largest_num_ctx,
        "terms": {
            "weights_bytes": known.weights_bytes,
            "kv_bytes": known.kv_bytes,
            "state_bytes": known.state_bytes,
            "compute_bytes": known.compute_bytes,
            "projector_bytes": known.projector_bytes,
            "safety_bytes": known.safety_bytes,
        },
        "devices": [asdict(device) for device in found.devices],
        "exactness": known.exactness,
        "notes": list(known.notes),
    }


def print_fit(found: Fit, console: Console) -> None:
    """Print the result: a table on a terminal, tab-separated lines into a pipe."""
    rows = [(name, *(f"{term(device) / GIB:.2f} GiB" for device in found.devices)) for name, term in TERMS]
    rows.insert(0, ("layers", *(str(device.layers) for device in found.devices)))
    titles = ("", *(f"card {device.index}" for device in found.devices))
    print_table(console, titles, rows, title=headline(found))
    for line in (verdict(found), *(f"note: {note}" for note in found.known.notes)):
        print_text(console, line)


def headline(found: Fit) -> str:
    """Return model and settings in one line."""
    options = found.options
    slots = "1 slot" if options.num_parallel == 1 else f"{options.num_parallel} slots"
    flash = "on" if options.flash_attention else "off"
    cache = f"batch {options.num_batch}, KV {options.kv_type}, flash attention {flash}"
    return f"{found.model} ({found.arch or 'no metadata'}), context {options.num_ctx}, {slots}, {cache}"


def verdict(found: Fit) -> str:
    """Return the result in one sentence."""
    most = f"the largest context that fits is {found.largest_num_ctx}" if found.largest_num_ctx else "no context fits"
    if not found.devices:
        return "does not fit: there is no GPU"
    cards = f"{len(found.devices)} cards" if found.is_split else f"card {found.devices[0].index}"
    if found.fits:
        return f"fits fully on {cards}; {most}"
    return f"does not fit on {cards}: {found.placement.short_bytes / GIB:.2f} GiB are missing; {most}"
