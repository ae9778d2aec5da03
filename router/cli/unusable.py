"""Which of the files that a configuration names a router could not use: read as `serve` reads them, all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from router.backend.endpoint import pair_in, secret_in, showing, trusting
from router.config import Config, outside_files
from router.credentials import database_in, listener_tls
from router.errors import ConfigError

_READERS: Mapping[str, Callable[[str, str], object]] = {
    "ca": trusting,
    "key_file": secret_in,
    "bearer_file": secret_in,
    "basic_file": pair_in,
    "password_file": secret_in,
    "postgres_file": database_in,
}
"""What reads the files that a router needs to start, by the last part of their keys; certificates go with theirs."""


def unusable_files(config: Config) -> Iterator[tuple[tuple[str | int, ...], ConfigError]]:
    """Yield the key of each file without which a router with this configuration does not start, and why."""
    for path, file in outside_files(config):
        try:
            if path == ("tls", "cert"):
                listener_tls(config)
            elif path[-1] == "client_cert":
                showing(file, config.backends[str(path[1])].client_key, ".".join(map(str, path)))
            elif path[0] != "tls" and path[-1] != "client_key":
                _READERS[str(path[-1])](file, ".".join(map(str, path)))
        except ConfigError as error:
            yield path, error
