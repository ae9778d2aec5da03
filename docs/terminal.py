"""Draw terminal.svg, a picture of the demo in a terminal, from a real run: `python docs/terminal.py`."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import sys
from fcntl import ioctl
from pathlib import Path
from subprocess import Popen
from termios import TIOCSWINSZ

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, ROWS = 100, 60
COMMAND = "scripts/demo --once"
FRAME = re.sub(r"\s*@font-face \{.*?\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's drawing without the fonts that it would load from elsewhere."""


def output_of(argv: list[str]) -> str:
    """Run a program in a terminal of `COLUMNS` columns; return what it wrote."""
    ours, its = pty.openpty()
    ioctl(its, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(HERE.parent)}
    with Popen(argv, stdin=its, stdout=its, stderr=its, env=env) as process:
        os.close(its)
        parts = []
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # the program has ended
            pass
        if process.wait():
            raise SystemExit(f"{argv} failed: {b''.join(parts).decode()}")
    os.close(ours)
    return b"".join(parts).decode()


def screen(text: str) -> str:
    """Return the lines that stay, with their colours: what a program wrote and erased again is left out."""
    lines, at = [""], 0
    for piece in re.split(r"(\r?\n|\r|\x1b\[[0-9;?]*[A-Za-z])", text):
        if piece.endswith("\n"):
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif piece == "\x1b[2K":
            lines[at] = ""
        elif re.fullmatch(r"\x1b\[\d*A", piece):
            at -= int(piece[2:-1] or 1)
        elif piece != "\r" and (not piece.startswith("\x1b[") or piece.endswith("m")):
            lines[at] += piece
    return "\n".join(lines).rstrip()


def without_table(text: str) -> str:
    """Leave out the table, which repeats the sentences above it and is too wide for a page."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if "on a virtual" in line)
    return "\n".join([*lines[:start], "…", lines[-1]])


def drawing(text: str, title: str) -> str:
    """Return the text as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(f"$ {title}\n{without_table(screen(text))}"), soft_wrap=True)
    return console.export_svg(title=title, code_format=FRAME, unique_id="terminal")


if __name__ == "__main__":
    picture = drawing(output_of([sys.executable, "-m", "router", "demo", "--once"]), COMMAND)
    (HERE / "terminal.svg").write_text(picture)
