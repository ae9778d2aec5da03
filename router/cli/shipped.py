"""Where the files are that come with the package: example configurations, units of systemd, dashboards and alerts."""

from __future__ import annotations

from pathlib import Path

import router

_PACKAGE = Path(router.__file__).parent


def shipped(name: str = "") -> Path:
    """Return the path of a shipped file or folder: inside an installed wheel, or `config` of a checkout."""
    installed = _PACKAGE / "shipped"
    return (installed if installed.is_dir() else _PACKAGE.parent / "config") / name
