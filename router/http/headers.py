"""The representation of a header, shared by both directions."""

from __future__ import annotations

from collections.abc import Sequence

Header = tuple[bytes, bytes]
"""The name in lower case, and the value."""


def header_lines(headers: Sequence[Header]) -> bytes:
    """Return headers rendered as lines. Raises ValueError for one that contains a line break or a NUL."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    # One check over all of it instead of one per header: a value must not add a line (response splitting).
    if not lines.count(b"\r") == lines.count(b"\n") == len(headers) or b"\x00" in lines:
        raise ValueError("a header holds a line break or a NUL")
    return lines
