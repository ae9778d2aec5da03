"""The scanner beside msgspec: no single step of it takes long."""

import pytest

from router.core.go import json_scan
from router.core.go.json_scan import scan
from router.errors import BadRequest

MOST_BYTES = 32 << 20
"""Of what one match of a regular expression may read: it holds the loop, from whichever thread."""


@pytest.mark.parametrize("part", [b"a", b"\\n", b"\\ud800", b"a\\n"])
def test_a_long_string_takes_several_matches_f8(part: bytes) -> None:
    """And is one value."""
    text = b'["","' + part * (40_000_000 // len(part)) + b'",1]'
    first = json_scan._IN_STRING.match(text, 5)
    assert first is not None
    assert 0 < first.end() < 5_000_000
    assert [len(text[span.start : span.end]) for span in scan(text)] == [2, len(text) - 7, 1]


def test_a_run_of_long_strings_takes_several_matches_f8() -> None:
    """Of lists and of objects."""
    long = b'"' + b"a" * 20_000 + b'"'
    for opener, item in ((b"[", long), (b"{", long + b":" + long)):
        match = json_scan._RUN[opener[0]].match((b"," + item) * (2 * MOST_BYTES // len(item)))
        assert match is not None
        assert match.end() < MOST_BYTES


def test_a_long_string_without_an_end_is_an_error() -> None:
    """As a short one."""
    for text in (b'"' + b"a" * 5_000_000, b'"' + b"\\\\" * 2_000_000):
        with pytest.raises(BadRequest, match="unexpected EOF"):
            scan(text)
