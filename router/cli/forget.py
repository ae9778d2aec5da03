"""`ollama-router forget [MODEL]`: forget what loads have taught, for one model or for all."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli.admin import DEFAULT, ask


def forget(
    model: Annotated[str | None, typer.Argument(help="An installed model; all models if left out.")] = None,
    admin: Annotated[
        str, typer.Option(help="Admin address of the router.", envvar="OLLAMA_ROUTER_ADMIN_URL")
    ] = DEFAULT,
) -> None:
    """Forget what loads of MODEL have taught the router, and lift every bar on it.

    After a repair (a driver, a power limit, another program that took memory), so that earlier failures do not count.
    """
    found = ask(admin, "/router/forget", method="POST", model=model)
    of_what = model or "all models"
    print(f"forgot {found['forgotten']} load{'' if found['forgotten'] == 1 else 's'} of {of_what}")
