"""Whose request it is: by key, by network, by default."""

from __future__ import annotations

import weakref
from ipaddress import ip_network

import pytest

from router.core.teams.identity import EXPIRED, MOST_BYTES, NO_KEY, TYPO, UNKNOWN, Identities
from router.core.teams.keys import digest_of, make_key
from router.core.teams.team import Key, Team
from router.errors import Unauthorized

SECRET = "0123456789abcdefghijABCDEFGHIJxy"
CODING_KEY, CHAT_KEY = make_key("coding", SECRET).encode(), b"sk-of-another-form"
OLD_KEY = make_key("chat", SECRET).encode()
CODING = Team(
    "coding",
    keys=(Key("ci", digest_of(CODING_KEY)),),
    networks=(ip_network("10.20.0.0/16"), ip_network("fd00::/8")),
)
CHAT = Team(
    "chat",
    keys=(Key("web", digest_of(CHAT_KEY)), Key("old", digest_of(OLD_KEY), expires_s=1000.0)),
    networks=(ip_network("10.20.30.0/24"), ip_network("10.0.0.0/8"), ip_network("192.168.1.7/32")),
)
OTHERS = Team("others")
IDENTITIES = Identities((CODING, CHAT), OTHERS)


def refused(credential: bytes, now_s: float = 0.0) -> str:
    with pytest.raises(Unauthorized) as caught:
        IDENTITIES.of_credential(credential, now_s)
    return caught.value.message


def test_a_key_shows_its_team_and_its_id() -> None:
    """Whatever its form, and when it expires."""
    for credential, team, key_id, expires_s in (
        (CODING_KEY, CODING, "ci", None),
        (CHAT_KEY, CHAT, "web", None),
        (OLD_KEY, CHAT, "old", 1000.0),
    ):
        found = IDENTITIES.of_credential(credential, 999.0)
        assert (found.identity.team, found.identity.key_id, found.expires_s) == (team, key_id, expires_s)


def test_an_unknown_an_expired_and_a_mistyped_key_are_told_apart() -> None:
    """So that the right thing is mended; none of the texts quotes the key."""
    assert refused(b"sk-unknown") == UNKNOWN
    assert refused(make_key("coding", SECRET[::-1]).encode()) == UNKNOWN  # made well, but revoked
    assert refused(CODING_KEY[:-1] + b"!") == TYPO
    assert refused(OLD_KEY, 1000.0) == EXPIRED
    assert refused(b"\xff\xfe\x00" * 100) == UNKNOWN
    assert refused(b"x" * (MOST_BYTES + 1)) == UNKNOWN


def test_keys_with_a_long_common_prefix_are_different_keys_g6() -> None:
    """Ten thousand of them: what identifies is the digest of the whole credential."""
    prefix = b"sk-" + b"p" * 37
    credentials = [prefix + b"%05d" % number for number in range(10_000)]
    teams = [
        Team(f"t{at}", keys=tuple(Key(str(at + n), digest_of(credentials[at + n])) for n in range(10)))
        for at in range(0, 10_000, 10)
    ]
    identities = Identities(teams)
    found = [identities.of_credential(credential, 0.0).identity for credential in credentials]
    assert [one.key_id for one in found] == [str(number) for number in range(10_000)]
    assert [one.team.name for one in found] == [f"t{number // 10 * 10}" for number in range(10_000)]
    for credential in (prefix, credentials[0][:-1], credentials[0] + b"0"):
        with pytest.raises(Unauthorized):
            identities.of_credential(credential, 0.0)


@pytest.mark.parametrize(
    ("address", "team"),
    [
        ("10.20.1.1", CODING),
        ("10.20.30.1", CHAT),  # the most specific network counts
        ("10.99.0.1", CHAT),
        ("192.168.1.7", CHAT),
        ("192.168.1.8", OTHERS),
        ("::ffff:10.20.1.1", CODING),  # as a listener on both families shows it
        ("fd12::1", CODING),
        ("fe80::1%eth0", OTHERS),
        ("127.0.0.1", OTHERS),
        ("", OTHERS),  # a Unix socket
        ("not an address", OTHERS),
    ],
)
def test_without_a_key_the_network_counts_then_the_default(address: str, team: Team) -> None:
    """Identified so, there is no key's id."""
    found = IDENTITIES.of_address(address)
    assert (found.team, found.key_id) == (team, "")


def test_any_number_of_addresses_may_ask() -> None:
    """Only some thousands are remembered; each is still its own network's."""
    identities = Identities((CODING,), OTHERS)
    teams = {identities.of_address(f"10.{20 + n // 4000}.{n // 250 % 16}.{n % 250}").team for n in range(8200)}
    assert teams == {CODING, OTHERS}


def test_without_a_default_a_key_is_needed() -> None:
    """The text says how to send one."""
    identities = Identities((CODING,))
    assert identities.of_address("10.20.1.1").team is CODING
    with pytest.raises(Unauthorized, match="OLLAMA_HOST"):
        identities.of_address("10.21.1.1")
    assert "Bearer" in NO_KEY


def test_a_network_of_everything_is_the_least_specific() -> None:
    """A size of 0 bits is one like others."""
    identities = Identities((Team("all", networks=(ip_network("0.0.0.0/0"), ip_network("::/0"))), CODING))
    assert identities.of_address("8.8.8.8").team.name == identities.of_address("2001:db8::1").team.name == "all"
    assert identities.of_address("10.20.0.1").team is CODING


def test_a_public_key_is_not_a_secret_g4() -> None:
    """Whoever knows an SSH public key, which is public, cannot send it as if it were the key."""
    blob = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00 " + b"k" * 32
    identities = Identities((Team("a", keys=(Key("ssh", digest_of(blob), is_ssh=True),)),))
    with pytest.raises(Unauthorized):
        identities.of_credential(blob, 0.0)


def test_identities_that_are_replaced_leave_no_memory_behind() -> None:
    """At once: those of a thousand teams would wait long for the garbage collector."""
    identities = Identities([CODING], CODING)
    identities.of_address("8.8.8.8")
    gone = weakref.ref(identities)
    del identities
    assert gone() is None
