"""The wire to clients is tested through an edge, which takes requests in both ways."""

from tests.api.conftest import _way

__all__ = ["_way"]
