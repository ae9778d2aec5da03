"""`ollama-router usage`: what each team has used, by team, key, model, backend, kind and hour."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from router.cli.admin import DEFAULT, ask, ask_text
from router.cli.table import print_table

_SECONDS = {"card_ms": "on runners", "load_ms": "loading", "queue_ms": "waiting"}
_COUNTS = {"requests": "requests", "errors": "errors", "tokens_in": "tokens in", "tokens_out": "tokens out"}


def usage(
    by: Annotated[str, typer.Option(help="Names to sum by: hour, team, key_id, model, backend, kind.")] = "team,model",
    since: Annotated[
        str | None, typer.Option("--from", help="First hour: 2027-01-31 or 2027-01-31T15:00 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="First hour that does not count any more.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_focus: Annotated[bool, typer.Option("--focus", help="Print FOCUS 1.0 (CSV, with costs by the hour).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    admin: Annotated[
        str, typer.Option(help="Admin address of the router.", envvar="OLLAMA_ROUTER_ADMIN_URL")
    ] = DEFAULT,
) -> None:
    """Show what each team has used.

    A request's time on a runner is its share of it: while three requests run, each is charged a third.
    """
    query: dict[str, Any] = {"by": by, "from": since, "to": until}
    if as_csv or as_focus:
        sys.stdout.write(ask_text(admin, "/router/usage", format="focus" if as_focus else "csv", **query))
        return
    found = ask(admin, "/router/usage", **query)
    if problem := found.get("problem"):
        print(problem, file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Print the rows: a table on a terminal, tab-separated lines in a pipe."""
    names = found["by"]
    rows = [
        (
            *(str(row[name]) or "-" for name in names),
            *(str(row[name]) for name in _COUNTS),
            *(f"{row[name] / 1000:.1f} s" for name in _SECONDS),
            f"{row['vram_mib_s'] / 1024 / 3600:.2f}",
        )
        for row in found["usage"]
    ]
    titles = (*names, *_COUNTS.values(), *_SECONDS.values(), "GiB·h")
    print_table(Console(), titles, rows, title=_period(found), names=("model",))


def _period(found: dict[str, Any]) -> str:
    since, until = found["from"], found["to"]
    return f"usage from {since or 'the beginning'} to {until or 'now'}"
