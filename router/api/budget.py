"""One budget for the bodies of all requests: many large ones at once, or ones that stall, must not fill the memory."""

from __future__ import annotations

from router.errors import BodyTooLarge, Busy


class BodyBudget:
    """Counts the bytes of request bodies that are held. Bodies on the fast path are small, and not counted."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def claim(self, size: int, own_bytes: int) -> None:
        """Count `size` further bytes of a body of which `own_bytes` are counted. Raises Busy, or BodyTooLarge."""
        if own_bytes + size > self.limit_bytes:
            raise BodyTooLarge(f"the request's body is larger than {self.limit_bytes} bytes, the most for all bodies")
        if self.held_bytes + size > self.limit_bytes:
            text = f"the bodies of other requests take up the {self.limit_bytes} bytes for all bodies"
            raise Busy(f"server busy, please try again.  {text}")
        self.held_bytes += size

    def release(self, size: int) -> None:
        """Give back `size` bytes."""
        self.held_bytes -= size
