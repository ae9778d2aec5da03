"""`ollama-router ps`: the loaded models, how much of each is on the GPU, and what would fit instead."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from router.cli.admin import DEFAULT, ask, is_stale
from router.cli.table import print_table, print_text
from router.core.units import GIB


def ps(
    admin: Annotated[
        str, typer.Option(help="Admin address of the router.", envvar="OLLAMA_ROUTER_ADMIN_URL")
    ] = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,
) -> None:
    """Show the models that are loaded on the cards of the router's Ollama.

    Exit code 1 if Ollama does not answer; then they are those of its last answer.
    """
    state = ask(admin, "/router/state")
    if as_json:
        print(json.dumps(state, indent=2))
    else:
        show(state)
    if is_stale(state):
        sys.exit(1)


def show(state: dict[str, Any]) -> None:
    """Print the state: a table on a terminal, tab-separated lines in a pipe."""
    console = Console()
    rows = [_row(resident) for resident in state["residents"]]
    titles: tuple[str, ...] = ("model", "size", "on GPU", "context", "in flight", "loaded by", "advice")
    if "backends" in state:
        titles = ("backend", *titles)
        rows = [(resident["backend"], *row) for resident, row in zip(state["residents"], rows, strict=True)]
    print_table(console, titles, rows, title=_cards(state), names=("model",))
    for note in state["notes"]:
        print_text(console, f"note: {note}")


def _row(resident: dict[str, Any]) -> tuple[str, ...]:
    return (
        resident["name"],
        f"{resident['size_bytes'] / GIB:.1f} GiB",
        f"{resident['gpu_percent']} %",
        str(resident["context_length"] or "?"),
        str(resident["in_flight"]),
        "router" if resident["loaded_by_router"] else "others",
        resident["advice"],
    )


def _where(gpu: dict[str, Any]) -> str:
    """Return the backend of a card, if there are several."""
    return f"{gpu['backend']} " if "backend" in gpu else ""


def _cards(state: dict[str, Any]) -> str:
    if not state["ollama"]["up"]:
        return "an old state: Ollama does not answer"
    if state["gpus"] is None:
        return "free memory is unknown: every load is verified"
    if not state["gpus"]:
        return "no GPU: requests pass unchanged"
    return ", ".join(
        f"{_where(gpu)}{gpu['name']}: {gpu['free_bytes'] / GIB:.1f} of {gpu['total_bytes'] / GIB:.1f} GiB free"
        for gpu in state["gpus"]
    )
