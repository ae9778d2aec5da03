"""The variables that Kubernetes sets in every pod for a service named ollama-router, or ollama-router-SOMETHING.

They begin like the router's own variables, but are not keys of its configuration.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

_SERVICE = r"OLLAMA_ROUTER(?:_[A-Z0-9]+)*?"
_PORT = r"\d{1,5}"
_URL = re.compile(rf"(?:tcp|udp|sctp)://(?:\[[0-9a-f:.]+\]|[0-9.]+):{_PORT}")
_FORMS = (
    (re.compile(rf"{_SERVICE}_SERVICE_HOST"), "address"),
    (re.compile(rf"{_SERVICE}_SERVICE_PORT(?:_[A-Z0-9]+)*"), "port"),
    (re.compile(rf"{_SERVICE}_PORT"), "url"),
    (re.compile(rf"{_SERVICE}_PORT_{_PORT}_(?:TCP|UDP|SCTP)"), "url"),
    (re.compile(rf"{_SERVICE}_PORT_{_PORT}_(?:TCP|UDP|SCTP)_PROTO"), "protocol"),
    (re.compile(rf"{_SERVICE}_PORT_{_PORT}_(?:TCP|UDP|SCTP)_PORT"), "port"),
    (re.compile(rf"{_SERVICE}_PORT_{_PORT}_(?:TCP|UDP|SCTP)_ADDR"), "address"),
)


def is_service_link(name: str, value: str) -> bool:
    """Return True for a variable with the name and the value that Kubernetes gives it; False for any other."""
    kinds = {kind for form, kind in _FORMS if form.fullmatch(name)}
    return any(_HAS[kind](value) for kind in kinds)


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_port(value: str) -> bool:
    return re.fullmatch(_PORT, value) is not None


def _is_url(value: str) -> bool:
    return _URL.fullmatch(value) is not None


def _is_protocol(value: str) -> bool:
    return value in ("tcp", "udp", "sctp")


_HAS: dict[str, Callable[[str], bool]] = {
    "address": _is_address,
    "port": _is_port,
    "url": _is_url,
    "protocol": _is_protocol,
}
