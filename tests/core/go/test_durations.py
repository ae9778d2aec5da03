"""Go's durations, and the errors of `time.ParseDuration`."""

import pytest

from router.core.go.durations import parse_duration_ns
from router.errors import BadRequest


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("5m", 300 * 10**9),
        ("1h30m", 5400 * 10**9),
        ("0", 0),
        ("-1m", -60 * 10**9),
        ("+.5s", 500 * 10**6),
        ("1500ms", 1500 * 10**6),
        ("3µs", 3000),
        ("-9223372036854775808ns", -(1 << 63)),
    ],
)
def test_a_duration_is_exact_to_the_nanosecond(text, nanoseconds):
    """Integers all the way: a float would lose nanoseconds after 104 days."""
    assert parse_duration_ns(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("-1", 'time: missing unit in duration "-1"'),
        ("x", 'time: invalid duration "x"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("", 'time: invalid duration ""'),
        ("é", 'time: invalid duration "\\xc3\\xa9"'),
        ("9223372036854775808ns", 'time: invalid duration "9223372036854775808ns"'),
    ],
)
def test_an_invalid_duration_fails_with_gos_error(text, error):
    """The error quotes the text like Go's time package."""
    with pytest.raises(BadRequest) as caught:
        parse_duration_ns(text)
    assert caught.value.message == error
