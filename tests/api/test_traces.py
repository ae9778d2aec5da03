"""The trace id of `traceparent`, by the rules of W3C Trace Context."""

from __future__ import annotations

import pytest

from router.api.traces import trace_id_of

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GOOD = f"00-{ID}-{PARENT}-01"


def read(*values: str) -> str:
    headers = [(b"host", b"x"), *((b"traceparent", value.encode("latin-1")) for value in values)]
    return trace_id_of(headers, dict(headers))


@pytest.mark.parametrize("value", [GOOD, f" {GOOD}\t", f"00-{ID}-{PARENT}-00", f"cc-{ID}-{PARENT}-01",
                                   f"cc-{ID}-{PARENT}-01-what-the-future-brings"])  # fmt: skip
def test_a_valid_header_has_its_trace_id(value: str) -> None:
    """A later version may have more behind the fields of version 00."""
    assert read(value) == ID


@pytest.mark.parametrize(
    "value",
    [
        "", "00", ID, GOOD.upper(), f"ff-{ID}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[1:]}-{PARENT}-01", f"00-{ID}0-{PARENT}-01", f"00-{ID}-{PARENT}-1", f"{GOOD}-more", f"cc{GOOD[2:]}.",
        f"00-{ID[:-1]}g-{PARENT}-01", f"{GOOD},{GOOD}", "x" * 10_000,
    ],
)  # fmt: skip
def test_an_invalid_header_is_ignored(value: str) -> None:
    assert read(value) == ""


def test_two_headers_are_none() -> None:
    assert (read(GOOD, GOOD), read()) == ("", "")
