"""The events of a node's stream, however they arrive."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.nodes.form import UnreadableForm
from router.core.nodes.stream import MOST_REST_BYTES, EventReader


def test_only_data_is_read():
    """Comments and other fields keep a stream alive, and say nothing."""
    reader = EventReader()
    text = b": beat\n\nevent: view\nid: 3\ndata: one\n\nretry: 5\n\ndata:two\r\n\r\ndata: a\ndata: b\n\n"
    assert reader.feed(text) == [b"one", b"two", b"a\nb"]


@given(st.lists(st.integers(1, 12), max_size=20))
def test_the_pieces_in_which_it_comes_do_not_matter(sizes):
    """An event is complete at its empty line."""
    text, reader, found, at = b"data: one\n\ndata: two\n\n: c\n\ndata: three\n\n", EventReader(), [], 0
    for size in sizes:
        found += reader.feed(text[at : at + size])
        at += size
    found += reader.feed(text[at:])
    assert found == [b"one", b"two", b"three"]


def test_a_view_that_arrives_byte_by_byte_is_not_copied_again_and_again():
    """What a piece costs is a matter of its own size."""
    reader, peaks = EventReader(), []
    reader.feed(b"data: " + b"x" * (MOST_REST_BYTES - 10_000))
    tracemalloc.start()
    for _ in range(50):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        reader.feed(b"x")
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert sorted(peaks)[25] < 4096


def test_the_end_of_a_comment_is_an_end_too():
    """Who sends nothing else is read no faster for that."""
    reader = EventReader()
    assert [(reader.feed(piece), reader.has_ended) for piece in (b": a\r", b"\n\r", b"\n: b")] == [
        ([], False), ([], False), ([], True),
    ]  # fmt: skip


def test_an_event_without_an_end_is_refused():
    """It would grow without bound."""
    with pytest.raises(UnreadableForm):
        EventReader().feed(b"data: " + b"x" * MOST_REST_BYTES)
