"""What llama-server says about a JSON schema that it cannot turn into a grammar.

After the conversion of llama.cpp (common/json-schema-to-grammar.cpp), of which only the errors matter here: values that
no schema may be, types that it does not know, references that lead nowhere, patterns without ^ and $.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ollama_simulator.api.patterns import Pattern
from ollama_simulator.gojson import json_text

_PLAIN = ("boolean", "number", "decimal-part", "integral-part", "integer", "char", "string", "null")
_TYPES = frozenset((*_PLAIN, "value", "object", "array", "uuid"))
_FORMATS = ("date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5")


class _WrongType(Exception):
    """A value of a type that nlohmann::json refuses to convert."""

    def __init__(self, wanted: str, found: Any) -> None:
        super().__init__(f"[json.exception.type_error.302] type must be {wanted}, but is {_kind(found)}")


class SchemaCrash(Exception):
    """A schema that kills the runner."""


def schema_error(schema: Any) -> str:
    """Return llama-server's response to a request with this schema, "" if it accepts the schema. Raises SchemaCrash."""
    errors: list[str] = []
    try:
        refs = _Refs(schema, errors)
        refs.visit(schema)
        is_refused = _Visit(refs, errors).schema(schema)
    except _WrongType as error:
        return invalid_request(f"Field 'json_schema': \"json_schema\": {error}")
    except RecursionError:
        return ""
    if errors:
        text = "\n".join(["JSON schema conversion failed:", *errors])
        return invalid_request(f"Field 'json_schema': \"json_schema\": {text}")
    return invalid_request("Failed to initialize samplers: failed to parse grammar") if is_refused else ""


def is_dead(schema: Any) -> bool:
    """Whether the grammar of a schema begins with nothing: integers of an empty range."""
    if not isinstance(schema, dict) or schema.get("type") != "integer":
        return False
    least, most = _bound(schema, "minimum", "exclusiveMinimum", 1), _bound(schema, "maximum", "exclusiveMaximum", -1)
    return least is not None and most is not None and least > most


def _bound(schema: dict[str, Any], key: str, exclusive: str, step: int) -> int | None:
    if key in schema:
        return int(schema[key])
    return int(schema[exclusive]) + step if exclusive in schema else None


def invalid_request(message: str) -> str:
    """Return llama-server's response to a request that it refuses."""
    return json_text({"error": {"code": 400, "message": message, "type": "invalid_request_error"}})


def _shown(schema: Any) -> str:
    """Return JSON as nlohmann::json prints it: integers beyond 64 bits are floats."""
    return json_text(_with_floats(schema))


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    is_large = isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return float(value) if is_large else value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {dict: "object", list: "array", str: "string", type(None): "null"}.get(type(value), "number")


class _Refs:
    """Follows each `$ref` of a schema once; `targets` are what they lead to."""

    def __init__(self, root: Any, errors: list[str]) -> None:
        self._root, self._errors = root, errors
        self.targets: dict[str, Any] = {}

    def visit(self, value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                self.visit(item)
        elif isinstance(value, dict) and "$ref" in value:
            self._follow(_text(value["$ref"]))
        elif isinstance(value, dict):
            for item in value.values():
                self.visit(item)

    def _follow(self, ref: str) -> None:
        if ref in self.targets:
            return
        is_web = ref.startswith("https://")  # which is not fetched: it leads to null
        _, _, fragment = ref.partition("#")
        if is_web and not fragment:
            self.targets[ref] = None
            return
        if not is_web and not ref.startswith("#/"):
            self._errors.append(f"Unsupported ref: {ref}")
            return
        target = None if is_web else self._root
        for part in fragment.split("/")[1:]:
            if isinstance(target, dict) and part in target:
                target = target[part]
            elif isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                target = target[int(part)]
            else:
                self._errors.append(f"Error resolving ref {ref}: {part} not in {_shown(target)}")
                return
        self.targets[ref] = target


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongType("string", value)
    return value


class _Visit:
    """Collects the errors of a schema and of its parts. What a method returns tells whether the parser will refuse the
    grammar: one without alternatives, one that leads to itself, or what is left of a pattern."""

    def __init__(self, refs: _Refs, errors: list[str]) -> None:
        self._refs, self._errors = refs, errors
        self._open: list[str] = []

    def schema(self, schema: Any) -> bool:
        """Visit one schema."""
        own = schema if isinstance(schema, dict) else {}
        kind = own.get("type")
        if "format" in own:
            _text(own["format"])
        if "$ref" in own:
            return self._reference(own["$ref"])
        if "oneOf" in own or "anyOf" in own:
            choices = own["oneOf"] if "oneOf" in own else own["anyOf"]
            if not isinstance(choices, list):
                raise _WrongType("array", choices)
            return self._any(choices) or not choices
        if isinstance(kind, list):
            return self._any([{**own, "type": one} for one in kind]) or not kind
        return False if "const" in own or "enum" in own else self._parts(schema, own, kind)

    def _reference(self, ref: Any) -> bool:
        """Visit what a reference leads to; one that leads to itself alone is left recursion."""
        target = self._refs.targets.get(ref)
        if ref in self._open:
            return isinstance(target, dict) and "$ref" in target
        self._open.append(ref)
        is_refused = self.schema(target) if ref in self._refs.targets else False
        self._open.pop()
        return is_refused

    def _parts(self, schema: Any, own: dict[str, Any], kind: Any) -> bool:
        is_object, is_array, is_string = (kind in (None, name) for name in ("object", "array", "string"))
        if is_object and ("properties" in own or own.get("additionalProperties", True) is not True):
            more = own.get("additionalProperties")
            return self._any([*_items(own.get("properties", {})), *([more] if isinstance(more, dict) else [])])
        if (is_object or kind == "string") and "allOf" in own:
            return self._any([item for part in _items(own["allOf"]) for item in self._component(part)])
        if is_array and ("items" in own or "prefixItems" in own):
            items = own.get("items", own.get("prefixItems"))
            is_refused = self._any(items if isinstance(items, list) else [items])
            if not isinstance(items, list):
                _check_numbers(own, "minItems")
            return is_refused
        if is_string and "pattern" in own:
            return self._pattern(Pattern(_text(own["pattern"])))
        self._plain(schema, own, kind)
        return False

    def _plain(self, schema: Any, own: dict[str, Any], kind: Any) -> None:
        if kind == "string" and own.get("format") not in _FORMATS:
            _check_numbers(own, "minLength", "maxLength")
        elif kind == "integer":
            _check_numbers(own, "minimum" if "minimum" in own else "exclusiveMinimum")
            _check_numbers(own, "maximum" if "maximum" in own else "exclusiveMaximum")
        elif schema not in ({}, [], None) and not _is_known(kind) and not (kind is None and isinstance(schema, dict)):
            self._errors.append(f"Unrecognized schema: {_shown(schema)}")

    def _pattern(self, pattern: Pattern) -> bool:
        if pattern.is_fatal:
            raise SchemaCrash
        self._errors += pattern.errors
        return pattern.is_refused

    def _component(self, part: Any) -> list[Any]:
        """Return the properties that a part of `allOf` contributes."""
        if not isinstance(part, dict):
            return []
        if isinstance(part.get("anyOf"), list):
            return [item for one in part["anyOf"] for item in self._component(one)]
        if "$ref" in part:
            target = self._refs.targets.get(part["$ref"])
            return [] if target is part else self._component(target)
        return _items(part.get("properties", {}))

    def _any(self, schemas: Sequence[Any]) -> bool:
        found = [self.schema(item) for item in schemas]  # each is visited, for its errors
        return any(found)


def _check_numbers(own: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key in own and not isinstance(own[key], int | float):
            raise _WrongType("number", own[key])


def _is_known(kind: Any) -> bool:
    return isinstance(kind, str) and kind in _TYPES


def _items(value: Any) -> list[Any]:
    """Return the values that iterating over a JSON value yields; a plain value yields itself."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [] if value is None else [value]
