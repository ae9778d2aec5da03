"""Whose request it is: by the credential that it shows, else by the network that it comes from, else the default. Pure.

One `Identities` belongs to one set of rules and never changes, so whatever is remembered of it is valid exactly as long
as the same object is in force: a revoked key ends with the next request, also on an open connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from router.core.teams.credentials import Signature
from router.core.teams.keys import digest_of, has_typo
from router.core.teams.signature import Verify, check_signature
from router.core.teams.team import Identity, Team
from router.errors import Unauthorized

MOST_BYTES = 8192
"""A longer credential is no key, and is not even hashed."""

HOW = (
    "send a key: Authorization: Bearer KEY, or x-api-key, or OLLAMA_HOST=http://HOST:PORT/t/KEY for the ollama command"
)
NO_KEY = f"this router needs a key; {HOW}"
TYPO = "the key has a typo or was cut off: its checksum does not match"
UNKNOWN = "the key is not known here, or was revoked"
EXPIRED = "the key has expired"

_ADDRESSES = 4096


class Recognized(NamedTuple):
    """An identity, and when the key that shows it expires (Unix time; None = never)."""

    identity: Identity
    expires_s: float | None = None


class Identities:
    """The identities of one set of teams. `default` is the team of a client that nothing else identifies, if any.

    `verify` checks Ed25519 signatures of the Ollama CLI; without it they are not accepted. `mark` stands for this
    object where it must not be kept alive.
    """

    def __init__(self, teams: Iterable[Team], default: Team | None = None, verify: Verify | None = None) -> None:
        self.mark = object()
        self._by_digest: dict[bytes, Recognized] = {}
        self._by_ssh_digest: dict[bytes, Recognized] = {}  # apart: a public key must not count as a secret
        self._by_network: dict[int, dict[int, dict[int, Identity]]] = {4: {}, 6: {}}
        self._default = Identity(default) if default is not None else None
        self._verify = verify
        for team in teams:
            for key in team.keys:
                table = self._by_ssh_digest if key.is_ssh else self._by_digest
                table[key.sha256] = Recognized(Identity(team, key.id), key.expires_s)
            for network in team.networks:
                of_size = self._by_network[network.version].setdefault(network.prefixlen, {})
                of_size[int(network.network_address)] = Identity(team)
        for sizes in self._by_network.values():  # the most specific network first
            for size in sorted(sizes, reverse=True):
                sizes[size] = sizes.pop(size)
        self._by_address: dict[str, Identity] = {}

    def of_credential(self, credential: bytes, now_s: float) -> Recognized:
        """Return the identity that a key shows at Unix time `now_s`. Raise Unauthorized, which never quotes the key."""
        if len(credential) > MOST_BYTES:
            raise Unauthorized(UNKNOWN)
        found = self._by_digest.get(digest_of(credential))
        if found is None:
            raise Unauthorized(TYPO if has_typo(credential.decode("utf-8", "surrogateescape")) else UNKNOWN)
        return _unexpired(found, now_s)

    def of_signature(self, signature: Signature, method: str, path: str, time: str, now_s: float) -> Recognized:
        """Return the identity of the CLI that has signed a request with an SSH key. Raise Unauthorized."""
        found = self._by_ssh_digest.get(digest_of(signature.public_key))
        if found is None or self._verify is None:
            raise Unauthorized(UNKNOWN)
        valid_until_s = check_signature(signature, method, path, time, now_s, self._verify)
        identity, expires_s = _unexpired(found, now_s)
        return Recognized(identity, min(valid_until_s, expires_s or valid_until_s))

    def of_address(self, address: str) -> Identity:
        """Return the identity of a client without a key by its address. Raise Unauthorized if it has none."""
        found = self._by_address.get(address)
        if found is None:
            found = self._of_address(address)
            if len(self._by_address) >= _ADDRESSES:
                self._by_address.clear()
            self._by_address[address] = found
        return found

    def _of_address(self, address: str) -> Identity:
        sizes, number, bits = self._networks_of(address)
        for size, networks in sizes.items():
            found = networks.get(number >> (bits - size) << (bits - size))
            if found is not None:
                return found
        if self._default is None:
            raise Unauthorized(NO_KEY)
        return self._default

    def _networks_of(self, address: str) -> tuple[Mapping[int, dict[int, Identity]], int, int]:
        """Return the networks of the address's family by their size, the address as a number, and its bits."""
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:  # a Unix socket
            return {}, 0, 0
        parsed = _plain(parsed)
        return self._by_network[parsed.version], int(parsed), parsed.max_prefixlen


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return an IPv4 address within IPv6 as itself."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _unexpired(found: Recognized, now_s: float) -> Recognized:
    if found.expires_s is not None and now_s >= found.expires_s:
        raise Unauthorized(EXPIRED)
    return found
