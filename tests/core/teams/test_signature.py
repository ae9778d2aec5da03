"""The signature of the Ollama CLI: what it covers, for how long it counts, and what is none."""

from __future__ import annotations

import pytest

from router.core.teams.credentials import Signature
from router.core.teams.identity import Identities
from router.core.teams.keys import digest_of
from router.core.teams.signature import MOST_SKEW_S, raw_public_key
from router.core.teams.team import Key, Team
from router.errors import Unauthorized

FRONT = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
BLOB, NOW_S = FRONT + b"k" * 32, 1_700_000_000.0
TEAM = Team("coding", keys=(Key("laptop", digest_of(BLOB), is_ssh=True),))


def verify(raw: bytes, value: bytes, message: bytes) -> bool:
    """Stand for Ed25519: the signature repeats the key and the start of the message."""
    return value == (raw[:4] + message).ljust(64, b".")[:64]


def signed(message: str, raw: bytes = b"k" * 32) -> bytes:
    return (raw[:4] + message.encode()).ljust(64, b".")[:64]


IDENTITIES = Identities((TEAM,), verify=verify)


def found(signature: Signature, path: str = "/api/tags", time: str = "1700000000", now_s: float = NOW_S):
    return IDENTITIES.of_signature(signature, "GET", path, time, now_s)


GOOD = Signature(BLOB, signed("GET,/api/tags?ts=1700000000"))


def test_a_good_signature_shows_the_team_until_it_is_too_old() -> None:
    """So that the identity of a head that is repeated does not outlive its signature."""
    identity, until_s = found(GOOD)
    assert (identity.team, identity.key_id, until_s) == (TEAM, "laptop", NOW_S + MOST_SKEW_S)


@pytest.mark.parametrize("skew_s", [MOST_SKEW_S, -MOST_SKEW_S])
def test_clocks_may_differ_a_little(skew_s: float) -> None:
    """In both directions, and not by more."""
    assert found(GOOD, now_s=NOW_S + skew_s)
    with pytest.raises(Unauthorized, match="clocks"):
        found(GOOD, now_s=NOW_S + skew_s * 1.01)


@pytest.mark.parametrize(
    ("signature", "path", "time"),
    [
        (GOOD, "/api/delete", "1700000000"),
        (GOOD, "/api/tags", "1700000001"),
        (GOOD, "/api/tags", ""),
        (GOOD, "/api/tags", "-1"),
        (GOOD, "/api/tags", "1" * 400),
        (GOOD, "/api/tags", "١٧٠٠٠٠٠٠٠٠"),
        (Signature(BLOB, GOOD.value[:-1]), "/api/tags", "1700000000"),
        (Signature(BLOB, b""), "/api/tags", "1700000000"),
        (Signature(FRONT + b"j" * 32, signed("GET,/api/tags?ts=1700000000", b"j" * 32)), "/api/tags", "1700000000"),
        (Signature(b"", GOOD.value), "/api/tags", "1700000000"),
    ],
)
def test_what_is_changed_is_refused(signature: Signature, path: str, time: str) -> None:
    """Another path or time, a broken signature, a key that is not listed."""
    with pytest.raises(Unauthorized):
        found(signature, path, time)


def test_without_a_verifier_no_signature_counts() -> None:
    """Never is one believed that was not checked."""
    with pytest.raises(Unauthorized):
        Identities((TEAM,)).of_signature(GOOD, "GET", "/api/tags", "1700000000", NOW_S)


@pytest.mark.parametrize("blob", [b"", FRONT, BLOB + b"k", b"\x00\x00\x00\x07ssh-rsa" + b"k" * 40, BLOB[1:]])
def test_other_kinds_of_keys_are_none(blob: bytes) -> None:
    """Ollama makes Ed25519 keys only."""
    assert raw_public_key(blob) is None
    assert raw_public_key(BLOB) == b"k" * 32
