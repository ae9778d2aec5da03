"""A hook of mkdocs: links to files outside `docs` become their paths, because the site does not have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[\w-]+)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the text of a page without links that leave the site."""
    here = (DOCS / page.file.src_uri).parent

    def inside(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        is_page = target.is_relative_to(DOCS) and target.is_file()
        outside = target.relative_to(DOCS.parent) if target.is_relative_to(DOCS.parent) else found[2]
        return found[0] if is_page else f"{found[1]} (`{outside}`)" if found[1] != f"{outside}" else f"`{outside}`"

    return LINK.sub(inside, markdown)
