"""A header of a message as both directions have it."""

from __future__ import annotations

Header = tuple[bytes, bytes]
"""Name in lower case, and value."""
