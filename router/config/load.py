"""Load the configuration: command line > environment > file > defaults, or a ConfigError that says what to change."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from router.config.backends import BackendSection, StaticGpu
from router.config.root import Config, Path, Problem, inconsistencies
from router.config.sections import ChainSection, VariantSection
from router.config.source import FILE_VARIABLE, Document, environment, read_file
from router.core.masking import masked
from router.errors import ConfigError

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OPTIONS = {"backends.local.url": "upstream"}
_TEAMS = "no key teams (teams are not supported yet)"


@dataclass(frozen=True, slots=True)
class Description:
    """Text about what was found, where there is no value to show."""

    text: str


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
    if file is None and env.get(FILE_VARIABLE):
        file = FilePath(env[FILE_VARIABLE])
    document = read_file(file) if file is not None else Document("defaults", {})
    for path, value, place in environment(env, document.data or {"backends": {"local": {}}}):
        document = document.with_value(path, value, place)
    for key, value in (options or {}).items():
        place = f"command line: --{_OPTIONS.get(key, key.split('.')[-1].replace('_', '-'))}"
        document = document.with_value(_for_only_backend(key.split("."), document.data), value, place)
    return _checked(_with_ollama_origins(document, env))


def effective(config: Config) -> dict[str, Any]:
    """Return the configuration in force as plain data, with every key, and with secrets masked."""
    found = _masked(config.model_dump(mode="json"))
    assert isinstance(found, dict)
    return found


def schema() -> dict[str, Any]:
    """Return the JSON schema of the file, as shipped in config/router.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _checked(document: Document) -> Config:
    if "teams" in document.data:
        raise _error(document, [Problem(("teams",), document.data["teams"], _TEAMS)])
    # A section whose entries are all commented out is null in YAML: it means the defaults.
    data = {key: value for key, value in document.data.items() if value is not None}
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        details = exc.errors(include_url=False, include_context=True)
        raise _error(document, [_problem(detail) for detail in details if not _is_redundant(detail["loc"])]) from None
    problems = list(inconsistencies(config))
    if problems:
        raise _error(document, problems)
    return config


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


def _error(document: Document, problems: Iterable[Problem]) -> ConfigError:
    lines = []
    for problem in problems:
        path = tuple(_present(problem.path, document.data))
        lines.append(
            f"{document.place_of(path)}: {_key(path)}found {_shown(problem.found)}; allowed: {problem.allowed}"
        )
    return ConfigError("\n".join(dict.fromkeys(lines)))


def _is_redundant(path: Path) -> bool:
    """Return whether an error only says that a list of variants is not one of the words allowed in its place."""
    return any(str(part).startswith("literal[") for part in path)


def _problem(detail: ErrorDetails) -> Problem:
    path = tuple(part for part in detail["loc"] if part != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return Problem(path[:-1], Description(f"no key {path[-1]}"), "a mapping with this key")
    if kind == "extra_forbidden":
        return _unknown_key(path)
    return Problem(path, detail["input"], _allowed(kind, context, detail["msg"]))


def _allowed(kind: str, context: Mapping[str, Any], message: str) -> str:
    texts = {
        "allowed": context.get("allowed"),
        "literal_error": str(context.get("expected", "")).replace("'", '"'),
        "greater_than_equal": f"at least {context.get('ge')}",
        "multiple_of": f"a multiple of {context.get('multiple_of')}",
        "too_short": f"at least {context.get('min_length')}",
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "dict_type": "a mapping of keys",
        "model_type": "a mapping of keys",
    }
    return texts.get(kind) or message


def _unknown_key(path: Path) -> Problem:
    keys = list(_section_at(path[:-1]).model_fields)
    near = difflib.get_close_matches(str(path[-1]), keys, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return Problem(path, Description(f"the unknown key {path[-1]}{hint}"), ", ".join(keys))


def _section_at(path: Path) -> type[BaseModel]:
    """Return the model class of the section at `path`; mappings and lists lead to the class of their entries."""
    if path[:1] == ("chains",):
        return VariantSection if any(isinstance(part, int) for part in path) else ChainSection
    if path[:1] == ("backends",):
        path = path[2:]
        section: type[BaseModel] = BackendSection
    else:
        section = Config
    for part in path:
        if isinstance(part, int):
            return StaticGpu
        annotation = section.model_fields[part].annotation
        inner = [kind for kind in (annotation, *get_args(annotation)) if _is_section(kind)]
        section = inner[0] if inner else section
    return section


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _present(path: Path, data: object) -> Iterator[str | int]:
    """Yield `path` as the user wrote it, without parts that stand for a short form (`variants`, `model`)."""
    node = data
    for index, part in enumerate(path):
        if isinstance(node, Mapping) and (part in node or index == len(path) - 1):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        yield part


def _key(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _PLAIN_KEY.fullmatch(part) else json.dumps(part))
    return f"{text}: " if text else ""


def _shown(value: object) -> str:
    if isinstance(value, Description):
        return value.text
    text = masked(json.dumps(value, default=str, ensure_ascii=False))
    return text if len(text) <= 80 else text[:77] + "…"


def _masked(value: object) -> object:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(inner) for inner in value]
    return value
