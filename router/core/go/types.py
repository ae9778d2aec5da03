"""Go's `encoding/json` rules for decoding a value into a struct, with Go's error text for a wrong type.

Keys match in any case and with Unicode folding; the last duplicate wins (objects are merged); null leaves scalars
unchanged; unknown keys are skipped. A value of the wrong type is recorded, decoding goes on, and the first such error
is raised at the end. A type with its own UnmarshalJSON fails at once. Values stay views of the body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from router.core.go.json_keys import KINDS, NOT_QUICK, elements, fold, kind_of, quick_elements, split
from router.core.go.quoting import brief
from router.errors import BadRequest

_INTEGER = re.compile(r"-?[0-9]{1,19}")
INTS: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[int])
# Only the start of an image is checked: enough to detect a data URL or another encoding, and cheap for 20 MB.
_BASE64_HEAD = 256
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\r\n\\]")


MOST_DIGITS = 4096
"""Characters of a number: to read one of millions is a single step that nothing interrupts."""


def as_float(view: memoryview | bytes) -> float:
    """Return a valid JSON number, inf beyond the range. Raise BadRequest for one that nobody writes."""
    if len(view) > MOST_DIGITS:
        raise BadRequest(f"the request's body has a number of more than {MOST_DIGITS} characters")
    return float(bytes(view))


class Mismatch(BadRequest):
    """A value of the wrong type for a field. Go goes on decoding and reports the first one at the end."""

    def __init__(self, found: str, wanted: str, struct: str, path: tuple[str, ...]) -> None:
        place = f"struct field {struct}.{'.'.join(path)}" if struct or path else "value"
        super().__init__(f"json: cannot unmarshal {brief(found)} into Go {place} of type {wanted}")
        self.found, self.wanted, self.path = found, wanted, path


class Place:
    """The position of the decoder (innermost struct, path of fields), and the first error that it recorded."""

    __slots__ = ("error", "path", "struct")

    def __init__(self) -> None:
        self.struct = ""
        self.path: list[str] = []
        self.error: BadRequest | None = None

    def record(self, error: BadRequest) -> None:
        """Keep `error` if it is the first. It is raised when decoding has ended."""
        if self.error is None:
            self.error = error

    def raise_error(self) -> None:
        """Raise the first error, if there is one. It is not kept, because its traceback refers to this object."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    def record_mismatch(self, found: str, wanted: str) -> None:
        """Record a value of the kind `found` where the type `wanted` is expected."""
        self.record(Mismatch(found, wanted, self.struct, tuple(self.path)))


@dataclass(frozen=True, slots=True, eq=False)
class GoType:
    """A Go type; `name` is what Go's errors print. `resets`: null clears the field instead of leaving it unchanged."""

    name: str
    resets: bool = False

    def read(self, view: memoryview, kind: str, place: Place, old: Any) -> Any:
        """Return the value for the field.

        On a mismatch record it and return `old`, the value of an earlier duplicate key.
        """


class Scalar(GoType):
    """string, bool, int, float64, float32: a view of the value, with its type checked."""

    __slots__ = ()

    def read(self, view: memoryview, kind: str, place: Place, old: Any) -> Any:
        if kind == "null":
            return old
        if kind == "number" and self.name not in ("string", "bool"):
            return self._number(view, place, old)
        if kind != self.name:
            place.record_mismatch(kind, self.name)
            return old
        return view

    def _number(self, view: memoryview, place: Place, old: Any) -> Any:
        text = bytes(view[:MOST_DIGITS]).decode()
        if self.name == "int":
            fits = _INTEGER.fullmatch(text) is not None and -(1 << 63) <= int(text) < 1 << 63
        else:
            fits = abs(as_float(view)) < (3.4028235677973366e38 if self.name == "float32" else float("inf"))
        if not fits:
            place.record_mismatch(f"number {text}", self.name)
            return old
        return view


class Anything(GoType):
    """`any` or json.RawMessage: a view of the value."""

    __slots__ = ()

    def read(self, view: memoryview, kind: str, place: Place, _old: Any) -> Any:
        if kind == "number" and self.name == "any" and abs(as_float(view)) == float("inf"):
            place.record_mismatch(f"number {bytes(view).decode()}", "float64")
        return view


_ANYTHING = Anything("any")


class Image(GoType):
    """[]byte: a string in base64, of which only the start is checked."""

    __slots__ = ()

    def read(self, view: memoryview, kind: str, place: Place, _old: Any) -> Any:
        if kind == "null":
            return view
        if kind != "string":
            place.record_mismatch(kind, self.name)
        elif bad := _NOT_BASE64.search(bytes(view[1 : min(len(view) - 1, _BASE64_HEAD)])):
            place.record(BadRequest(f"illegal base64 data at input byte {bad.start()}"))
        return view


def one(_value: Any) -> int:
    """Return 1: what an element counts in a list of which only the length matters."""
    return 1


@dataclass(frozen=True, slots=True, eq=False)
class Slice(GoType):
    """A list of its decoded elements, or with `size_of` the sum of what that returns for each: there may be very many.

    `quick` decodes the common ones at msgspec's speed, and fails for any other.
    """

    element: GoType = _ANYTHING
    resets: bool = True
    quick: msgspec.json.Decoder[list[Any]] | None = None
    size_of: Callable[[Any], int] | None = None

    def read(self, view: memoryview, kind: str, place: Place, old: Any) -> Any:
        if kind != "array":
            place.record_mismatch(kind, self.name)
            return old
        if self.quick is not None:
            try:
                return self._collected(quick_elements(self.quick, view))
            except NOT_QUICK:
                pass
        return self._collected(self.decoded(view, place))

    def _collected(self, found: Iterator[Any]) -> Any:
        return list(found) if self.size_of is None else sum(map(self.size_of, found))

    def decoded(self, view: memoryview, place: Place) -> Iterator[Any]:
        """Yield the elements of a valid JSON array, decoded."""
        element = self.element
        for item in elements(view):
            yield element.read(item, kind_of(item), place, None)


@dataclass(frozen=True, slots=True, eq=False)
class Map(GoType):
    """map[string]T as a dict; a second object adds its keys to the first, in place."""

    value: GoType = _ANYTHING
    resets: bool = True

    def read(self, view: memoryview, kind: str, place: Place, old: Any) -> Any:
        if kind != "object":
            place.record_mismatch(kind, self.name)
            return old
        found: dict[str, Any] = old if old is not None else {}
        for key, item in split(view):
            found[key] = self.value.read(item, kind_of(item), place, None)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Struct(GoType):
    """A dict of the fields that are present, under Go's own spelling of their keys."""

    fields: Mapping[str, GoType] = field(default_factory=dict)

    short_name: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Derive the name for errors: without the package, and empty for an anonymous struct."""
        object.__setattr__(self, "short_name", "" if " " in self.name else self.name.rpartition(".")[2])

    def read(self, view: memoryview, kind: str, place: Place, old: Any) -> Any:
        if kind == "null":
            return old or {}
        if kind != "object":
            place.record_mismatch(kind, self.name)
            return old or {}
        return self.read_members(split(view), place, old if old is not None else {})

    def read_members(
        self, members: list[tuple[str, memoryview]], place: Place, found: dict[str, Any]
    ) -> dict[str, Any]:
        """Decode the members of an object into `found`, and return it."""
        outer, place.struct = place.struct, self.short_name
        fields = self.fields
        for key, view in members:
            name = key if key in fields else fold(key)
            wanted = fields.get(name)
            if wanted is None:
                continue
            kind = KINDS.get(view[0], "number")
            if kind == wanted.name:  # fast path: a string or bool of the right type
                found[name] = view
            elif kind != "null":
                place.path.append(name)
                if (value := wanted.read(view, kind, place, found.get(name))) is not None:
                    found[name] = value
                place.path.pop()
            elif wanted.resets:
                found.pop(name, None)
            elif not isinstance(wanted, Scalar):
                found[name] = wanted.read(view, kind, place, found.get(name))
        place.struct = outer
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Custom(GoType):
    """A type with its own UnmarshalJSON.

    `parse` raises at once; to a Mismatch that it raises, the path to this field is added.
    """

    parse: Callable[[memoryview, str], Any] = lambda view, _kind: view

    def read(self, view: memoryview, kind: str, place: Place, _old: Any) -> Any:
        try:
            return self.parse(view, kind)
        except Mismatch as exc:
            raise Mismatch(exc.found, exc.wanted, place.struct, (*place.path, *exc.path)) from None


def read_alone(wanted: GoType, view: memoryview, kind: str) -> Any:
    """Decode one value by itself. Raise BadRequest for the error that Go's Unmarshal would return."""
    place = Place()
    found = wanted.read(view, kind, place, None)
    place.raise_error()
    return found
