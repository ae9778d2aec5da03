"""`ollama-router`: the table of commands, `--version`, and the handling of errors.

Exit codes: 0 success; 1 failure (unreachable, nothing fits, refused); 2 wrong usage or configuration; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from router import __version__
from router.errors import BadRequest, ConfigError, RouterError

# name → module:function. Imported when run, so that `explain` does not pay for importing the simulator.
COMMANDS = {
    "serve": "router.cli.serve:serve",
    "init": "router.cli.init:init",
    "check": "router.cli.check:check",
    "explain": "router.cli.explain:explain",
    "ps": "router.cli.ps:ps",
    "top": "router.cli.top:top",
    "teams": "router.cli.teams:teams",
    "usage": "router.cli.usage:usage",
    "forget": "router.cli.forget:forget",
    "keys": "router.cli.keys:app",
    "fit": "router.cli.fit:fit",
    "advise": "router.cli.advise:advise",
    "simulate": "router.cli.simulate:simulate",
    "demo": "router.cli.demo:demo",
    "completion": "router.cli.completion:completion",
}
# The first sentence of each command's help, so that the list of commands imports none of them.
SUMMARIES = {
    "serve": "Serve Ollama's API on --listen, routed to the Ollama at --upstream.",
    "init": "Write a commented configuration for the models that are installed and the cards of this machine.",
    "check": "Check a configuration file with the files of its teams, and print the effective configuration.",
    "explain": "Show the current decision for MODEL: a line per variant down to the one that serves.",
    "ps": "Show the models that are loaded on the cards of the router's Ollama.",
    "top": "Watch cards, models, the queue and the last decisions until Ctrl-C.",
    "teams": "Show the teams: what each has used today (UTC), how many requests wait, and what is left of its limits.",
    "usage": "Show what each team has used.",
    "forget": "Forget what loads of MODEL have taught the router, and lift every bar on it.",
    "keys": "Make, list, replace and revoke the keys of teams and admins.",
    "fit": "Show whether MODEL runs 100 % on the GPU, and how much memory each part takes.",
    "advise": "Show what would make MODEL run 100 % on the GPU here, and what to pull instead.",
    "simulate": "Run a simulated Ollama until Ctrl-C.",
    "demo": "Run a demonstration on an embedded simulator.",
    "completion": "Print a script that completes commands and options.",
}
NEED_SIGNALS = ("serve", "simulate", "demo")
"""Commands that are told by signals, and lock files, as Windows does not."""
COMPLETE = "_OLLAMA_ROUTER_COMPLETE"
"""The variable by which a shell's script asks for completions (`ollama-router completion`)."""


class LazyCommands(TyperGroup):
    """The commands of `COMMANDS`, in its order."""

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES.get(name, "")) for name in COMMANDS])

    def list_commands(self, _ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = COMMANDS.get(cmd_name)
        if target is None:
            if meant := get_close_matches(cmd_name, COMMANDS, 1):
                ctx.fail(f"No such command '{cmd_name}'. Did you mean '{meant[0]}'?")
            return None
        if cmd_name in NEED_SIGNALS and not hasattr(signal, "SIGHUP"):
            raise RouterError(f"ollama-router {cmd_name} does not run on Windows: run it in WSL 2 or in Docker")
        module, _, function = target.partition(":")
        found = getattr(importlib.import_module(module), function)
        if isinstance(found, typer.Typer):  # a group of commands
            group = typer.main.get_group(found)
            group.name = cmd_name
            return group
        one = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        one.command(cmd_name)(found)
        return typer.main.get_command(one)


app = typer.Typer(
    cls=LazyCommands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"ollama-router {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Send each Ollama request to the biggest variant of its model that runs fully on the GPU now."""


def run() -> None:
    """Run the command line; print a RouterError in one line and exit with its code."""
    if COMPLETE in os.environ:  # a shell asks; otherwise the import would cost every command
        importlib.import_module("typer.completion").completion_init()
    try:
        app(prog_name="ollama-router")
    except (BadRequest, ConfigError) as error:  # wrong usage, said by a running router or found here
        _exit(error.message, 2)
    except RouterError as error:
        _exit(error.message, 1)
    except BrokenPipeError:  # `ollama-router … | head`; without this Python would print a second error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # an address that another program listens on, of `demo` for example
        if error.errno != errno.EADDRINUSE:
            raise
        _exit(error.strerror or str(error), 1)


def _exit(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)
