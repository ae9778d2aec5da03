"""The first JSON value of a body: where it ends, and Go's error if there is none."""

import pytest

from router.core.go import json_keys
from router.core.go.json_keys import first_value
from router.core.go.json_scan import EndOfBody
from router.errors import BadRequest

ERRORS = [
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
def test_a_malformed_value_is_refused_with_gos_error(body, text):
    """Each text is the answer of a real server."""
    with pytest.raises(BadRequest) as caught:
        first_value(body)
    assert caught.value.message == text


@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
def test_white_space_is_the_end_of_the_body(body):
    """Routes have their own texts for a body without a value."""
    with pytest.raises(EndOfBody):
        first_value(body)


DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b' {"a": 1} ', b'{"a": 1}'),
        (b'{"a":1}{"a":2}', b'{"a":1}'),
        (b"\n12 garbage", b"12"),
        (b' "\\ud800" x', b'"\\ud800"'),
        (b' "a\xff" x', b'"a\xff"'),
        (b" " + DEEP + b"x", DEEP),
    ],
)
def test_the_first_value_ends_where_gos_decoder_stops(body, value):
    """White space and trailing characters are left out, on the fast path and on the slow path."""
    assert bytes(first_value(body)) == value


@pytest.mark.parametrize("text", ["[%s1]" % ("1," * 300), '"%s"' % ("x" * 600)])
def test_a_long_value_that_is_no_object_has_no_members(monkeypatch, text):
    """Like a short one; all of it must be valid."""
    monkeypatch.setattr(json_keys, "LONG_BYTES", 200)
    monkeypatch.setattr(json_keys, "MOST_KEYS", 100)
    assert json_keys.split(text.encode()) == []
    with pytest.raises(BadRequest, match="unexpected EOF"):
        json_keys.split(text[:-1].encode())
