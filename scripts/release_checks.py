"""What must agree before a release: `release_checks.py TAG CHANGES`, the tag of HEAD and the output of git status."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(tag: str, changes: str, version: str, changelog: str) -> Iterator[str]:
    """Yield one line for each thing that does not agree; nothing where a release may be built."""
    if changes:
        yield "the working tree has changes that are not committed"
    if tag != f"v{version}":
        yield f"HEAD has the tag {tag!r}, but the version is {version}: tag it v{version}"
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD'"
    unreleased = changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
    if unreleased.strip():
        yield "CHANGELOG.md still has entries under [Unreleased]"


def main(tag: str, changes: str) -> int:
    """Print the problems; 1 where there are some."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "router/__init__.py").read_text(), re.MULTILINE)
    found = list(problems(tag, changes, version, (ROOT / "CHANGELOG.md").read_text()))
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
