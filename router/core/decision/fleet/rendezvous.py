"""Rendezvous hashing: everybody who knows the names of the places puts them into the same order for a key.

A place that comes or goes moves only the keys that it wins or has won.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=8192)
def seed_of(text: str) -> int:
    """Return a number that stands for a name."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=7).digest(), "big")


def score(key: int, seed: int) -> int:
    """Return how much a place with this seed wants a key; the highest score wins.

    The hash of a tuple of two numbers does not depend on the process, and takes 0.1 µs.
    """
    return hash((key, seed))


def ordered(key: int, places: Iterable[str]) -> list[str]:
    """Return the places in the order in which they want the key."""
    return sorted(places, key=lambda place: (-score(key, seed_of(place)), place))
