"""`ollama-router advise MODEL`: how to make a model fit on this machine, and which cards it would fit on unchanged.

Exit codes: 0 the model fits unchanged, 1 it does not, 2 wrong usage, or the model or the cards cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console

from router.cli.fit import (
    AS_JSON,
    FLASH,
    GPU,
    IDLE,
    KV_TYPE,
    MODEL,
    NUM_BATCH,
    NUM_CTX,
    PARALLEL,
    UPSTREAM,
    as_data,
    headline,
    verdict,
)
from router.cli.question import DEFAULT_UPSTREAM, Settings, read_question
from router.cli.table import print_table, print_text
from router.core.advice.advise import Advice, Hardware
from router.core.advice.advise import advise as advise_on
from router.core.units import GIB


def advise(
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
    """Show what would make MODEL run 100 % on the GPU here, and what to pull instead."""
    settings = Settings(tuple(gpu), num_ctx, num_batch, parallel, kv_type, flash_attn, idle)
    question = read_question(model, upstream, settings, with_installed=True)
    found = advise_on(question.facts, question.installed, question.options, question.cards)
    if as_json:
        print(json.dumps(_as_data(found), indent=2))
    else:
        print_advice(found, Console())
    raise typer.Exit(0 if found.fit.fits else 1)


def _as_data(found: Advice) -> dict[str, Any]:
    return {
        "fit": as_data(found.fit),
        "cures": [asdict(cure) for cure in found.cures],
        "hardware": [asdict(one) for one in found.hardware],
        "main_memory_bytes": found.main_memory_bytes,
        "pulls": [asdict(pull) for pull in found.pulls],
    }


def print_advice(found: Advice, console: Console) -> None:
    """Print the advice as text."""
    if found.fit.fits:
        print_text(console, headline(found.fit))
    else:
        rows = [(cure.text, f"{_about(cure.is_estimate)}{cure.need_bytes / GIB:.1f} GiB") for cure in found.cures]
        rows = rows or [("no change makes it fit on this machine" + ("; pull another" if found.pulls else ""), "")]
        print_table(console, ("what would help", "needs"), rows, title=headline(found.fit))
    print_text(console, verdict(found.fit))
    if found.main_memory_bytes:
        size = found.main_memory_bytes / GIB
        text = f"if it is run nevertheless, {size:.1f} GiB of it are in main memory and computed by the CPU: slow"
        print_text(console, text)
    for one in found.hardware:
        print_text(console, f"runs fully on: {_cards(one, found.fit.options.num_ctx)}")
    if not found.hardware:
        print("runs fully on: no machine with up to two cards of 96 GB")
    for note in found.fit.known.notes:
        print_text(console, f"note: {note}")
    if found.pulls:
        print("models of the public library that fit here (sizes of November 2026):")
    for pull in found.pulls:
        other = "" if pull.is_series else "; of another series, so name it in a chain"
        print(f"ollama pull {pull.model}  # about {pull.need_bytes / GIB:.1f} GiB at {pull.num_ctx}{other}")


def _about(is_estimate: bool) -> str:
    return "about " if is_estimate else ""


def _cards(one: Hardware, asked_num_ctx: int) -> str:
    less = f" with a context of {one.num_ctx}" if one.num_ctx != asked_num_ctx else ""
    if one.cards == 1:
        return f"one card of {one.size_gb} GB{less} (needs {one.need_bytes / GIB:.1f} GiB)"
    cost = f"splitting takes {one.split_cost_bytes / GIB:.1f} GiB more and is not faster"
    return f"{one.cards} cards of {one.size_gb} GB{less} (need {one.need_bytes / GIB:.1f} GiB together; {cost})"
