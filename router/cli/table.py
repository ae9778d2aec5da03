"""Tables for people and for pipes. A model's name is never cut or broken: it is copied into the next command."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[str]


def print_table(
    console: Console,
    titles: Row,
    rows: Sequence[Row],
    *,
    title: str,
    names: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> None:
    """Print a table on a terminal, tab-separated lines into a pipe.

    The columns with the titles `names` keep each cell on one line, and the others each word. If the terminal is too
    narrow for that, the table has no frame; if it still is, each row is printed as lines. `styles` are rich's styles
    of the rows, if they have any.
    """
    if not console.is_terminal:
        print(title)
        for row in (titles, *rows):
            print("\t".join(plain(cell) for cell in row))
        return
    columns = [tuple(map(plain, cells)) for cells in zip(titles, *rows, strict=True)]
    are_names = [one in names for one in titles]
    print_text(console, title)
    if widths := _widths(columns, are_names, console.width - 3 * len(columns) - 1):
        console.print(_filled(Table(), titles, rows, widths, styles))
    elif widths := _widths(columns, are_names, console.width - 2 * len(columns) + 2):
        console.print(_filled(Table(box=None, padding=(0, 2, 0, 0), pad_edge=False), titles, rows, widths, styles))
    else:
        _print_lines(console, titles, rows, names)


def print_text(console: Console, text: str) -> None:
    """Print a sentence; on a terminal its lines end between words."""
    print(_folded(text, console.width) if console.is_terminal else plain(text))


def _folded(text: str, width: int, indent: str = "") -> str:
    """Return text in lines of at most `width` columns, longer only where a word is."""
    lines = textwrap.wrap(
        plain(text), max(20, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def _widths(columns: Sequence[Row], are_names: Sequence[bool], available: int) -> list[int]:
    """Return the width of each column, [] if they do not fit.

    The widest columns are narrowed first, but none so that a name, or a word of another column, is broken: sentences
    contain names, too.
    """
    least = [_widest(cells if is_name else _words(cells)) for cells, is_name in zip(columns, are_names, strict=True)]
    widths = [_widest(cells) for cells in columns]
    while sum(widths) > available:
        excess, at = max((width - least[at], at) for at, width in enumerate(widths))
        if excess <= 0:
            return []
        widths[at] -= 1
    return widths


def _widest(parts: Row) -> int:
    return max(map(cell_len, parts), default=0)


def _words(cells: Row) -> list[str]:
    return [word for cell in cells for word in cell.split()]


def _filled(table: Table, titles: Row, rows: Sequence[Row], widths: Sequence[int], styles: Sequence[str]) -> Table:
    for one, width in zip(titles, widths, strict=True):
        table.add_column(Text(one), width=width, overflow="fold")
    for at, row in enumerate(rows):
        table.add_row(*(Text(plain(cell)) for cell in row), style=styles[at] if styles else None)
    return table


def _print_lines(console: Console, titles: Row, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Print the first name of each row, or else its first cell, on a line of its own, and the other cells below it.

    A mark, which is a cell without a title, stands in front of the name.
    """
    for row in rows:
        cells = [(one, plain(cell)) for one, cell in zip(titles, row, strict=True) if cell]
        whole = [(one, cell) for one, cell in cells if one in names] or cells[:1]  # so that each row has a heading
        marks = [cell for one, cell in cells if not one and (one, cell) not in whole]
        print(" ".join([*marks, *(cell for _, cell in whole[:1])]))  # not by rich, which would wrap it
        for one, cell in whole[1:]:
            print(f"  {one}: {cell}")
        for one, cell in (cell for cell in cells if cell[0] and cell not in whole):
            print("  " + _folded(f"{one}: {cell}", console.width - 2, indent="    "))


def plain(cell: str) -> str:
    """Return a cell without characters that would move the cursor, or end a line or a column."""
    return "".join(char if char.isprintable() else " " for char in cell)
