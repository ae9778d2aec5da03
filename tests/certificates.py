"""Certificates for tests, made by openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")


class Certificate(NamedTuple):
    """A certificate that is its own authority, and its key."""

    cert: Path
    key: Path

    def server_side(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context

    def trusting(self, shown: Certificate | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this certificate only, and may show one of its own."""
        context = ssl.create_default_context(cafile=str(self.cert))
        if shown is not None:
            context.load_cert_chain(shown.cert, shown.key)
        return context


def certificate(folder: Path, name: str = "one", names: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
    """Make a certificate for `names`, whose organisation is `name`."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    subject = ["-subj", f"/O={name}/CN=127.0.0.1", "-addext", f"subjectAltName={names}"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run(["openssl", "req", "-x509", *kind, *subject, *files], check=True, capture_output=True)
    return made
