"""Where configuration comes from: a YAML file with positions, environment variables, command line options."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from router.config.problems import Path
from router.config.service_links import is_service_link
from router.config.untrusted import MAX_NODES, read_regular_file, screen
from router.core.masking import own_keys_masked
from router.errors import ConfigError

ENV_PREFIX = "OLLAMA_ROUTER_"
FILE_VARIABLE = ENV_PREFIX + "CONFIG"
# These name the file, and the router that `explain` and `ps` query; they are not keys of the file.
_NOT_KEYS = {FILE_VARIABLE, ENV_PREFIX + "ADMIN_URL", ENV_PREFIX + "ADMIN_KEY"}
_MAX_DEPTH = 32
_MISTAGGED = LookupError, TypeError, AttributeError
"""What ruamel raises for a value that is not what its tag says: `!!bool x`."""
_REFUSALS = YAMLError, ValueError, RecursionError, NotImplementedError, AssertionError, *_MISTAGGED


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data with, for each key path, the place it came from (`router.yaml:12`, a variable, an option)."""

    name: str
    data: dict[str, Any]
    places: dict[Path, str] = field(default_factory=dict)

    def place_of(self, path: Path) -> str:
        """Return the place of `path`, else of something below it (a variable), else of what surrounds it."""
        below = (place for known, place in self.places.items() if path and known[: len(path)] == path)
        around = (self.places[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.places)
        return self.places.get(path) or next(below, None) or next(around, self.name)

    def with_value(self, path: Path, value: object, place: str) -> Document:
        """Return a copy with one value set; what was at and below `path` is replaced."""
        data, places = _set(self.data, path, value), dict(self.places)
        for known in [known for known in places if known[: len(path)] == path]:
            del places[known]
        places[path] = place
        return Document(self.name, data, places)


def read_file(path: FilePath) -> Document:
    """Return the YAML document in `path`.

    Raise ConfigError if it is unreadable, not UTF-8, not YAML, not a mapping, has a key twice, or is `untrusted`.
    """
    return read_text(decoded(read_regular_file(path), str(path)), str(path))


def decoded(raw: bytes, name: str) -> str:
    """Return the text of the file `name`. Raise ConfigError if it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{name}:{line}: found bytes that are not text; allowed: UTF-8") from exc


def read_text(text: str, name: str) -> Document:
    """Parse `text` like `read_file` parses a file; `name` stands for the file in error messages."""
    try:
        screen(text, name)
        node = YAML(typ="rt", pure=True).load(io.StringIO(text))
    except MarkedYAMLError as exc:
        raise ConfigError(_yaml_problem(exc, name)) from exc
    except _REFUSALS as exc:
        raise ConfigError(f"{name}: invalid YAML: {_summary(exc)}") from exc
    if node is None:
        return Document(name, {}, {(): f"{name}:1"})
    if not isinstance(node, CommentedMap):
        raise ConfigError(f"{name}:1: found {_kind(node)} at the top; allowed: a mapping of keys")
    places: dict[Path, str] = {(): f"{name}:1"}
    data = _plain(node, (), name, places)
    assert isinstance(data, dict)
    return Document(name, data, places)


def _summary(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    return "a value that is not what its tag says" if isinstance(exc, _MISTAGGED) else " ".join(str(exc).split())[:200]


def environment(env: Mapping[str, str], known: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], object, str]]:
    """Yield (path, value, place) of each `OLLAMA_ROUTER_…` variable; `__` separates keys, values are read as YAML.

    `known` is the document so far: a variable means a name in it that differs only in case (a backend's).
    """
    for name in sorted(env):
        is_key = name.upper().startswith(ENV_PREFIX) and name.upper() not in _NOT_KEYS
        if is_key and not is_service_link(name, env[name]):
            place = f"environment: {name}"
            path = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
            yield in_known_case(path, known), _parsed(env[name], place), place


def in_known_case(path: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `path` with each part in the case that it has in `known`."""
    found: list[str] = []
    node: object = known
    for part in path:
        match = part
        if isinstance(node, Mapping):
            match = next((key for key in node if key.lower() == part), part)
            node = node.get(match)
        found.append(match)
    return tuple(found)


def _parsed(text: str, place: str) -> object:
    if not re.match(r"\s*[\[{\"']", text):  # only lists and mappings need YAML; "a: b" would be surprising
        return _scalar(text)
    try:
        screen(text, place)
        return _plain(YAML(typ="rt", pure=True).load(io.StringIO(text)), (), place, {})
    except _REFUSALS as exc:
        shown = "text that is not shown" if "KEY" in place.upper() else repr(text[:80])
        raise ConfigError(f"{place}: found {shown}; allowed: a value in YAML, lists as [a, b]") from exc


def _scalar(text: str) -> object:
    stripped = text.strip()
    if stripped in ("true", "false"):
        return stripped == "true"
    if stripped in ("null", "~"):
        return None
    for kind in (int, float):
        try:
            return kind(stripped)
        except ValueError:
            continue
    return stripped


def _plain(node: object, path: Path, name: str, places: dict[Path, str]) -> object:
    """Return `node` as dict, list and scalars, and fill `places`.

    An alias to its own parent ends at the depth limit.
    """
    if len(path) > _MAX_DEPTH:
        raise ConfigError(f"{places.get(path[:1], name)}: found more than {_MAX_DEPTH} levels; allowed: fewer")
    if len(places) > MAX_NODES:
        raise ConfigError(f"{places.get(path[:1], name)}: found more than {MAX_NODES} values; allowed: fewer")
    if isinstance(node, CommentedMap):
        result: dict[str, object] = {}
        for key, value in node.items():
            line = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else 1
            if not isinstance(key, str):
                raise ConfigError(f"{name}:{line}: found the key {key!r}; allowed: text, in quotes where needed")
            places[(*path, str(key))] = f"{name}:{line}"
            result[str(key)] = _plain(value, (*path, str(key)), name, places)
        return result
    if isinstance(node, CommentedSeq):
        items = []
        for index, value in enumerate(node):
            places[(*path, index)] = f"{name}:{node.lc.item(index)[0] + 1}"
            items.append(_plain(value, (*path, index), name, places))
        return items
    return _plain_scalar(node)


def _plain_scalar(node: object) -> object:
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return str(node)


def _set(data: Mapping[str, Any], path: Path, value: object) -> dict[str, Any]:
    head, rest = str(path[0]), path[1:]
    if not rest:
        return {**data, head: value}
    inner = data.get(head)
    return {**data, head: _set(inner if isinstance(inner, Mapping) else {}, rest, value)}


def _yaml_problem(exc: MarkedYAMLError, name: str) -> str:
    return own_keys_masked(_described(exc, name))


def _described(exc: MarkedYAMLError, name: str) -> str:
    mark = exc.problem_mark or exc.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = " ".join((exc.problem or exc.context or "not YAML").split())
    if type(exc).__name__ == "DuplicateKeyError":
        key = re.search(r'duplicate key "?(.*?)"? with', problem)
        return f"{name}:{line}: found the key {key.group(1) if key else ''!s} twice; allowed: each key once"
    cure = "; allowed: spaces, where there is a tab" if r"'\t'" in problem else ""
    return f"{name}:{line}: invalid YAML: {problem[:200]}{cure}"


def _kind(node: object) -> str:
    return "a list" if isinstance(node, CommentedSeq) else f"{str(node)[:40]!r}"
