"""The address of an upstream, and the parts of a request that depend only on it."""

from __future__ import annotations

import ssl
from typing import NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """An upstream's address; `prefix` is put in front of every target, `fixed` are header lines of every request.

    `tls_name` is the name that its certificate must have.
    """

    url: str
    host: str
    port: int
    prefix: bytes
    fixed: bytes
    tls: ssl.SSLContext | None
    tls_name: str | None

    @classmethod
    def of(cls, base_url: str, tls: ssl.SSLContext | None, authorization: str = "", tls_name: str = "") -> Address:
        """Parse a base URL; `tls` is used for ``https``, None for the default context.

        `authorization` is the value of that header in every request. `tls_name` is as in Address; "" = the URL's host.

        Raises ValueError for a URL that cannot be the base URL of an upstream.
        """
        url = urlsplit(base_url)
        is_tls = url.scheme == "https"
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError(f"not a base URL of an upstream: {base_url!r}")
        fixed = b" HTTP/1.1\r\nhost: %b\r\naccept-encoding: identity\r\n" % url.netloc.encode("ascii")
        if authorization:
            fixed += b"authorization: %b\r\n" % authorization.encode("ascii")
        port = url.port or (443 if is_tls else 80)
        context = (tls or ssl.create_default_context()) if is_tls else None
        name = (tls_name or url.hostname) if is_tls else None
        return cls(base_url, url.hostname, port, url.path.rstrip("/").encode("ascii"), fixed, context, name)
