"""`ollama-router completion SHELL`: the script that lets a shell complete commands and options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from typer._completion_shared import get_completion_script

from router.cli.main import COMPLETE

NAME = "ollama-router"


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print a script that completes commands and options: `source <(ollama-router completion bash)`."""
    typer.echo(get_completion_script(prog_name=NAME, complete_var=COMPLETE, shell=shell))
