"""The same body for another model: one canonical `model`, other options; every other value keeps its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from router.core.go.json_keys import LONG_BYTES, NOT_QUICK, Members, fold, kind_of, read_word, split
from router.core.payload.quick import Plain

# Every key under which a route of Ollama takes a model's name. A body that goes upstream holds each at most once.
_NAME_KEYS = ("model", "name", "source", "destination", "from")
_NOTHING: Mapping[str, Any] = {}
Pieces = list[bytes | memoryview]
_encode = msgspec.json.encode
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OLD_NAME = frozenset({"name"})
_LONGEST_CACHED = 64  # characters of a key whose JSON encoding is cached


class Span(NamedTuple):
    """Where the model's name is in a body that is not JSON."""

    start: int
    end: int

    def renamed(self, body: bytes, model: str) -> bytes | Pieces:
        """Return `body` with `model` in that place; the same object if that changes nothing."""
        name, view = model.encode(), memoryview(body)
        if view[self.start : self.end] == name:
            return body
        return _together([view[: self.start], name, view[self.end :]])


class Patch(NamedTuple):
    """What `rewrite` changes in a runner's options, encoded once for all requests to that runner.

    `named` are set in the body's "options", those in `unset` removed; `shift` and `without` are the same for the top
    level. `tail` is `named` as JSON without its braces; `touched` are the keys of both.
    """

    named: dict[str, msgspec.Raw]
    unset: frozenset[str]
    shift: Mapping[str, bytes]
    without: frozenset[str]
    tail: bytes
    touched: frozenset[str]

    @classmethod
    def of(cls, options: Mapping[str, int | bool | None]) -> Patch:
        """Build the patch that gives a body exactly `options`; None removes an option."""
        encoded = {key: _encode(value) for key, value in options.items() if value is not None}
        unset = frozenset(options) - encoded.keys() - {"shift"}
        shift = {"shift": encoded.pop("shift")} if "shift" in encoded else {}
        named = {key: msgspec.Raw(value) for key, value in encoded.items()}
        without = frozenset(("shift",) if "shift" in options and not shift else ())
        return cls(named, unset, shift, without, _encode(named)[1:-1], unset | named.keys())


_NO_PATCH = Patch.of({})


def rewrite(
    body: bytes,
    *,
    model: str,
    options: Mapping[str, int | bool | None] | Patch = _NO_PATCH,
    drop: frozenset[str] = frozenset(),
    force: Mapping[str, Any] = _NOTHING,
    members: Members | Span | None = None,
    plain: Plain | None = None,
) -> bytes | Pieces:
    """Return `body` with `model` under exactly one key; the same object if nothing changes.

    A long one is returned as pieces, which refer to `body`: to copy it would hold the loop.

    `options` are set in the body's "options" (None removes one; "shift" belongs to the top level, as in Ollama); `drop`
    names top-level keys to remove, `force` top-level keys to set. `members` from `InferenceRequest` save a parse, its
    `plain` (only if a keep_alive is to be dropped) saves checking every key. Raise BadRequest for a body that
    `read_request` rejects too.
    """
    patch = options if isinstance(options, Patch) else Patch.of(options)
    if (
        plain is not None
        and patch.tail
        and not (force or patch.shift)
        and patch.touched.isdisjoint(plain.option_values)
    ):
        kept = (plain.options[:-1], b",") if plain.option_values else (b"{",)
        return b"".join((b'{"model":', _encode(model), b',"options":', *kept, patch.tail, b"}", *plain.rest, b"}"))
    if isinstance(members, Span):  # a form carries no options
        return members.renamed(body, model)
    members = split(body) if members is None else members
    merged = _merge_options(members, patch) if patch.touched else None
    wanted = {"model": _encode(model)}
    if force:
        wanted.update((key, _encode(value)) for key, value in force.items())
    if patch.shift:
        wanted.update(patch.shift)
    if merged is not None:
        wanted["options"] = merged
    return _replace(body, members, wanted, drop | patch.without | _OLD_NAME)


def _appended(options: memoryview, patch: Patch) -> bytes:
    """Return `options`, an object with members, with those of `patch` after them."""
    return b"%b,%b}" % (bytes(options[:-1]), patch.tail)


def rewrite_names(body: bytes, names: Mapping[str, str], *, members: Members | None = None) -> bytes | Pieces:
    """Return a management body with exactly these `names`, each under one key; the same object if nothing changes.

    Other keys that hold names are removed (`name` beside `model`).
    """
    members = split(body) if members is None else members
    wanted = {key: _encode(name) for key, name in names.items()}
    return _replace(body, members, wanted, frozenset(_NAME_KEYS) - names.keys())


def _merge_options(members: Members, patch: Patch) -> bytes | None:
    """Return the "options" object with `patch` applied; None if that changes nothing."""
    found: dict[str, msgspec.Raw] = {}
    seen: list[memoryview] = []
    for key, view in members:
        if key == "options" or (len(key) == 7 and fold(key) == "options"):
            seen.append(view)
            if kind_of(view) == "null":
                found = {}
            else:
                found.update(_read_options(view))  # in place: a copy per duplicate would be quadratic
    if len(seen) <= 1 and patch.tail and patch.touched.isdisjoint(found):  # fast path: append them
        return _appended(seen[0], patch) if found else b"{%b}" % patch.tail
    merged = {key: value for key, value in found.items() if key not in patch.unset}
    is_same = len(merged) == len(found) and all(found.get(key) == value for key, value in patch.named.items())
    return None if is_same else _encode(merged | patch.named)


def _read_options(view: memoryview) -> dict[str, msgspec.Raw]:
    """Return the members of an object as Go's map keeps them: the last of duplicates, at the place of the first."""
    try:
        return _OPTIONS.decode(view)
    except NOT_QUICK:
        return {key: msgspec.Raw(item) for key, item in split(view)}


def _replace(body: bytes, members: Members, wanted: Mapping[str, bytes], drop: frozenset[str]) -> bytes | Pieces:
    """Return `members` with the `wanted` keys in front, each once, and without those in `drop`."""
    kept: list[tuple[str, bytes | memoryview]] = []
    same: set[str] = set()
    is_changed = False
    for key, view in members:
        name = key if key in wanted or (key.islower() and key.isascii()) else fold(key)
        if name in drop:
            is_changed = True
        elif name not in wanted:
            kept.append((key, view))
        elif key == name and name not in same and _is_same(name, view, wanted[name]):
            same.add(name)
        else:
            is_changed = True
    if not is_changed and len(same) == len(wanted):
        return body
    return _join([*wanted.items(), *kept])


def _is_same(name: str, view: memoryview, wanted: bytes) -> bool:
    return view == wanted or (name in _NAME_KEYS and kind_of(view) == "string" and _encode(read_word(view)) == wanted)


@lru_cache(maxsize=1024)
def _lead(key: str) -> bytes:
    """Return what precedes the value of a key."""
    return b",%b:" % _encode(key)


def _join(members: list[tuple[str, bytes | memoryview]]) -> bytes | Pieces:
    """Join `members` to an object; their bytes are copied at most once."""
    parts = Pieces()
    for key, view in members:
        parts += (_lead(key) if len(key) <= _LONGEST_CACHED else b",%b:" % _encode(key), view)
    parts[:1] = (b"{", bytes(parts[0])[1:]) if parts else (b"{",)
    parts.append(b"}")
    return _together(parts)


def _together(parts: Pieces) -> bytes | Pieces:
    return b"".join(parts) if sum(map(len, parts)) <= LONG_BYTES else parts
