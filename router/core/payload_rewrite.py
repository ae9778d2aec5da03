"""The same body for another model: one canonical `model`, other options; every other value keeps its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from router.core.json_keys import fold, kind_of, read_text, split

Members = list[tuple[str, memoryview]]

# Every key under which some route of Ollama takes a model's name. A body that goes upstream holds each at most once.
_NAME_KEYS = ("model", "name", "source", "destination", "from")
_NOTHING: Mapping[str, Any] = {}
_encode = msgspec.json.encode


def rewrite(
    body: bytes,
    *,
    model: str,
    options: Mapping[str, int | bool | None] = _NOTHING,
    drop: frozenset[str] = frozenset(),
    force: Mapping[str, Any] = _NOTHING,
    members: Members | None = None,
) -> bytes:
    """`body` with `model` under exactly one key; the same object when nothing changes.

    `options` go into the body's "options" (None takes one out; "shift" goes where Ollama has it, to the top); `drop`
    names top-level keys to leave out, `force` such keys to set. A `members` from `InferenceRequest` saves a parse.
    Raises BadRequest for a body that `read_request` refuses too.
    """
    members = split(body) if members is None else members
    wanted = {"model": _encode(model)} | {key: _encode(value) for key, value in force.items()}
    if "shift" in options:
        drop, wanted = _with_shift(options["shift"], drop, wanted)
    if runner := {key: value for key, value in options.items() if key != "shift"}:
        merged = _merge_options(members, runner)
        if merged is not None:
            wanted["options"] = merged
    return _replace(body, members, wanted, drop | {"name"}, model)


def rewrite_names(body: bytes, names: Mapping[str, str], *, members: Members | None = None) -> bytes:
    """A management body with exactly the `names` given, each under one key; other keys that hold names are left out
    (`name` beside `model`), the same object when nothing changes."""
    members = split(body) if members is None else members
    wanted = {key: _encode(name) for key, name in names.items()}
    return _replace(body, members, wanted, frozenset(_NAME_KEYS) - names.keys(), names.get("model"))


def _with_shift(
    shift: int | bool | None, drop: frozenset[str], wanted: dict[str, bytes]
) -> tuple[frozenset[str], dict[str, bytes]]:
    return (drop | {"shift"}, wanted) if shift is None else (drop, wanted | {"shift": _encode(shift)})


def _merge_options(members: Members, runner: Mapping[str, int | bool | None]) -> bytes | None:
    """The "options" object with `runner` in it; None when that changes nothing."""
    found: dict[str, bytes | memoryview] = {}
    for key, view in members:
        if key == "options" or fold(key) == "options":
            found = {} if kind_of(view) == "null" else {**found, **dict(split(view))}
    merged = {key: view for key, view in found.items() if runner.get(key, 0) is not None}
    merged.update({key: _encode(value) for key, value in runner.items() if value is not None})
    return None if merged == found else _join(list(merged.items()))


def _replace(
    body: bytes, members: Members, wanted: Mapping[str, bytes], drop: frozenset[str], model: str | None
) -> bytes:
    """`members` with the `wanted` keys in front, each once, without those in `drop`."""
    kept: list[tuple[str, bytes | memoryview]] = []
    same: set[str] = set()
    is_changed = False
    for key, view in members:
        name = key if key in wanted else fold(key)
        if name in drop:
            is_changed = True
        elif name not in wanted:
            kept.append((key, view))
        elif key == name and name not in same and _is_same(name, view, wanted[name], model):
            same.add(name)
        else:
            is_changed = True
    if not is_changed and len(same) == len(wanted):
        return body
    return _join([*wanted.items(), *kept])


def _is_same(name: str, view: memoryview, wanted: bytes, model: str | None) -> bool:
    return view == wanted or (name in _NAME_KEYS and kind_of(view) == "string" and _encode(read_text(view)) == wanted)


def _join(members: list[tuple[str, bytes | memoryview]]) -> bytes:
    parts: list[bytes | memoryview] = []
    for key, view in members:
        parts += (b",", _encode(key), b":", view)
    return b"{" + b"".join(parts[1:]) + b"}"
