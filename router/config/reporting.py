"""ConfigErrors: a line for each problem, with the file, the line, the key, what was found there and what is allowed.

Nothing that may be a key of a team is ever shown.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from router.config.problems import Description, Path, Problem, present
from router.config.source import Document
from router.core.masking import masked, own_keys_masked
from router.errors import ConfigError

SECRETS = ("keys", "admin_keys")
"""The key at the top of a team's file below which a value may be a secret that was put in the wrong place."""

HASH_HINT = "of a key only its hash is configured: `printf %s KEY | sha256sum`"

LONGEST_SHOWN_NAME = 20
"""Below `SECRETS` a longer name of a key is not shown: it may be a secret."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


def config_error(document: Document, problems: Iterable[Problem]) -> ConfigError:
    """Return the error that says what is wrong in `document`."""
    return ConfigError("\n".join(dict.fromkeys(line_of(document, problem) for problem in problems)))


def line_of(document: Document, problem: Problem) -> str:
    """Return the line that says where in `document` a problem is, and what is allowed there."""
    path = tuple(present(problem.path, document.data))
    line = f"{document.place_of(path)}: {_key(path)}found {_shown(problem.found)}; allowed: {problem.allowed}"
    return own_keys_masked(line)


def problems_of(invalid: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Return what pydantic has found wrong with the data of a `root`."""
    details = invalid.errors(include_url=False, include_context=True)
    return [_problem(detail, root) for detail in details if not _is_redundant(detail["loc"])]


def _is_redundant(path: Path) -> bool:
    """Return whether an error only says that a list of variants is not one of the words allowed in its place."""
    return any(str(part).startswith("literal[") for part in path)


def _problem(detail: ErrorDetails, root: type[BaseModel]) -> Problem:
    path: Path = tuple(part for part in detail["loc"] if part != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return Problem(path[:-1], Description(f"no key {path[-1]}"), "a mapping with this key")
    if kind == "extra_forbidden":
        return _unknown_key(path, root)
    found = detail["input"]
    if path[:1] and path[0] in SECRETS and path[-1] != "expires":
        found = Description(f"{_kind(found)} that is not shown, because it may be a key")
        return Problem(path, found, _with_hint(_allowed(kind, context, detail["msg"])))
    return Problem(path, found, _allowed(kind, context, detail["msg"]))


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else "a value"


def _allowed(kind: str, context: Mapping[str, Any], message: str) -> str:
    texts = {
        "allowed": context.get("allowed"),
        "literal_error": str(context.get("expected", "")).replace("'", '"'),
        "greater_than": f"above {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than_equal": f"at most {context.get('le')}",
        "multiple_of": f"a multiple of {context.get('multiple_of')}",
        "too_short": f"at least {context.get('min_length')}",
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "dict_type": "a mapping of keys",
        "model_type": "a mapping of keys",
    }
    return texts.get(kind) or message


def _unknown_key(path: Path, root: type[BaseModel]) -> Problem:
    keys = [field.alias or name for name, field in _section_at(root, path[:-1]).model_fields.items()]
    name = str(path[-1])
    is_secret = path[:1] and path[0] in SECRETS
    if is_secret and len(name) > LONGEST_SHOWN_NAME:
        return Problem(path[:-1], Description("an unknown key"), _with_hint(", ".join(keys)))
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return Problem(
        path,
        Description(f"the unknown key {name}{hint}"),
        _with_hint(", ".join(keys)) if is_secret else ", ".join(keys),
    )


def _with_hint(allowed: str) -> str:
    """Return what is allowed where somebody may have put a key itself."""
    return allowed if "sha256sum" in allowed else f"{allowed}; {HASH_HINT}"


def _section_at(root: type[BaseModel], path: Path) -> type[BaseModel]:
    """Return the model class of the section at `path` below a `root`; mappings and lists lead to that of an entry."""
    section, is_name = root, False
    for part in path:
        field = None if is_name else _fields(section).get(part)
        is_name = False
        if field is not None:
            section = next(_sections(field.annotation), section)
            is_name = any(
                get_origin(kind) in (Mapping, dict) for kind in (field.annotation, *get_args(field.annotation))
            )
    return section


def _fields(section: type[BaseModel]) -> dict[str | int, Any]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


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
