"""A client's own id of its request, as it is shown again."""

import pytest

from router.api.exchange import echoed


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"abc-1", "abc-1"),
        (b"a\tb\xe4c", "abc"),
        (b"x" * 200, "x" * 128),
        (b"\xff", "-"),
        (b"", "-"),
    ],
)
def test_what_can_be_printed_is_shown_again(sent, shown):
    """A long one is cut; nothing else could be in a log or a header."""
    assert echoed(sent) == shown
