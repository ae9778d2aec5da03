"""`ollama-router teams`: the teams in force, what each has used today, and what is left of its limits."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from router.cli.admin import DEFAULT, ask
from router.cli.table import print_table

TITLES = ("team", "share", "keys", "waiting", "served", "ahead", "requests today", "tokens today", "on runners", "left")


def teams(
    admin: Annotated[
        str, typer.Option(help="Admin address of the router.", envvar="OLLAMA_ROUTER_ADMIN_URL")
    ] = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the teams: what each has used today (UTC), how many requests wait, and what is left of its limits.

    "served" is what a team has had of the cards since a second one asks, "ahead" how much more than the next one.
    """
    found = ask(admin, "/router/teams")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    title = f"clients without a key or network of their own are team {found['default_team']}"
    print_table(Console(), TITLES, [_row(team) for team in found["teams"]], title=title, names=("team",))


def _row(team: dict[str, Any]) -> tuple[str, ...]:
    today = team["today"]
    left = [f"{one['remaining']} of {one['limit']} {name}" for name, one in team["left"].items() if one is not None]
    return (
        team["team"],
        f"{team['share']:g}",
        str(len(team["keys"])),
        str(team["waiting"]),
        _seconds(team["served_s"]),
        _seconds(team["lag_s"]),
        str(today["requests"]),
        str(today["tokens_in"] + today["tokens_out"]),
        _seconds(today["card_ms"] / 1000),
        ", ".join(left),
    )


def _seconds(value: float) -> str:
    """Return a time as text, "-" for none."""
    return f"{value:.1f} s" if value else "-"
