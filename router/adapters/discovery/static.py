"""Nodes that are listed in the configuration."""

from __future__ import annotations

from collections.abc import Sequence

from router.adapters.discovery.found import Tell, bounded


class StaticNodes:
    """The nodes at these URLs."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls

    async def watch(self, tell: Tell) -> None:
        """Tell them once."""
        tell(bounded({url: url for url in self._urls}))
