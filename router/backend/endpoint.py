"""How one Ollama is reached: its certificate's authorities, and what the router identifies itself with."""

from __future__ import annotations

import base64
import ssl
from typing import NamedTuple

from router.config import BackendSection, require_regular
from router.errors import ConfigError

MOST_BYTES = 64 << 10
"""The largest file with a secret that is read."""


class Endpoint(NamedTuple):
    """A base URL; `tls` is None for the system's authorities; `authorization` is the value of that header, or "".

    `tls_name` is the name that its certificate must have; "" = the host of the URL.
    """

    url: str
    tls: ssl.SSLContext | None
    authorization: str
    tls_name: str = ""


def endpoint_of(section: BackendSection, name: str) -> Endpoint:
    """Return how to reach the backend `name`. Raises ConfigError for a file that cannot be used."""
    where = f"backends.{name}"
    tls = None if section.ca is None else trusting(section.ca, f"{where}.ca")
    if section.client_cert is not None:
        tls = showing(section.client_cert, section.client_key, f"{where}.client_cert", tls)
    authorization = ""
    if section.key_file is not None:  # of nodes: the URL is that of each
        authorization = f"Bearer {secret_in(section.key_file, f'{where}.key_file')}"
    elif section.bearer_file is not None:
        authorization = f"Bearer {secret_in(section.bearer_file, f'{where}.bearer_file')}"
    elif section.basic_file is not None:
        pair = pair_in(section.basic_file, f"{where}.basic_file")
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Endpoint(section.url, tls, authorization, section.discover.tls_name or "")


def trusting(path: str, key: str) -> ssl.SSLContext:
    """Return a context that trusts the authorities in a file. Raises ConfigError."""
    require_regular(path, key, "a PEM file of certificates")
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        why = "found no certificate" if isinstance(error, ssl.SSLError) else _reason(error)
        raise ConfigError(f"{key}: {path}: {why}; allowed: a PEM file of certificates") from None


def showing(cert: str, private: str | None, key: str, tls: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """Return a context that shows a certificate where a server asks for one. Raises ConfigError."""
    allowed = "allowed: PEM files of a certificate and its key, without a passphrase"
    for path in (cert, private or cert):
        require_regular(path, key, allowed.removeprefix("allowed: "))
    context = tls or ssl.create_default_context()
    try:
        context.load_cert_chain(cert, private, password="")  # never ask for one on the terminal
    except (OSError, ValueError) as error:
        why = "found no certificate with its key" if isinstance(error, ssl.SSLError) else _reason(error)
        raise ConfigError(f"{key}: {cert}, {private or 'no key'}: {why}; {allowed}") from None
    return context


def secret_in(path: str, key: str) -> str:
    """Return the line in a file. Raises ConfigError, which never repeats what is in it."""
    allowed = "allowed: a file with one line of printable ASCII"
    require_regular(path, key, allowed.removeprefix("allowed: "))
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES).decode("ascii", "replace").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path}: {_reason(error)}; {allowed}") from None
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigError(f"{key}: {path}: found something else; {allowed}")
    return text


def pair_in(path: str, key: str) -> str:
    """Return the user and the password in a file. Raises ConfigError."""
    pair = secret_in(path, key)
    if ":" not in pair:
        raise ConfigError(f"{key}: found no colon in {path}; allowed: user:password")
    return pair


def _reason(error: Exception) -> str:
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"
