"""`ollama-router explain MODEL`: which variant would serve it now, and why no bigger one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from router.cli.admin import DEFAULT, ask, is_stale
from router.cli.table import print_table, print_text
from router.core.units import GIB

TITLES = ("", "variant", "num_ctx", "needs", "has", "verdict", "why")


def explain(
    model: Annotated[str, typer.Argument(help="A model or the name of a chain.")],
    num_ctx: Annotated[int | None, typer.Option("--num-ctx", min=1, help="Context of the request, in tokens.")] = None,
    team: Annotated[
        str | None,
        typer.Option(help="Explain its requests, with its own chains; default: the default team, or that of the key."),
    ] = None,
    admin: Annotated[
        str, typer.Option(help="Admin address of the router.", envvar="OLLAMA_ROUTER_ADMIN_URL")
    ] = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Show the current decision for MODEL: a line per variant down to the one that serves, with its memory and verdict.

    OLLAMA_ROUTER_ADMIN_KEY may be the key of a team, too: it explains the requests of that team.

    Exit code 0 if a variant would serve it, 1 if nothing fits, or if Ollama does not answer.
    """
    found = ask(admin, "/router/explain", model=model, num_ctx=num_ctx, team=team)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    if is_stale(found):
        sys.exit(1)
    if found["chosen"] is None and found["outcome"] != "passthrough":
        sys.exit(1)


def show(found: dict[str, Any]) -> None:
    """Print a decision: a table on a terminal, tab-separated lines in a pipe."""
    console = Console()
    rows = [
        (">" if row["model"] == found["chosen"] and row is found["variants"][-1] else "", *_cells(row))
        for row in found["variants"]
    ]
    print_table(console, TITLES, rows, title=_title(found), names=("variant",))
    if found.get("ranking"):
        _show_ranking(console, found["ranking"])
    for place in found.get("ranking", ())[1:]:
        if place.get("variants"):
            lines = [("", *_cells(row)) for row in place["variants"]]
            print_table(console, TITLES, lines, title=f"on {place['backend']}", names=("variant",))
    if found.get("denied"):
        print_text(console, f"denied to team {found.get('team') or 'default'}: {', '.join(found['denied'])}")
    if found.get("between"):
        best = "" if found["best"] == found["chosen"] else "what would be best: "
        print_text(console, f"{best}{found['between']}")
    for note in found.get("notes", []):
        print_text(console, f"note: {note}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a variant."""
    verdict = row["verdict"].replace("_", " ")
    return (
        row["model"],
        str(row["num_ctx"] or ""),
        _gib(row["need_bytes"]),
        _gib(row["have_bytes"]),
        verdict,
        row["detail"] if row["detail"] != verdict else "",
    )


def _show_ranking(console: Console, ranking: Sequence[dict[str, Any]]) -> None:
    """Print where a request would go, and why not elsewhere."""
    rows = [
        (
            ">" if place is ranking[0] and place["usable"] else "",
            place["backend"],
            place["model"] or "",
            place["reason"],
        )
        for place in ranking
    ]
    print_table(console, ("", "backend", "variant", "why"), rows, title="backends, the best first", names=("variant",))


def _title(found: dict[str, Any]) -> str:
    if found["outcome"] == "passthrough":
        return f"{_asked(found)}: passed on unchanged, because there is no GPU"
    gpus = found.get("gpus")
    free = (
        "free memory unknown"
        if gpus is None
        else ", ".join(f"{gpu['name']} {_gib(gpu['free_bytes'])} free" for gpu in gpus)
    )
    if "backend" in found:  # there are several
        free = f"{found['backend']}: {free}"
    return f"{_asked(found)}: {found['chosen'] or 'nothing fits'} ({found['reason']}); {free}"


def _asked(found: dict[str, Any]) -> str:
    """Return what is explained: a chain, perhaps as a team has it."""
    team = found.get("team")
    return f"{found['chain']} of team {team}" if team else str(found["chain"])


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count else ""
