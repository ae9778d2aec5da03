"""Values made for a schema."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ollama_simulator.models import tokens
from ollama_simulator.models.library import tiny_library
from ollama_simulator.models.specimen import specimen
from ollama_simulator.models.speech import Ask, speak

WEIGHTS = tiny_library().models["registry.ollama.ai/library/tiny-plain:latest"].weights
CASES: list[tuple[Any, Any]] = [
    ({"const": {"a": [1]}}, {"a": [1]}),
    ({"enum": ["x", "y"]}, "x"),
    ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
    ({"type": ["boolean", "null"]}, True),
    ({"type": "integer", "minimum": 5, "maximum": 9}, 5),
    ({"type": "integer", "exclusiveMaximum": 0}, -1),
    ({"type": "string", "minLength": 7}, "Paris.."),
    ({"type": "string", "maxLength": 2}, "Pa"),
    ({"type": "array", "minItems": 2, "items": {"type": "boolean"}}, [True, True]),
    ({"prefixItems": [{"type": "integer"}, {"type": "null"}]}, [1, None]),
    ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"$ref": "#/d"}], "d": {"properties": {"b": {}}}}, None),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"x": {"type": "boolean"}}}}}, {"x": True}),
    ({"type": "string", "pattern": "("}, "Paris"),
    ("json", {}),
    ({}, {}),
]


@pytest.mark.parametrize(("schema", "value"), CASES, ids=lambda case: json.dumps(case)[:60])
def test_a_value_satisfies_its_schema(schema: Any, value: Any) -> None:
    """Each keyword that llama.cpp's grammars know."""
    made = specimen(schema)
    assert made == value if "allOf" not in schema else list(made) == ["a", "b"]


@pytest.mark.parametrize("pattern", ["^[a-f]{3}-\\d+$", "^(ab|cd)x?$", "^.y$"])
def test_a_text_matches_its_pattern(pattern: str) -> None:
    """Classes, counts, alternatives."""
    assert re.match(pattern, specimen({"type": "string", "pattern": pattern}))


def test_a_schema_that_refers_to_itself_has_a_value_all_the_same() -> None:
    """It ends at some depth."""
    assert specimen({"$ref": "#/n", "n": {"type": "object", "properties": {"n": {"$ref": "#/n"}}}})


def test_a_scripted_model_speaks_the_value_in_its_own_tokens() -> None:
    """Under a grammar it cannot follow its script; the pieces are those of its vocabulary."""
    schema = {"type": "object", "properties": {"city": {"const": "é"}}}
    pieces = list(speak(WEIGHTS, Ask("hi", [1], format=schema)))
    text = '{"city":"é"}'
    known = tokens.vocabulary(WEIGHTS)
    assert known is not None and "".join(pieces) == text and len(pieces) == len(known.encode(text))
