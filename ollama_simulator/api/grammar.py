"""What llama-server says about a JSON schema that it cannot turn into a grammar.

After the conversion of llama.cpp (common/json-schema-to-grammar.cpp), of which only the errors matter here: values that
no schema may be, types that it does not know, references that lead nowhere, patterns without ^ and $.
"""

from __future__ import annotations

from typing import Any

from ollama_simulator.gojson import dump, json_text

_PLAIN = ("boolean", "number", "decimal-part", "integral-part", "integer", "char", "string", "null")
_TYPES = frozenset((*_PLAIN, "value", "object", "array", "uuid"))


class _WrongType(Exception):
    """A value of a type that nlohmann::json refuses to convert."""

    def __init__(self, wanted: str, found: Any) -> None:
        super().__init__(f"[json.exception.type_error.302] type must be {wanted}, but is {_kind(found)}")


def schema_error(schema: Any) -> str:
    """Return llama-server's response to a request with this schema, "" if it accepts the schema."""
    errors: list[str] = []
    try:
        _Refs(schema, errors).visit(schema)
        is_empty = _visit(schema, errors)
    except _WrongType as error:
        return _response(f"Field 'json_schema': \"json_schema\": {error}")
    except RecursionError:
        return ""
    if errors:
        text = "\n".join(["JSON schema conversion failed:", *errors])
        return _response(f"Field 'json_schema': \"json_schema\": {text}")
    return _response("Failed to initialize samplers: failed to parse grammar") if is_empty else ""


def _response(message: str) -> str:
    return dump({"error": {"code": 400, "message": message, "type": "invalid_request_error"}}).decode()


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {dict: "object", list: "array", str: "string", type(None): "null"}.get(type(value), "number")


class _Refs:
    """Follows each `$ref` of a schema once."""

    def __init__(self, root: Any, errors: list[str]) -> None:
        self._root, self._errors = root, errors
        self._known: set[str] = set()

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
        if ref in self._known:
            return
        if not ref.startswith("#/"):
            self._errors.append(f"Unsupported ref: {ref}")
            return
        target = self._root
        for part in ref[1:].split("/")[1:]:
            if isinstance(target, dict) and part in target:
                target = target[part]
            elif isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                target = target[int(part)]
            else:
                self._errors.append(f"Error resolving ref {ref}: {part} not in {json_text(target)}")
                return
        self._known.add(ref)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongType("string", value)
    return value


def _visit(schema: Any, errors: list[str]) -> bool:
    """Collect the errors of one schema. True if its grammar has no alternative, which the parser then refuses."""
    own = schema if isinstance(schema, dict) else {}
    kind = own.get("type")
    if "format" in own:
        _text(own["format"])
    if "$ref" in own:
        return False
    if "oneOf" in own or "anyOf" in own:
        choices = own["oneOf"] if "oneOf" in own else own["anyOf"]
        if not isinstance(choices, list):
            raise _WrongType("array", choices)
        return not [_visit(choice, errors) for choice in choices]
    if isinstance(kind, list):
        return not [_visit({**own, "type": one}, errors) for one in kind]
    if "const" in own or "enum" in own:
        return False
    _visit_parts(schema, own, kind, errors)
    return False


def _visit_parts(schema: Any, own: dict[str, Any], kind: Any, errors: list[str]) -> None:
    is_object, is_array, is_string = (kind in (None, name) for name in ("object", "array", "string"))
    if is_object and ("properties" in own or own.get("additionalProperties", True) is not True):
        _visit_all(own.get("properties", {}), errors)
        if isinstance(own.get("additionalProperties"), dict):
            _visit(own["additionalProperties"], errors)
    elif (is_object or kind == "string") and "allOf" in own:
        for part in _items(own["allOf"]):
            _visit_all(part.get("properties", {}) if isinstance(part, dict) else {}, errors)
    elif is_array and ("items" in own or "prefixItems" in own):
        items = own.get("items", own.get("prefixItems"))
        for item in items if isinstance(items, list) else [items]:
            _visit(item, errors)
    elif is_string and "pattern" in own:
        pattern = _text(own["pattern"])
        if not (pattern.startswith("^") and pattern.endswith("$")):
            errors.append("Pattern must start with '^' and end with '$'")
    elif schema not in ({}, [], None) and not _is_known(kind) and not (kind is None and isinstance(schema, dict)):
        errors.append(f"Unrecognized schema: {json_text(schema)}")


def _is_known(kind: Any) -> bool:
    return isinstance(kind, str) and kind in _TYPES


def _items(value: Any) -> list[Any]:
    """Return the values that iterating over a JSON value yields; a plain value yields itself."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [] if value is None else [value]


def _visit_all(value: Any, errors: list[str]) -> None:
    for item in _items(value):
        _visit(item, errors)
