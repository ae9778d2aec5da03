"""Go's decoding of a parsed JSON value into a struct: type errors, null, case-folded keys, merged duplicates.

A `Struct` names its fields as the JSON tags do. Decoding gives a dict with the fields that were sent; what was not
sent is absent, so that "absent" and "zero" stay apart. The first type error is kept while decoding goes on, as in Go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_simulator.gojson.values import GoError, Number, Object, parse, plain


class Mismatch(GoError):
    """json.UnmarshalTypeError: a value of the wrong kind, and where it stood."""

    def __init__(self, value: str, wanted: str, struct: str = "", path: tuple[str, ...] = ()) -> None:
        self.value, self.wanted, self.struct, self.path = value, wanted, struct, path
        where = f"Go struct field {struct}.{'.'.join(path)} of type" if struct or path else "Go value of type"
        super().__init__(f"json: cannot unmarshal {value} into {where} {wanted}")


@dataclass(slots=True)
class _State:
    """Where decoding stands, and the first mismatch."""

    struct: str = ""
    path: tuple[str, ...] = ()
    saved: Mismatch | None = None

    def save(self, value: str, wanted: str) -> None:
        if self.saved is None:
            self.saved = Mismatch(value, wanted, self.struct, self.path)


class GoType:
    """One Go type. This one is `interface {}`: whatever comes."""

    @property
    def title(self) -> str:
        """The type as reflect prints it."""
        return "interface {}"

    def decode(self, value: Any, state: _State, old: Any = None) -> Any:
        """`value` as this type holds it; `old` is what a former duplicate of the key had put there."""
        return plain(value)


@dataclass(frozen=True)
class Scalar(GoType):
    """string, bool, int, float64 and other plain kinds."""

    name: str

    @property
    def title(self) -> str:
        return self.name

    def decode(self, value: Any, state: _State, old: Any = None) -> Any:
        found = kind(value)
        if (self.name == "string" and found == "string") or (self.name == "bool" and found == "bool"):
            return value
        if found == "number" and self.name.startswith("float"):
            return float(value)
        if found == "number" and self.name.startswith("int"):
            if not isinstance(value, Number) and -(1 << 63) <= value < 1 << 63:
                return value
            found = f"number {value.text if isinstance(value, Number) else value}"
        state.save(found, self.name)
        return None


@dataclass(frozen=True)
class Slice(GoType):
    """A list of one element type."""

    element: GoType
    alias: str = ""

    @property
    def title(self) -> str:
        return self.alias or f"[]{self.element.title}"

    def decode(self, value: Any, state: _State, old: Any = None) -> Any:
        if not isinstance(value, list) or isinstance(value, Object):
            state.save(kind(value), self.title)
            return None
        takes_null = isinstance(self.element, Custom) and self.element.takes_null
        return [self.element.decode(item, state) if takes_null or item is not None else None for item in value]


@dataclass(frozen=True)
class Map(GoType):
    """map[string]T; duplicates of the key that holds it are merged."""

    element: GoType

    @property
    def title(self) -> str:
        return f"map[string]{self.element.title}"

    def decode(self, value: Any, state: _State, old: Any = None) -> Any:
        if not isinstance(value, Object):
            state.save(kind(value), self.title)
            return old
        merged = dict(old or {})
        for key, item in value:
            merged[key] = None if item is None else self.element.decode(item, state)
        return merged


@dataclass(frozen=True)
class Struct(GoType):
    """A struct: keys match exactly, else with case folded; unknown keys are skipped; null leaves a field alone."""

    name: str
    fields: Mapping[str, GoType]
    folded: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def title(self) -> str:
        return self.name

    def __post_init__(self) -> None:
        for key in self.fields:
            self.folded.setdefault(fold(key), key)

    def decode(self, value: Any, state: _State, old: Any = None) -> Any:
        if not isinstance(value, Object):
            state.save(kind(value), self.title)
            return old
        result = dict(old or {})
        struct, path = state.struct, state.path
        for key, item in value:
            tag = key if key in self.fields else self.folded.get(fold(key), "")
            if not tag or (item is None and tag in result and not isinstance(self.fields[tag], Custom)):
                if tag and not isinstance(self.fields[tag], Scalar):
                    result[tag] = None
                continue
            state.struct, state.path = self.name.rsplit(".", 1)[-1], (*path, tag)
            result[tag] = None if item is None else self.fields[tag].decode(item, state, result.get(tag))
        state.struct, state.path = struct, path
        return result


@dataclass(frozen=True)
class Custom(GoType):
    """A type with its own UnmarshalJSON: `convert` gets the parsed value and raises GoError.

    `takes_null`: as an element it is no pointer, so that null reaches it too.
    """

    convert: Callable[[Any], Any]
    name: str = ""
    takes_null: bool = False

    @property
    def title(self) -> str:
        return self.name

    def decode(self, value: Any, state: _State, old: Any = None) -> Any:
        try:
            return self.convert(value)
        except Mismatch as error:
            raise Mismatch(
                error.value, error.wanted, state.struct or error.struct, (*state.path, *error.path)
            ) from None


ANY = GoType()
STRING, BOOL, INT, FLOAT = Scalar("string"), Scalar("bool"), Scalar("int"), Scalar("float64")


def kind(value: Any) -> str:
    """The word that Go's messages use for a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "object" if isinstance(value, Object | dict) else "array"


def fold(key: str) -> str:
    """The key with its case folded, rune by rune, as Go compares field names."""
    return "".join(folded if len(folded := char.casefold()) == 1 else char for char in key)


def convert(value: Any, wanted: GoType) -> Any:
    """`value` decoded into `wanted`; null gives None. Raises GoError with the first error."""
    if value is None:
        return None
    state = _State()
    result = wanted.decode(value, state)
    if state.saved is not None:
        raise state.saved
    return result


def bind(body: bytes, wanted: GoType) -> dict[str, Any]:
    """A request body as its struct, like gin's ShouldBindJSON; a body of `null` is an empty struct."""
    result = convert(parse(body), wanted)
    return result if isinstance(result, dict) else {}
