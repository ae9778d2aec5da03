"""`ollama-router top`: cards, models, the queue and the last decisions, live in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from router.cli.admin import DEFAULT, ask, is_stale
from router.cli.table import plain
from router.core.units import GIB
from router.errors import RouterError

BLOCKS = {"model": ("█", "cyan"), "loading": ("▒", "yellow"), "others": ("█", "bright_black"), "free": ("░", "dim")}
WAITING_SHOWN, DECISIONS_SHOWN = 5, 8


def top(
    admin: Annotated[
        str, typer.Option(help="Admin address of the router.", envvar="OLLAMA_ROUTER_ADMIN_URL")
    ] = DEFAULT,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once, as into a pipe.")] = False,
) -> None:
    """Watch cards, models, the queue and the last decisions until Ctrl-C.

    Exit code 1 if no router answers at the start; one that goes away later is waited for.
    """
    console = Console()
    board, rows = _read(admin)
    if once or not console.is_terminal:
        console.print(frame(board, rows, console.width), soft_wrap=not console.is_terminal)
        if is_stale(board):
            raise typer.Exit(1)
        return
    with Live(frame(board, rows, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                board, rows = _read(admin)
                view = frame(board, rows, console.width)
            except RouterError as error:
                view = Group(Text(str(error), style="bold red"), frame(board, rows, console.width))
            live.update(view, refresh=True)


def _read(admin: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return ask(admin, "/router/board"), ask(admin, "/router/decisions")["decisions"]


def frame(board: dict[str, Any], decisions: Sequence[dict[str, Any]], width: int) -> RenderableType:
    """Return what `top` shows of the board and the decisions, newest first, on `width` columns."""
    lines = [_head(board), _totals(board), *_notes(board), Text()]
    for card in board["cards"] or ():
        lines += _card(card, width)
    if board["cards"] is None:
        lines.append(Text("Free VRAM cannot be read: each load is tried, and verified.", style="yellow"))
    lines += [*map(_model, board["models"]), *_loading(board), Text(), *_queue(board), Text()]
    has_several = any("backend" in row for row in (*(board["cards"] or ()), *board["models"]))
    shown = decisions[:DECISIONS_SHOWN]
    lines += [_decision(row, has_several=has_several) for row in shown] or [Text("No request yet.", style="dim")]
    return Group(*lines)


def _head(board: dict[str, Any]) -> Text:
    state = "draining" if board["draining"] else "ready" if board["ready"] else "not ready"
    text = Text(f"ollama-router {board['version']}", style="bold")
    text.append(f" · Ollama {board['ollama']['version'] or '?'} · ", style="dim not bold")
    return text.append(state, style="green" if state == "ready" else "bold red")


def _totals(board: dict[str, Any]) -> Text:
    found = board["totals"]
    parts = [_many(found["requests"], "request"), _many(found["spills_avoided"], "spill") + " avoided"]
    if found["switches"] is not None:  # a front does not know
        parts.append(_many(found["switches"], "switch", "es"))
    return Text(", ".join(parts), style="dim")


def _many(number: int, one: str, ending: str = "s") -> str:
    return f"{number} {one}{'' if number == 1 else ending}"


def _notes(board: dict[str, Any]) -> list[Text]:
    found = [] if board["ollama"]["up"] else [f"Ollama does not answer: {board['ollama']['error']}"]
    return [Text(plain(note), style="yellow") for note in (*found, *board["notes"])]


def _card(card: dict[str, Any], width: int) -> list[Text]:
    """Return the title of a card, and its memory to scale."""
    used = card["total_bytes"] - card["blocks"][-1]["bytes"]
    title = Text(f"GPU {card['index']} {plain(card['name'])}", style="bold")
    title.append(f"  {used / GIB:.1f} of {card['total_bytes'] / GIB:.1f} GiB in use", style="dim not bold")
    bar, columns, done = Text(), max(20, width - 1), 0
    for block in card["blocks"]:
        char, style = BLOCKS[block["kind"]]
        done += block["bytes"]
        bar.append(char * (round(columns * done / card["total_bytes"]) - len(bar)), style=style)
    return [title, bar]


def _model(model: dict[str, Any]) -> Text:
    text = Text("  ").append(plain(model["name"]), style="bold cyan")
    context = _many(model["context"], "token") if model["context"] else "? tokens"
    facts = [f"{model['bytes'] / GIB:.1f} GiB", context]
    facts.append(f"{model['in_flight']} in flight" if model["in_flight"] else "idle")
    if model["on_cpu_bytes"]:
        facts.append(f"{model['on_cpu_bytes'] / GIB:.1f} GiB on the CPU")
    if model["kept"]:
        facts.append("kept")
    if "backend" in model:  # there are several
        facts.append(f"on {model['backend']}")
    return text.append(f"  {' · '.join(facts)}", style="dim")


def _loading(board: dict[str, Any]) -> list[Text]:
    loading = board["loading"]
    if loading is None:
        return []
    text = Text("  ").append(plain(loading["model"]), style="bold yellow").append("  loading", style="yellow")
    evicts = ", ".join(map(plain, loading["evicts"]))
    return [text.append(f", in place of {evicts}" if evicts else "", style="dim")]


def _queue(board: dict[str, Any]) -> list[Text]:
    """Return the waiting requests by what they wait for, in the order of the first of each."""
    queue = board["queue"]
    if not queue:
        return [Text("Nothing waits.", style="dim")]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in queue:
        groups.setdefault(row["model"], []).append(row)
    loading = (board["loading"] or {}).get("model")
    lines = [Text(f"{_many(len(queue), 'request')} waiting", style="bold")]
    for model, rows in list(groups.items())[:WAITING_SHOWN]:
        since_s = max(0.0, time.time() - min(row["since"] for row in rows))
        what = "for its load" if model and model == loading else "for a turn" if model else "for memory"
        text = Text("  ").append(plain(model) or "any variant", style="bold")
        who = f"{_many(len(rows), 'request')} {'waits' if len(rows) == 1 else 'wait'} {what}"
        lines.append(text.append(f"  {who}, {'' if len(rows) == 1 else 'the first '}for {since_s:.0f} s", "not bold"))
    if more := len(groups) - WAITING_SHOWN:
        lines += [Text(f"  and {_many(more, 'more model')}", style="dim")] if more > 0 else []
    return lines


def _decision(row: dict[str, Any], *, has_several: bool) -> Text:
    """Return one decision, switch or spill as a sentence, with its backend where there are several."""
    text = Text(time.strftime("%H:%M:%S  ", time.localtime(row["at"])), style="dim")
    where = f" on {plain(row['backend'])}" if has_several and row.get("backend") else ""
    if row["kind"] != "request":
        return text.append(f"{row['kind']}: {plain(row['model'])}{where}", style="dim")
    text.append(plain(row["requested"]), style="not dim")
    if not row["chosen"]:
        return text.append(" refused", style="red not dim")
    if row["chosen"] != row["requested"]:
        text.append(f" → {plain(row['chosen'])}", style="cyan not dim")
    return text.append(f"{where}  {plain(row['reason'])}")
