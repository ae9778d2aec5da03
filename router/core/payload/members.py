"""From the bytes of a body to the fields of a route's type."""

from __future__ import annotations

from typing import Any

from router.core.go.json_keys import Members, first_kind, split
from router.core.go.json_scan import EndOfBody
from router.core.go.types import Place, Struct
from router.errors import BadRequest


def members_of(body: bytes, *, is_native: bool) -> Members:
    """Return the members of a body, with duplicates. Raise BadRequest with the text of native or `/v1` routes."""
    try:
        return split(body)
    except EndOfBody:
        if is_native:
            raise BadRequest("missing request body") from None
        raise


def decoded(struct: Struct, body: bytes, members: Members) -> dict[str, Any]:
    """Return the fields of `struct` that the `members` of `body` set. Raise BadRequest for the first wrong type."""
    place = Place()
    found: dict[str, Any] = {}
    if members:
        struct.read_members(members, place, found)
    elif (kind := first_kind(body)) not in ("object", "null"):
        place.record_mismatch(kind, struct.name)
    place.raise_error()
    return found
