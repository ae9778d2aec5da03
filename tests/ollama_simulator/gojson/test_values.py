"""JSON as Go reads it: the error texts of encoding/json, its duplicates, its case folding."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_simulator.api.schemas import CHAT, go_base64, go_duration_s
from ollama_simulator.gojson.structs import ANY, BOOL, INT, STRING, Map, Slice, Struct, bind
from ollama_simulator.gojson.values import GoError, dump, parse, plain

ERRORS = [
    (b"", "EOF"),
    (b" \n", "EOF"),
    (b"{", "unexpected EOF"),
    (b"x", "invalid character 'x' looking for beginning of value"),
    (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    (b"{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
    (b"\xef\xbb\xbf{}", "invalid character 'ï' looking for beginning of value"),
    (b"[1 2]", "invalid character '2' after array element"),
    (b'{"a" 1}', "invalid character '1' after object key"),
    (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
    (b'{"a":tru}', "invalid character '}' in literal true (expecting 'e')"),
    (b'{"a":"\x01"}', "invalid character '\\x01' in string literal"),
    (b'{"a":"\\q"}', "invalid character 'q' in string escape code"),
    (b'{"a":"\\u12x4"}', "invalid character 'x' in \\u hexadecimal character escape"),
    (b'{"a":1.}', "invalid character '}' after decimal point in numeric literal"),
    (b'{"a":1e}', "invalid character '}' in exponent of numeric literal"),
    (b'{"a":-}', "invalid character '}' in numeric literal"),
    (b"NaN", "invalid character 'N' looking for beginning of value"),
]


@pytest.mark.parametrize(("body", "text"), ERRORS)
def test_malformed_bodies_fail_with_go_s_words(body: bytes, text: str) -> None:
    """Each text is what a real server answered."""
    with pytest.raises(GoError) as caught:
        parse(body)
    assert caught.value.text == text


def test_what_follows_the_value_is_not_read() -> None:
    """Two documents, or garbage behind one, are no error."""
    assert plain(parse(b'{"a":1}{"a":2}')) == {"a": 1}


THING = Struct(
    "api.Thing",
    {"model": STRING, "on": BOOL, "n": INT, "options": Map(ANY), "parts": Slice(Struct("api.Part", {"text": STRING}))},
)
MISMATCHES = [
    (b"[]", "json: cannot unmarshal array into Go value of type api.Thing"),
    (b'{"model":1}', "json: cannot unmarshal number into Go struct field Thing.model of type string"),
    (b'{"n":1.5}', "json: cannot unmarshal number 1.5 into Go struct field Thing.n of type int"),
    (b'{"parts":1}', "json: cannot unmarshal number into Go struct field Thing.parts of type []api.Part"),
    (b'{"parts":[{"text":1}]}', "json: cannot unmarshal number into Go struct field Part.parts.text of type string"),
    (b'{"on":"x","model":1}', "json: cannot unmarshal string into Go struct field Thing.on of type bool"),
]


@pytest.mark.parametrize(("body", "text"), MISMATCHES)
def test_wrong_types_name_the_field(body: bytes, text: str) -> None:
    """The first mismatch is reported with its struct and path."""
    with pytest.raises(GoError) as caught:
        bind(body, THING)
    assert caught.value.text == text


GOOD: list[tuple[bytes, dict[str, Any]]] = [
    (b'{"MODEL":"a","unknown":[]}', {"model": "a"}),
    (b'{"model":"a","model":"b"}', {"model": "b"}),
    (b'{"model":"a","model":null}', {"model": "a"}),
    (b'{"options":{"x":1},"options":{"y":2}}', {"options": {"x": 1, "y": 2}}),
    (b"null", {}),
]


@pytest.mark.parametrize(("body", "found"), GOOD)
def test_keys_fold_and_duplicates_merge(body: bytes, found: dict[str, Any]) -> None:
    """Of duplicate keys the last wins, null leaves a value alone, objects are merged."""
    assert bind(body, THING) == found


def test_html_is_escaped_in_answers() -> None:
    """json.Marshal escapes what could end a script element."""
    assert dump({"a": "<&>é\u2028"}) == '{"a":"\\u003c\\u0026\\u003eé\\u2028"}'.encode()


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("0", 0), ("-1m", -60), (".5s", 0.5), ("1500ms", 1.5)]
)
def test_durations_are_go_s(text: str, seconds: float) -> None:
    """time.ParseDuration."""
    assert go_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("-1", 'time: missing unit in duration "-1"'),
        ("x", 'time: invalid duration "x"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("", 'time: invalid duration ""'),
    ],
)
def test_bad_durations_fail_with_go_s_words(text: str, error: str) -> None:
    """time.ParseDuration's errors."""
    with pytest.raises(GoError) as caught:
        go_duration_s(text)
    assert caught.value.text == error


def test_base64_errors_name_the_byte() -> None:
    """A data URL fails at its colon."""
    with pytest.raises(GoError, match="illegal base64 data at input byte 4"):
        go_base64("data:image/png;base64,AAAA")


def test_a_chat_body_keeps_what_was_sent() -> None:
    """Roles are folded to lower case; absent fields stay absent."""
    found = bind(b'{"model":"m","messages":[{"role":"USER","content":"x"}],"keep_alive":-1}', CHAT)
    assert found["messages"] == [{"role": "user", "content": "x"}]
    assert found["keep_alive"] == float("inf")
    assert "stream" not in found
