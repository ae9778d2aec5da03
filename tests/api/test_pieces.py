"""Lines and events of a stream that arrive together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.pieces import changed_where, split_events
from router.api.streams import ENDING_BYTES, stream_of
from router.core.ollama.routes import ROUTES

WORD = b"w"
SMALL_PIECES = st.lists(st.sampled_from([b"", b"a", b"w", b"awa"]), max_size=40)


@pytest.mark.parametrize("separator", [b"\n", b"\n\n"])
@given(pieces=SMALL_PIECES)
def test_those_with_the_word_are_changed_and_all_others_stay(separator: bytes, pieces: list[bytes]) -> None:
    """As if each was looked at, however many of them have it."""
    whole = separator.join(one for one in pieces if one or separator == b"\n")
    expected = separator.join(b"<%b>" % one if WORD in one else one for one in whole.split(separator))
    assert changed_where(WORD, whole, separator, lambda one: b"<%b>" % one) == expected


def test_of_many_only_those_with_the_word_are_looked_at() -> None:
    """A hundred thousand others cost no call."""
    seen: list[bytes] = []
    whole = b"{}\n" * 100_000 + b"w\n" + b"{}\n" * 100_000

    def change(line: bytes) -> bytes:
        seen.append(line)
        return line.upper()

    assert changed_where(WORD, whole, b"\n", change) == whole.upper()
    assert seen == [b"w"]


def test_events_with_carriage_returns_are_changed_as_well() -> None:
    """Some proxies send them so."""
    whole = b"data: w\r\n\r\ndata: a\r\n\r\n"
    found = changed_where(WORD, whole, b"\n\n", lambda one: one.replace(b"w", b"v"))
    assert found == b"data: v\r\n\r\ndata: a\r\n\r\n"
    assert b"".join(split_events(whole)) == whole


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_after_very_many_events_the_last_ones_say_how_a_stream_has_ended(line_end: bytes) -> None:
    """Also if the last one is larger than what is looked at."""
    route = next(one for one in ROUTES if one.kind == "v1_chat")
    usage = b'data: {"usage":{"prompt_tokens":3,"completion_tokens":5}}'
    for last in (b"data: [DONE]", b"data: [DONE]\n: " + b"x" * 2 * ENDING_BYTES):
        stream = stream_of(b"text/event-stream", route, None)
        assert stream is not None
        stream.feed((2 * line_end).join([*[b"data: {}"] * 50_000, usage, last, b""]))
        assert stream.ending().is_terminated
    stream = stream_of(b"text/event-stream", route, None)
    assert stream is not None
    stream.feed((2 * line_end).join([*[b"data: {}"] * 50_000, usage, b"data: [DONE]", b""]))
    ended = stream.ending()
    assert (ended.tokens_in, ended.tokens_out) == (3, 5)
