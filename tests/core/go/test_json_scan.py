"""The scanner beside msgspec: no single step of it takes long."""

import pytest

from router.core.go.json_scan import scan
from router.errors import BadRequest


@pytest.mark.parametrize("part", [b"a", b"\\n", b"\\ud800", b"a\\n"])
def test_a_long_string_is_one_value_f8(part: bytes) -> None:
    """However many steps it takes."""
    text = b'["","' + part * (4_000_000 // len(part)) + b'",1]'
    assert [len(text[span.start : span.end]) for span in scan(text)] == [2, len(text) - 7, 1]


def test_a_long_string_without_an_end_is_an_error() -> None:
    """As a short one."""
    for text in (b'"' + b"a" * 5_000_000, b'"' + b"\\\\" * 2_000_000):
        with pytest.raises(BadRequest, match="unexpected EOF"):
            scan(text)
