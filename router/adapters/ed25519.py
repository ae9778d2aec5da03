"""Ed25519 by the library cryptography, which is optional: only keys of teams that are SSH public keys need it."""

from __future__ import annotations

import importlib
from functools import cache

from router.core.teams.signature import Verify


@cache
def verifier() -> Verify | None:
    """Return the function that checks signatures; None if the library is not installed, or cannot do it here."""
    try:
        ed25519 = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
        invalid = importlib.import_module("cryptography.exceptions").InvalidSignature
        public_key = ed25519.Ed25519PublicKey.from_public_bytes
    except (ImportError, AttributeError):
        return None

    def verify(raw: bytes, value: bytes, message: bytes) -> bool:
        try:
            public_key(raw).verify(value, message)
        except (invalid, ValueError):
            return False
        return True

    return verify
