"""The representation of a header, shared by both directions."""

from __future__ import annotations

Header = tuple[bytes, bytes]
"""The name in lower case, and the value."""
