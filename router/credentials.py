"""What a router identifies itself with, read from the files that its configuration names: certificates, URLs.

What a backend needs is read by `backend/endpoint.py`. Nothing here needs more of the system than that, so that `check`
reads the same files where a router does not run.
"""

from __future__ import annotations

import ssl

from router.backend.endpoint import secret_in, trusting
from router.config import Config, require_regular
from router.errors import ConfigError


def database_in(path: str, key: str) -> str:
    """Return the URL of the database in a file. Raises ConfigError, which does not repeat it."""
    url = secret_in(path, key)
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError(f"{key}: found something else in {path}; allowed: postgresql://USER:PASSWORD@HOST/DATABASE")
    return url


def listener_tls(config: Config) -> ssl.SSLContext | None:
    """Return the TLS context of the clients' listener, None without TLS. Raises ConfigError for files it cannot use."""
    if config.tls.cert is None:
        return None
    for path, key in ((config.tls.cert, "tls.cert"), (config.tls.key, "tls.key")):
        if path is not None:
            require_regular(path, key, "a readable PEM file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls.cert, config.tls.key, password="")  # never ask for one on the terminal
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls: {config.tls.cert}, {config.tls.key or 'no key'}: {_why(error)}") from None
    if config.tls.client_ca is not None:
        trusting(config.tls.client_ca, "tls.client_ca")  # raises what is wrong with the file
        context.load_verify_locations(config.tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def admin_tls(config: Config, tls: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Return the context of the admin listener: that of the clients', if it is to have one."""
    wanted = not config.admin.is_loopback if config.tls.admin is None else config.tls.admin
    return tls if wanted else None


def _why(error: Exception) -> str:
    """Return why a file cannot be used, in words for its owner."""
    if isinstance(error, ssl.SSLError):
        return f"found no certificate with its key ({error.reason or error}); allowed: PEM files, without a passphrase"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}; allowed: readable PEM files"
