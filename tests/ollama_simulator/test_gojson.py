"""JSON as a Go server holds it and writes it."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_simulator.gojson import bind, dump, json_text, parse
from router.core.go.types import Map, Scalar, Slice, Struct
from router.errors import BadRequest

STRING = Scalar("string")
THING = Struct(
    "api.Thing",
    fields={
        "model": STRING,
        "on": Scalar("bool"),
        "n": Scalar("int"),
        "options": Map("map[string]interface {}"),
        "parts": Slice("[]api.Part", element=Struct("api.Part", fields={"text": STRING})),
    },
)

VALUES: list[tuple[bytes, Any]] = [
    (b"null", None),
    (b" true", True),
    (b"false", False),
    (b"-0", 0),
    (b"12345678901234567890", 12345678901234567890),
    (b"1.0", 1.0),
    (b"1e3", 1000.0),
    (b'"a\\u00e9\\ud800"', "aé\ufffd"),
    (b'[1,["x"],{}]', [1, ["x"], {}]),
    (b'{"a":1,"a":{"b":null}}', {"a": {"b": None}}),
    (b'{"a":1}{"a":2}', {"a": 1}),
    (b"1 2", 1),
]


@pytest.mark.parametrize(("body", "value"), VALUES)
def test_the_first_value_of_a_body_is_read(body: bytes, value: Any) -> None:
    """As Go's `any`; what follows the value is not read, of duplicate keys the last one wins."""
    found = parse(body)
    assert found == value
    assert type(found) is type(value)


def test_an_integer_beyond_a_float_is_infinite() -> None:
    """A number of any length is read; `float64` holds no more than 309 digits."""
    assert parse(b"[" + b"9" * 400 + b"]") == [float("inf")]


@pytest.mark.parametrize("body", [b"[" * 1200 + b"]" * 1200, b'{"a":' * 1200 + b"1" + b"}" * 1200])
def test_a_value_nested_too_deeply_is_refused(body: bytes) -> None:
    """It is an error of the request, not of the server."""
    with pytest.raises(BadRequest, match="exceeded max depth"):
        parse(body)


BOUND: list[tuple[bytes, dict[str, Any]]] = [
    (b'{"MODEL":"a","unknown":[]}', {"model": "a"}),
    (b'{"model":"a","model":null,"on":null}', {"model": "a"}),
    (b'{"options":{"x":1},"options":{"y":[2.5]}}', {"options": {"x": 1, "y": [2.5]}}),
    (b'{"on":false,"n":0,"parts":[{"text":"x"},{}]}', {"on": False, "n": 0, "parts": [{"text": "x"}, {}]}),
    (b"null", {}),
    (b"{}", {}),
]


@pytest.mark.parametrize(("body", "found"), BOUND)
def test_a_body_is_bound_to_the_fields_it_sets(body: bytes, found: dict[str, Any]) -> None:
    """Under the fields' own spelling, as Python values at every depth; absent fields stay absent."""
    assert bind(body, THING) == found


def test_a_wrong_type_names_the_field() -> None:
    """The first mismatch is reported with its struct and path."""
    with pytest.raises(BadRequest) as caught:
        bind(b'{"parts":[{"text":1}],"on":"x"}', THING)
    assert caught.value.message == "json: cannot unmarshal number into Go struct field Part.parts.text of type string"


def test_html_is_escaped_in_answers() -> None:
    """json.Marshal escapes what could end a script element, and has no short forms for \\b and \\f."""
    assert dump({"a": "<&>é\u2028\b\f"}) == '{"a":"\\u003c\\u0026\\u003eé\\u2028\\u0008\\u000c"}'.encode()


def test_only_what_must_be_is_escaped_in_texts() -> None:
    """Arguments of a tool call are text inside an answer."""
    assert json_text({"a": '<é">'}) == '{"a":"<é\\">"}'
