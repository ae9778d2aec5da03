"""How the forms between fronts and nodes are read: each field has a type, a range and a bound, and a fault names it.

A form carries `v`, its version. Fields that are not known are left out, so that a newer peer may add some; a form of
another version is not read at all.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

VERSION = 1

Bytes = Annotated[int, Meta(ge=0, le=1 << 53)]
Number = Annotated[int, Meta(ge=0, le=1 << 53)]
Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Name = Annotated[str, Meta(min_length=1, max_length=253, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
"""The name of a node or of a boot."""

Text = Annotated[str, Meta(max_length=1024)]
"""A model name, a digest, a UUID, a version, a reason."""

Short = Annotated[str, Meta(max_length=128)]


class UnreadableForm(ValueError):
    """A form that cannot be used; the text names the field."""


class OtherVersion(UnreadableForm):
    """A form of a version that is not known here."""


class _Versioned(msgspec.Struct):
    v: int


T = TypeVar("T")
_version = msgspec.json.Decoder(_Versioned)


def read(decoder: msgspec.json.Decoder[T], data: bytes, most_bytes: int) -> T:
    """Return the form in `data`. Raises UnreadableForm, or OtherVersion if that is why."""
    if len(data) > most_bytes:
        raise UnreadableForm(f"more than {most_bytes} bytes")
    try:
        version = _version.decode(data).v
        if version != VERSION:
            raise OtherVersion(f"v: {version} is not known here, {VERSION} is")
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableForm(str(error)[:300]) from None
