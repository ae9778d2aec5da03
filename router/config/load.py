"""Load the configuration: command line > environment > file > defaults, or a ConfigError that says what to change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from router.config.keys import NoHash, read_keys
from router.config.paths import FOLDER, folder_of
from router.config.problems import Description, Path, Problem
from router.config.reporting import config_error, line_of, problems_of
from router.config.root import Config, inconsistencies
from router.config.source import FILE_VARIABLE, Document, environment, read_file
from router.config.team_checks import BUILT_IN, disagreements
from router.config.team_files import NoTeamFiles, Override, TeamFile, read_teams
from router.config.team_section import TeamSection
from router.core.masking import masked
from router.errors import ConfigError

_OPTIONS = {"backends.local.url": "upstream"}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def load_config(
    file: FilePath | None = None,
    *,
    env: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Config:
    """Return the configuration of `file` (or of $OLLAMA_ROUTER_CONFIG, or the defaults) with what overrides it.

    `env` None means the process's environment. `options` are command line values by dotted key (``{"listen":
    "127.0.0.1:0", "backends.local.url": …}``, where `local` is the only backend whatever its name). Raise ConfigError
    that names file, line, key, what was found and what is allowed, a line for each problem.
    """
    env = os.environ if env is None else env
    file = config_file(file, env)
    document = read_file(file) if file is not None else Document("defaults", {})
    overrides: list[Override] = []
    for path, value, place in environment(env, document.data or {"backends": {"local": {}}}):
        if path[0] == "teams" and len(path) > 1:
            overrides.append((path[1:], value, place))
        else:
            document = document.with_value(path, value, place)
    for key, value in (options or {}).items():
        place = f"command line: --{_OPTIONS.get(key, key.split('.')[-1].replace('_', '-'))}"
        document = document.with_value(_for_only_backend(key.split("."), document.data), value, place)
    document = _with_ollama_origins(document, env)
    base = folder_of(file)
    config = _checked(document, base)
    config = _with_keys(config, document)
    return _with_teams(config, document, base, overrides)


def config_file(file: FilePath | None = None, env: Mapping[str, str] | None = None) -> FilePath | None:
    """Return the file that is read: `file`, else that of $OLLAMA_ROUTER_CONFIG, else None."""
    named = (os.environ if env is None else env).get(FILE_VARIABLE)
    return FilePath(named) if file is None and named else file


def effective(config: Config) -> dict[str, Any]:
    """Return the configuration in force as plain data, with every key, and with secrets masked."""
    found = _masked(config.model_dump(mode="json"))
    assert isinstance(found, dict)
    if config.team_files:
        found["team_files"] = [_masked(file.shown()) for file in config.team_files]
    return found


def schema() -> dict[str, Any]:
    """Return the JSON schema of the file, as shipped in config/router.schema.json."""
    return {"$schema": _DIALECT, **Config.model_json_schema()}


def team_schema() -> dict[str, Any]:
    """Return the JSON schema of a team's file, as shipped in config/team.schema.json."""
    return {"$schema": _DIALECT, **TeamSection.model_json_schema()}


def _checked(document: Document, folder: FilePath) -> Config:
    # A section whose entries are all commented out is null in YAML: it means the defaults.
    data = {key: value for key, value in document.data.items() if value is not None}
    try:
        config = Config.model_validate(data, context={FOLDER: folder})
    except ValidationError as exc:
        raise config_error(document, problems_of(exc, Config)) from None
    problems = list(inconsistencies(config))
    if problems:
        raise config_error(document, problems)
    return config


def _with_keys(config: Config, document: Document) -> Config:
    """Return `config` with the keys of admins and of fronts. Raise ConfigError for what is wrong with them."""
    keys, problems = read_keys(config.admin_keys, "admin_keys")
    node_keys: tuple[bytes, ...] = ()
    try:
        node_keys = config.node.read_keys()
    except NoHash as exc:
        problems.append(Problem(("node", "key_sha256_file"), Description(exc.found), exc.allowed))
    if problems:
        raise config_error(document, problems)
    return config.with_admin_keys(keys).with_node_keys(node_keys)


def _with_teams(config: Config, document: Document, base: FilePath, overrides: list[Override]) -> Config:
    """Return `config` with the files of its teams. Raise ConfigError for what is wrong in them or between them."""
    if config.teams is None and overrides:
        raise ConfigError(f"{overrides[0][2]}: found no team files; allowed: together with the key teams")
    files: tuple[TeamFile, ...] = ()
    if config.teams is not None:
        try:
            files = read_teams(config.teams, base, config.chains, overrides)
        except NoTeamFiles as exc:
            raise config_error(document, [Problem(("teams",), Description(exc.message), exc.allowed)]) from None
    lines = list(disagreements(files, _own_keys(config)))
    names = sorted({BUILT_IN, *(file.section.team for file in files)})
    if config.default_team not in names:
        lines.append(line_of(document, Problem(("default_team",), config.default_team, ", ".join(names))))
    if lines:
        raise ConfigError("\n".join(lines))
    return config.with_team_files(files)


def _own_keys(config: Config) -> dict[bytes, str]:
    """Return what each key of router.yaml is, by its hash."""
    fronts = dict.fromkeys(config.node_keys, "a key of fronts (node.key_sha256_file)")
    return fronts | {key.sha256: f"the key {key.id} of admin_keys" for key in config.keys_of_admins}


def _for_only_backend(path: list[str], data: Mapping[str, Any]) -> Path:
    """Return `path` with `local` replaced by the name of the only backend, which the command line does not know."""
    backends = data.get("backends")
    if path[:2] == ["backends", "local"] and isinstance(backends, Mapping) and len(backends) == 1:
        path[1] = next(iter(backends))
    return tuple(path)


def _with_ollama_origins(document: Document, env: Mapping[str, str]) -> Document:
    """Use OLLAMA_ORIGINS if no origins are configured, so that web clients that worked with Ollama still do."""
    text = env.get("OLLAMA_ORIGINS", "").strip().strip("\"'")  # as Ollama reads its variables
    origins = [origin.strip() for origin in text.split(",") if origin.strip()]
    if not origins or "origins" in document.data:
        return document
    return document.with_value(("origins",), origins, "environment: OLLAMA_ORIGINS")


def _masked(value: object) -> object:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(inner) for inner in value]
    return value
