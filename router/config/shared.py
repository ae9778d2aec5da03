"""The section `shared`: where several routers count the limits of teams together."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, WithJsonSchema

from router.config.paths import FileName
from router.config.section import Section
from router.config.values import AtLeastOne, Positive, allowed

_ALLOWED = (
    'a URL such as "valkey://HOST:6379/0", "valkeys://HOST:6379/0" (TLS) or "unix:///run/valkey.sock", without user '
    "name, password or query"
)
_SCHEMES = ("valkey", "valkeys", "redis", "rediss")
_PLACE = re.compile(r"[A-Za-z0-9._\-\[\]:%]+", re.ASCII)
_DATABASE = re.compile(r"/?|/\d{1,4}", re.ASCII)


def parse_store(value: object) -> str:
    """Parse the URL of a Valkey or Redis server; credentials are rejected, because what is shown holds it."""
    try:
        parts = urlsplit(value.strip()) if isinstance(value, str) else None
        port = parts.port if parts is not None else None
    except ValueError:
        raise allowed(_ALLOWED) from None
    if parts is None or parts.query or parts.fragment or port == 0:
        raise allowed(_ALLOWED)
    if parts.scheme == "unix" and not parts.netloc and len(parts.path) > 1 and parts.path.isprintable():
        return f"unix://{parts.path}"
    if parts.scheme not in _SCHEMES or not parts.hostname or not _PLACE.fullmatch(parts.netloc):
        raise allowed(_ALLOWED)
    if not _DATABASE.fullmatch(parts.path):
        raise allowed(_ALLOWED)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


_URL_SCHEMA = {"type": "string", "pattern": "^(valkeys?|rediss?|unix)://"}
StoreUrl = Annotated[str, BeforeValidator(parse_store), WithJsonSchema(_URL_SCHEMA)]


class Shared(Section):
    valkey: StoreUrl | None = None
    """Valkey or Redis that counts them, as valkey://HOST:6379/0 (ollama-router[valkey]); null = each router alone"""
    user: Annotated[str, Field(min_length=1, max_length=128, pattern="^[!-~]+$")] | None = None
    """its user; null = the default one"""
    password_file: FileName | None = None
    """file with its password; null = none"""
    ca: FileName | None = None
    """PEM file of the authorities of its certificate (valkeys://); null = those of the system"""
    routers: AtLeastOne = 2
    """how many routers share the limits, until the store has said so"""
    connect_s: Positive = 0.25
    """longest time to connect to it; no request waits for that"""
    call_s: Positive = 0.05
    """longest wait of a request for it; then this router's part of the limit counts"""
    hold_s: Annotated[Positive, Field(ge=1, le=600)] = 10.0
    """how long a router that is not heard of keeps what it has borrowed of the limits"""
    pause_s: Positive = 1.0
    """pause before it is tried again, from the third failure in a row on"""
