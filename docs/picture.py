"""Draw architecture.svg from the two pictures in architecture.md: `python docs/picture.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, ROW, BOX, GAP = 1000, 36, 26, 8
LEFT, TOP = 40, 34
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b2733}.room{font-weight:600}.title{font-weight:600;font-size:15px}"
    ".says{fill:#56636f}.pure{fill:#dcefe2}.shell{fill:#dfe8f5}.double{fill:#f3e8d4}rect{stroke:#8a97a3}"
    ".line{stroke:#56636f;fill:none}.back{fill:#fff;stroke:none}"
)


def rows(text: str, package: str) -> list[tuple[list[str], str]]:
    """Return the lines of the picture of `package`, top first: the rooms on each, and what they are for."""
    (block,) = re.findall(rf"^```{package}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = (re.split(r"\s{3,}", line.strip(), maxsplit=1) for line in block.splitlines())
    return [([room.strip() for room in rooms.split("·")], says) for rooms, says in lines]


def band(package: str, found: list[tuple[list[str], str]], top: int) -> Iterator[str]:
    """One package: its title, an arrow from top to bottom, and a row of boxes for each line."""
    yield f'<text class="title" x="{LEFT}" y="{top - 12}">{package}</text>'
    end = top + len(found) * ROW - 10
    yield f'<path class="line" d="M18 {top}V{end}m-4 -7l4 7l4 -7"/>'
    for at, (rooms, says) in enumerate(found):
        x, y = LEFT, top + at * ROW
        for room in rooms:
            is_pure = room.startswith("core/") or room == "errors"
            kind = "double" if package == "ollama_simulator" else "pure" if is_pure else "shell"
            width = 22 + 9 * len(room)
            yield f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{BOX}" rx="4"/>'
            yield f'<text class="room" x="{x + 11}" y="{y + 18}">{room}</text>'
            x += width + GAP
        yield f'<text class="says" x="{LEFT + 440}" y="{y + 18}">{escape(says)}</text>'


def picture(text: str) -> str:
    """Return the SVG for the text of architecture.md."""
    router, simulator = rows(text, "router"), rows(text, "ollama_simulator")
    middle = TOP + len(router) * ROW + 36
    height = middle + len(simulator) * ROW + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    title = "<title>The rooms of router and ollama_simulator; imports point down</title>"
    back = f'<rect class="back" width="{WIDTH}" height="{height}"/>'
    bands = (*band("router", router, TOP), *band("ollama_simulator", simulator, middle))
    return "\n".join((head, title, f"<style>{STYLE}</style>", back, *bands, "</svg>", ""))


if __name__ == "__main__":
    (HERE / "architecture.svg").write_text(picture((HERE / "architecture.md").read_text()))
