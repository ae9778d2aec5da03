"""What llama-server says about schemas that make no grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_simulator.api.grammar import SchemaCrash, schema_error

FAILED = "Field 'json_schema': \"json_schema\": JSON schema conversion failed:\n"
WRONG = "Field 'json_schema': \"json_schema\": [json.exception.type_error.302] type must be "
REFUSED = "Failed to initialize samplers: failed to parse grammar"


def _pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "zzz"}, FAILED + 'Unrecognized schema: {"type":"zzz"}'),
        ({"type": "<a>"}, FAILED + 'Unrecognized schema: {"type":"<a>"}'),
        ({"type": 10**20}, FAILED + 'Unrecognized schema: {"type":1e+20}'),
        ({"type": "integer", "minimum": "a"}, WRONG + "number, but is string"),
        ({"type": "string", "minLength": None}, WRONG + "number, but is null"),
        ({"items": {"type": "integer"}, "minItems": []}, WRONG + "number, but is array"),
        ({"$ref": "#/a", "a": {"type": "zzz"}}, FAILED + 'Unrecognized schema: {"type":"zzz"}'),
        ({"$ref": "#/a", "a": {"$ref": "#/a"}}, REFUSED),
        ({"$ref": "https://a/b#/c"}, FAILED + "Error resolving ref https://a/b#/c: c not in null"),
        ({"$ref": "http://a/b"}, FAILED + "Unsupported ref: http://a/b"),
        ({"allOf": [{"anyOf": [{"properties": {"a": {"type": "b"}}}]}]}, FAILED + 'Unrecognized schema: {"type":"b"}'),
        ({"anyOf": []}, REFUSED),
        (_pattern("a"), FAILED + "Pattern must start with '^' and end with '$'"),
        (_pattern("^[a$"), FAILED + "Unbalanced square brackets"),
        (_pattern("^a{2,$"), FAILED + "Unbalanced curly brackets"),
        (_pattern("^a{1,2,3}$"), FAILED + "Wrong number of values in curly brackets"),
        (_pattern("^a{x}$"), FAILED + "Invalid number in curly brackets"),
        (_pattern("^\\d+$"), REFUSED),
        (_pattern("^a**$"), REFUSED),
        (_pattern("^a\\$"), REFUSED),
    ],
    ids=str,
)
def test_a_schema_is_refused_in_llama_server_s_words(schema: Any, message: str) -> None:
    """As a real one answered."""
    assert json.loads(schema_error(schema))["error"]["message"] == message


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://a/b"},
        {"$ref": "#/n", "n": {"type": "object", "properties": {"n": {"$ref": "#/n"}}}},
        _pattern("^(a$"),
        _pattern("^a)$"),
        _pattern("^(?=a)b$"),
        _pattern("^a\\.b$"),
        _pattern("^[a-z]{2,3}$"),
        {"type": "integer", "minimum": 1.5},
    ],
    ids=str,
)
def test_an_odd_schema_is_accepted(schema: Any) -> None:
    """As a real llama-server does."""
    assert schema_error(schema) == ""


def test_a_quantifier_of_nothing_kills_the_runner() -> None:
    """A real llama-server crashed."""
    with pytest.raises(SchemaCrash):
        schema_error(_pattern("^*a$"))
