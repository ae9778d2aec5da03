"""`ollama-router check`: validate a configuration and print the effective values."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from router.config import (
    Config,
    Places,
    config_file,
    config_warnings,
    differences,
    effective,
    load_config,
    meaning_of,
    schema,
    team_schema,
)
from router.config.foreign import read, write
from router.errors import ConfigError


def check(
    file: Annotated[
        Path | None, typer.Argument(help="YAML file; default: $OLLAMA_ROUTER_CONFIG, else the built-in defaults.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The same as FILE, as the other commands have it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the effective configuration as JSON.")] = False,
    print_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the configuration file instead.")
    ] = False,
    print_team_schema: Annotated[
        bool, typer.Option("--team-schema", help="Print the JSON schema of a team's file instead.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the configured Ollama whether it has the models that are named.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="Print how a reload would take over what differs from this file, instead."),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option("--import", help="Print the equivalent of a file of LiteLLM, llama-swap or Olla instead."),
    ] = None,
) -> None:
    """Check a configuration file with the files of its teams, and print the effective configuration.

    The last line, on standard error, says that it is valid. Exit code 2 if it is invalid; 1 if, with --live, a model is
    missing or Ollama does not answer.
    """
    if file is not None and config is not None:
        raise typer.BadParameter("FILE and --config are the same: give one of them")
    file = file or config
    if import_from is not None:
        typer.echo(write(read(import_from), import_from.name), nl=False)
        return
    if print_schema or print_team_schema:
        typer.echo(json.dumps(team_schema() if print_team_schema else schema(), indent=2, ensure_ascii=False))
        return
    loaded, places = load_config(file), Places(config_file(file))
    if against is not None:
        before = load_config(against)
        for key in differences(before, loaded):
            typer.echo(f"{key}: {meaning_of(key, before, loaded)}")
        return
    _refuse_unusable_files(loaded, places)
    _print(effective(loaded), as_json=as_json)
    if live:
        from router.cli.live import has_all_models  # here, because the HTTP client takes time to import

        if not has_all_models(loaded, places):
            raise typer.Exit(1)
        _say_valid(file)
        return
    for text in config_warnings(loaded, places, time.time()):
        typer.echo(f"warning: {text}", err=True)
    _say_valid(file)


def _refuse_unusable_files(config: Config, places: Places) -> None:
    """Raise ConfigError if a certificate or credential that is named cannot be used: `serve` would not start."""
    from router.cli.unusable import unusable_files  # here, because what it uses takes time to import

    if lines := [f"{places.of(path)}: {error.message}" for path, error in unusable_files(config)]:
        raise ConfigError("\n".join(lines))


def _say_valid(file: Path | None) -> None:
    """Print that nothing is wrong with the configuration itself; what is printed before may warn."""
    path = config_file(file)
    typer.echo(f"{path or 'the built-in configuration'} is valid", err=True)


def _print(config: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(config, indent=2, ensure_ascii=False))
        return
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(config, sys.stdout)
