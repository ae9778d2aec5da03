"""Long texts are read in steps: of each step the bytes are bounded, and the result is the same as in one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.go import json_keys, json_scan, json_volume
from router.core.go.json_keys import elements, parts, read_word, split
from router.core.go.json_scan import MOST_KEY_BYTES, STEP_BYTES, scan, scan_runs
from router.core.go.json_volume import has_more_values
from router.errors import BadRequest

LONG = 1_100_000
WORDS = b'a, b [c] {d}\\n \\u00e9 \\ud800 \\\\\\" '

VALUES = {
    "a text": b'"' + b"word " * (LONG // 5) + b'"',
    "escapes": b'"' + WORDS * (LONG // len(WORDS)) + b'"',
    "backslashes": b'"' + b"\\\\" * (LONG // 2) + b'"',
    "a number": b"1" * LONG,
    "a fraction": b"1." + b"1" * LONG,
    "an exponent": b"1e" + b"0" * LONG + b"1",
    "white space": b"[" + b" \n" * (LONG // 2) + b"]",
    "numbers": b"[" + b"1.5, " * (LONG // 5) + b"1]",
    "objects": b"[" + b'{"role":"user","content":"abc, def"},' * (LONG // 37) + b"{}]",
    "nested": b"[" + b'[[["a"]],{"b":[{}]}],' * (LONG // 42) + b"[]]",
    "one object of all": b"{" + b'"k":{"a":[1,2]},' * (LONG // 16) + b'"z":1}',
    "brackets": b"[" * 9000 + b'"' + b"x" * LONG + b'"' + b"]" * 9000,
}
ENDS = {"whole": b"}", "cut": b"", "a control character": b"\x01"}


class Recorded:
    """A pattern that keeps how many bytes its matches might have read."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.most_bytes = 0

    def match(self, text: bytes, pos: int, end: int) -> re.Match[bytes] | None:
        self.most_bytes = max(self.most_bytes, end - pos)
        return self._pattern.match(text, pos, end)

    def finditer(self, text: bytes, pos: int, end: int) -> Iterator[re.Match[bytes]]:
        self.most_bytes = max(self.most_bytes, end - pos)
        return self._pattern.finditer(text, pos, end)


class Text(bytes):
    """A text that keeps how many bytes are copied or counted at once."""

    most_bytes = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, bytes):
            Text.most_bytes = max(Text.most_bytes, len(found))
        return found


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    found: dict[str, Recorded] = {}
    for module in (json_scan, json_volume):
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and name != "_HEX":
                found[name] = Recorded(value)
                monkeypatch.setattr(module, name, found[name])
    for opener, pattern in json_scan._RUN.items():
        found[chr(opener)] = Recorded(pattern)
        monkeypatch.setitem(json_scan._RUN, opener, found[chr(opener)])
    return found


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("shape", VALUES)
def test_no_step_reads_more_than_its_bytes_f8(patterns: dict[str, Recorded], shape: str, end: str) -> None:
    """Whatever the text is, valid or not."""
    Text.most_bytes = 0
    text = Text(b'{"model":"m","x":' + VALUES[shape] + b" " + ENDS[end])
    has_more_values(text, 100_000)
    try:
        for _ in scan_runs(text):
            pass
    except BadRequest:
        assert end != "whole"
    assert max(one.most_bytes for one in patterns.values()) <= STEP_BYTES
    assert Text.most_bytes <= STEP_BYTES


@pytest.mark.parametrize("shape", VALUES)
def test_the_children_of_a_long_value_are_found_in_steps_f8(patterns: dict[str, Recorded], shape: str) -> None:
    """Each of them, and what is decoded at once is short, unless it is one value."""
    value = VALUES[shape]
    view = memoryview(value)
    if value.startswith(b"["):
        assert list(elements(view)) == [value[span.start : span.end] for span in scan(value)]
        assert all(is_one or len(part) <= json_keys.LONG_BYTES for part, is_one in parts(view))
    elif value.startswith(b"{"):
        with pytest.raises(BadRequest, match="keys"):
            split(view)
    assert all(one.most_bytes <= STEP_BYTES for one in patterns.values())


SEEDS = [
    b'{"model":"m","messages":[{"role":"user","content":"hi \\n \\u00e9"},{"a":1,"b":[1,2,{"c":null}]}],"x":-1.5e+3}',
    b'[1,2.5,-0,1e9,"a\\"b","\\ud800",{"a":"b"},[1,2],[],{},[[1],[2]],{"a":{"b":[1]}},true,false,null,"yyyyyyyyyy"]',
    b'{"a":[[[[[1,[2],{"x":[3]}]]]]], "b" : "\\\\\\"" , "c":10,"d":[true , false],"e":{ } }  {"f":1}',
]
CHANGES = st.lists(st.tuples(st.integers(0, 130), st.sampled_from(list(b'"\\,:[]{}01.eE+- \nutf\x01\xff'))), max_size=3)


def outcome(text: bytes, *, by_runs: bool) -> object:
    """Return the children of a text, or its error."""
    found = list[tuple[bytes, bytes]]()
    try:
        for span in scan_runs(text) if by_runs else scan(text):
            inside = bytes(text[span.start : span.end])
            if span.is_run:
                opener, closer = (b"{", b"}") if text.lstrip().startswith(b"{") else (b"[", b"]")
                whole = opener + inside + closer
                found += [(one.key, whole[one.start : one.end]) for one in scan(whole)]
            else:
                found.append((span.key, inside))
    except BadRequest as error:
        return error.message
    return found


@given(st.sampled_from(SEEDS), CHANGES, st.sampled_from([8, 16, 33, 100]))
def test_where_a_step_ends_changes_nothing(seed: bytes, changes: list[tuple[int, int]], step: int) -> None:
    """Neither the children nor the error, of valid texts and of others."""
    text = bytearray(seed)
    for at, char in changes:
        text[at : at + at % 3] = bytes([char])
    whole = bytes(text)
    expected = outcome(whole, by_runs=False)
    values = [has_more_values(whole + b"1", most) for most in range(0, 40, 3)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (json_scan, json_volume):
            patch.setattr(module, "STEP_BYTES", step)
        patch.setattr(json_scan, "_LONG_BYTES", 2)
        assert outcome(whole, by_runs=False) == expected
        assert outcome(whole, by_runs=True) == expected
        assert [has_more_values(whole + b"1", most) for most in range(0, 40, 3)] == values


def test_of_a_very_long_word_only_the_beginning_is_read_f8() -> None:
    """It is no name and no word that is known; an escape at its end is whole."""
    for char in (b"a", b"\\n", b"\\ud83d", b"\xc3\xa9", b"\\\\"):
        found = read_word(memoryview(b'"' + char * 100_000 + b'"'))
        assert found.endswith("…")
        assert 1000 < len(found) <= MOST_KEY_BYTES
    assert read_word(b'"a"') == "a"
    assert read_word(None) == ""


@pytest.mark.parametrize("start", [b"{", b'{"\\ud800":1,'])
def test_a_key_that_nobody_writes_is_refused_f8(start: bytes) -> None:
    """It would have to be written again."""
    with pytest.raises(BadRequest, match="a key of more than"):
        split(start + b'"' + b"k" * LONG + b'":1}')


def test_long_keys_are_refused_together_f8() -> None:
    """Though none of them is long alone: they are written again on the loop."""
    keys = b",".join(b'"%b%d":1' % (b"k" * 7000, number) for number in range(200))
    with pytest.raises(BadRequest, match="the keys of the request's body"):
        split(b"{" + keys + b"}")
