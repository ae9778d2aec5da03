"""The server side is tested through an edge, on the fast path and with tasks."""

from tests.api.conftest import _way

__all__ = ["_way"]
