"""How many values a body holds."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.go import json_volume
from router.core.go.json_volume import has_more_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=40,
)


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(count, value.values()))
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@given(VALUES, st.sampled_from([2, 3, 8, json_volume.STEP_BYTES]))
def test_values_are_counted_at_all_depths(value: Any, step_bytes: int) -> None:
    """Exactly, but for an empty container, which counts as one more: it has a bracket and no value. In any steps."""
    text = json.dumps(value).encode()
    exact = count(value)
    empty = text.count(b"[]") + text.count(b"{}")
    with mock.patch.object(json_volume, "STEP_BYTES", step_bytes):
        assert exact == 1 or has_more_values(text, exact - 1)
        assert not has_more_values(text, exact + empty)


@pytest.mark.parametrize("text", [b'["a, b, c', b'["a\\', b'[1, "' + b"x, " * 40])
@pytest.mark.parametrize("step_bytes", [2, 3, 8])
def test_a_string_without_end_holds_no_values(text: bytes, step_bytes: int) -> None:
    """It takes up the rest of the text."""
    with mock.patch.object(json_volume, "STEP_BYTES", step_bytes):
        assert not has_more_values(text, 3)


def test_separators_within_strings_are_no_values() -> None:
    """Prose has many commas; quotes in it are escaped."""
    text = json.dumps({"model": "m", "prompt": 'a, b, "c, [d], {e}" \\' * 1000}).encode()
    assert not has_more_values(text, 3)
    assert has_more_values(text, 2)


def test_an_unfinished_text_is_counted_too() -> None:
    """Whether it is valid is for the parser to say."""
    assert not has_more_values(b'["a, b, c', 3)
    assert not has_more_values(b'["a, b, c\\', 3)
    assert has_more_values(b"[[[[", 3)
