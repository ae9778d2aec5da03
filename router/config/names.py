"""How host names and origins of web pages are written: parsed by functions that say what is allowed."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from router.config.values import allowed

# One * in a label at most: patterns are compared with what clients send, in a time that must not grow with its length.
_LABEL = r"(?!-)(?=[^.])[a-z0-9_-]*\*?[a-z0-9_-]*(?<!-)"
_HOST = re.compile(rf"(?:\*|(?:{_LABEL}\.)*[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)")
_REGISTRY = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


def parse_host(value: object) -> str:
    """Parse a host name or an address, or a pattern of names, as `router/http/server/hosts.py` compares them."""
    error = allowed(
        'a host name such as "gpu.lan", or "*.gpu.lan" for all names below it, "gpu-*.lan", "*" for any name; without '
        "scheme, port and path"
    )
    if not isinstance(value, str):
        raise error
    text = value.strip().lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    try:
        text = text.encode("idna").decode("ascii")  # as browsers send it
    except UnicodeError:
        raise error from None
    if not _HOST.fullmatch(text):
        raise error
    return text


def parse_origin(value: object) -> str:
    """Parse an origin as browsers send it, perhaps with one `*`, or `*` for any origin."""
    error = allowed('an origin such as "https://chat.example" or "http://192.168.1.5:*", with at most one *; or "*"')
    if not isinstance(value, str):
        raise error
    text = value.strip().lower()
    text = text if text.endswith("://") else text.rstrip("/")
    if text.count("*") > 1 or not (text in ("*", "null") or "*" in text or _ORIGIN.fullmatch(text)):
        raise error
    return text


def parse_registry(value: object) -> str:
    """Parse the host of a registry or of an Ollama server, perhaps with its port, as it stands in a model's name."""
    if isinstance(value, str) and _REGISTRY.fullmatch(text := value.strip().lower()):
        return text
    raise allowed(
        'a host such as "registry.ollama.ai", perhaps with a port such as "models.lan:5000"; no scheme, no path'
    )


Registry = Annotated[str, BeforeValidator(parse_registry), WithJsonSchema({"type": "string", "minLength": 1})]
Host = Annotated[str, BeforeValidator(parse_host), WithJsonSchema({"type": "string", "minLength": 1})]
Origin = Annotated[str, BeforeValidator(parse_origin), WithJsonSchema({"type": "string", "minLength": 1})]
