"""Tables: names stay whole at any width, and nothing that an upstream says is taken for a command."""

from __future__ import annotations

import pytest
from rich.console import Console

from router.cli.table import print_table

LONG = "hf.co/unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF:UD-Q4_K_XL"
ROWS = [
    (">", LONG, "262144", "43.4 GiB", "24.0 GiB", "too big", "19.4 GiB short, " * 4),
    ("", "m", "", "", "", "fits", ""),
]
TITLES = ("", "variant", "num_ctx", "needs", "has", "verdict", "why")


def printed(capsys: pytest.CaptureFixture[str], width: int, rows=ROWS, *, is_terminal: bool = True) -> str:
    """Return what is printed at a width."""
    console = Console(width=width, force_terminal=is_terminal, color_system=None)
    print_table(console, TITLES, rows, title="things", names=("variant",))
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 80, 100, 120, 200])
def test_a_name_is_never_cut_or_broken(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Too narrow a terminal gets a row as lines."""
    text = printed(capsys, width)
    assert LONG in text
    assert ("┃" in text) is (width >= 120)
    assert ("\n> " + LONG in text) is (width < 100)  # the mark stands beside the name
    assert "┃" not in text or max(map(len, text.splitlines())) <= width


def test_short_names_are_a_table_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn by Rich; the other columns wrap."""
    rows = [(">", "llama3.3:70b-instruct-q4_K_M", "8192", "43.4 GiB", "24.0 GiB", "too big", "19.4 GiB short")]
    text = printed(capsys, 80, rows)
    assert "llama3.3:70b-instruct-q4_K_M" in text
    assert "┃" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_table_that_is_a_little_too_wide_has_no_frame(capsys: pytest.CaptureFixture[str]) -> None:
    """What `explain` prints of a chain with a resident variant at 80 columns stays a table."""
    rows = [("", "llama3.3:70b-instruct-q4_K_M", "8192", "43.6 GiB", "24.0 GiB", "too big", "19.6 GiB short")]
    text = printed(capsys, 80, [*rows, (">", "llama3.1:8b-instruct-fp16", "32768", "", "", "resident", "loaded")])
    assert "┃" not in text
    assert ">  llama3.1:8b-instruct-fp16     32768 " in text
    assert max(map(len, text.splitlines())) <= 80


def test_markup_and_control_characters_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Also in a pipe, where a tab would be a column."""
    rows = [("", "a[bold]b", "x\ty", "\x1b[31m", "", "[/]", "l\nm")]
    for is_terminal in (True, False):
        text = printed(capsys, 120, rows, is_terminal=is_terminal)
        assert "a[bold]b" in text
        assert "[/]" in text
        assert "\x1b[31m" not in text
    assert text.splitlines()[2].count("\t") == 6


def test_a_pipe_gets_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    """Title, titles, rows."""
    assert printed(capsys, 20, is_terminal=False).splitlines()[1:3] == ["\t".join(TITLES), "\t".join(ROWS[0])]
