"""The lists of models as clients see them: with chains added, derived tags hidden, expiries corrected, and without
what the client's team may not use.

Pure. If there is nothing to change, the upstream's bytes are returned unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from io import BytesIO
from typing import Any

import msgspec

from router.api.endings import UNREADABLE
from router.core.go.json_keys import LONG_BYTES, elements
from router.core.ollama.bounded import members
from router.core.ollama.mentions import display_base
from router.core.ollama.names import key_of
from router.core.teams.rights import Permit
from router.errors import BadRequest
from router.routing.directing import Directing, Source
from router.routing.directory import VirtualModel

Row = dict[str, msgspec.Raw]

_encode = msgspec.json.encode
_read_row = msgspec.json.Decoder(Row).decode

ROWS_AT_ONCE = 200
_MOST_TAIL_BYTES = 16


def tags(body: bytes, directory: Directing, permit: Permit) -> bytes:
    """Return `/api/tags` with a row per chain: size, digest and details of its best installed variant."""
    return _listed("tags", body, directory.virtual_models(permit.team), directory.is_hidden, permit)


def models(body: bytes, directory: Directing, permit: Permit) -> bytes:
    """Return `/v1/models` with a row per chain."""
    return _listed("v1_models", body, directory.virtual_models(permit.team), directory.is_hidden, permit)


def running(body: bytes, directory: Source, permit: Permit) -> bytes:
    """Return `/api/ps` with variants' names in place of derived tags, and the expiry that clients requested."""
    found = _rows(body, "models")
    if found is None:
        return body
    outer, listed = found
    rows: list[Row] = []
    is_changed = False
    for row in listed:
        name = _text(row, "name")
        # display_base: also where the model of another router's tag is gone.
        shown, expiry = display_base(directory.display_name(name)), directory.client_expiry(name)
        if not permit.may_see(shown):
            is_changed = True
            continue
        rows.append(row)
        if shown != name:
            row["name"] = row["model"] = _raw(shown)
            is_changed = True
        if expiry is not None:
            row["expires_at"] = _raw(_go_time(expiry))
            is_changed = True
    return _listing(outer, "models", rows, body) if is_changed else body


def merging(
    kind: str, bodies: Sequence[tuple[Source, bytes]], directory: Directing, permit: Permit
) -> Callable[[], bytes]:
    """Return what makes one of the lists of several backends, as `tags`, `models` or `running` shows it.

    A model that several have is listed once. A loaded model is listed for each backend that has it loaded, with the key
    `backend`, which clients ignore. What cannot be read is left out. The work may be done in a thread: what belongs to
    the loop is read here.
    """
    if kind == "ps":
        views = [(source.name, running(body, source, permit)) for source, body in bodies]
        return partial(_merged, kind, views)
    plain, virtual = [(source.name, body) for source, body in bodies], directory.virtual_models(permit.team)
    return lambda: _listed(kind, _merged(kind, plain), virtual, directory.is_hidden, permit)


def _merged(kind: str, views: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the rows of all lists, by the names of their backends, as one list."""
    key, name_key = _KEYS[kind]
    outer: Mapping[str, msgspec.Raw] | None = None
    rows: dict[object, Row] = {}
    for backend, body in views:
        found = _rows(body, key)
        if found is None:
            continue
        outer = outer or found[0]
        for row in found[1]:
            name = _key(_text(row, name_key))
            if kind == "ps":
                rows[backend, name, len(rows)] = {**row, "backend": _raw(backend)}
            else:
                rows.setdefault(name, row)
    if outer is None:
        return views[0][1]
    return _listing(outer, key, list(rows.values()), views[0][1])


def show_of_chain(body: bytes, variant: str) -> bytes:
    """Return `/api/show` of a chain: the body for its variant, with the variant as the parent model."""
    outer = _object(body)
    if outer is None or (details := _object(bytes(outer.get("details", b"")))) is None:
        return body
    details["parent_model"] = _raw(variant)
    return _encode({**outer, "details": details}) + _tail(body)


def model_of(body: bytes, name: str) -> bytes:
    """Return `/v1/models/:model` of a chain: its variant's body under the chain's name."""
    outer = _object(body)
    return body if outer is None or "id" not in outer else _encode({**outer, "id": name}) + _tail(body)


def _listed(
    kind: str, body: bytes, chains: Sequence[VirtualModel], is_hidden: Callable[[str], bool], permit: Permit
) -> bytes:
    (key, name_key), virtual_row = _KEYS[kind], _VIRTUAL_ROWS[kind]
    found = _rows(body, key)
    if found is None:
        return body
    outer, rows = found
    known = [row for row in rows if not is_hidden(_text(row, name_key))]
    by_key = {_key(_text(row, name_key)): row for row in known}  # also what only stands behind a chain's name
    kept = [row for row in known if permit.may_see(_text(row, name_key))]
    added = []
    for virtual in chains:
        variants = [row for name in virtual.variants if (row := by_key.get(_key(name))) is not None]
        if variants and _key(virtual.name) not in by_key and permit.may_see(virtual.name):
            added.append(virtual_row(_tagged(virtual.name), variants, variants[0]))
    if not added and len(kept) == len(rows):
        return body
    return _listing(outer, key, kept + added, body)


def _virtual_tag(name: str, variants: Sequence[Row], best: Row) -> Row:
    """Return the row of a chain with the capabilities common to all variants, any of which may serve."""
    row: Row = {**best, "name": _raw(name), "model": _raw(name)}
    listed = [_strings(variant) for variant in variants]
    if any(listed):
        common = [capability for capability in listed[0] if all(capability in other for other in listed)]
        row["capabilities"] = _raw(common)
    return row


def _virtual_model(name: str, _: Sequence[Row], best: Row) -> Row:
    return {**best, "id": _raw(name)}


def _rows(body: bytes, key: str) -> tuple[Mapping[str, msgspec.Raw], list[Row]] | None:
    outer = _object(body)
    if outer is None or key not in outer:
        return None
    listed = memoryview(outer[key])
    try:
        if bytes(listed[:1]) != b"[":
            return (outer, []) if bytes(listed) == b"null" else None
        return outer, [_read_row(item) for item in elements(listed)]
    except UNREADABLE:
        return None


def _listing(outer: Mapping[str, msgspec.Raw], key: str, rows: Sequence[Row], body: bytes) -> bytes:
    """Return `outer` with `rows` as its list; in steps, so that other threads get their turn."""
    found = BytesIO()
    for name, raw in {**outer, key: None}.items():
        found.write(b"%b%b:" % (b"," if found.tell() else b"{", _encode(name)))
        if name != key:
            found.write(_encode(raw))
            continue
        found.write(b"[")
        for start in range(0, len(rows), ROWS_AT_ONCE):
            found.write((b"," if start else b"") + _encode(rows[start : start + ROWS_AT_ONCE])[1:-1])
        found.write(b"]")
    found.write(b"}" + _tail(body))
    return found.getvalue()


def _object(body: bytes) -> Row | None:
    try:
        if len(body) <= LONG_BYTES:
            return _read_row(body)
        return {name: msgspec.Raw(view) for name, view in members(body).items()}
    except UNREADABLE:
        return None


def _text(row: Row, key: str) -> str:
    try:
        return msgspec.json.decode(row.get(key, b'""'), type=str)
    except UNREADABLE:
        return ""


def _strings(row: Row) -> list[str]:
    try:
        return msgspec.json.decode(row.get("capabilities", b"[]"), type=list[str])
    except UNREADABLE:
        return []


def _key(name: str) -> str:
    try:
        return key_of(name)
    except BadRequest:
        return name


def _tagged(name: str) -> str:
    """Return the name with its tag, as lists show it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


def _tail(body: bytes) -> bytes:
    """Return the line breaks after the value: `/v1/*` has one."""
    end = body[-_MOST_TAIL_BYTES:]
    return end[len(end.rstrip(b"\n")) :]


def _go_time(moment: datetime) -> str:
    """Return a time in RFC 3339 as Go prints it."""
    return moment.isoformat().replace("+00:00", "Z")


_KEYS = {"tags": ("models", "name"), "v1_models": ("data", "id"), "ps": ("models", "name")}
_VIRTUAL_ROWS = {"tags": _virtual_tag, "v1_models": _virtual_model}
