"""Which credential a head shows."""

from __future__ import annotations

import base64

import pytest

from router.core.teams.credentials import PLACEHOLDERS, Signature, credential_of
from router.errors import BadRequest

KEY = b"or_coding_0123456789abcdefghijABCDEFGHIJxy_abcdef"


def shown(*headers: tuple[bytes, bytes], path_key: bytes = b"") -> bytes | Signature | None:
    return credential_of(headers, dict(headers), path_key)


def basic(user: bytes, password: bytes) -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(user + b":" + password)


WAYS = [
    [(b"authorization", b"Bearer " + KEY)],
    [(b"authorization", b"bearer   " + KEY + b" ")],
    [(b"authorization", b"BEARER " + KEY)],
    [(b"authorization", KEY)],
    [(b"x-api-key", KEY)],
    [basic(b"user", KEY)],
    [basic(b"", KEY)],
    [basic(KEY, b"")],
    [basic(KEY, b"x")],
    [basic(KEY, b"secret")],
    [basic(KEY, KEY)],
    [(b"authorization", b"basic " + base64.b64encode(b"u:" + KEY).rstrip(b"="))],
    [(b"authorization", b"Bearer " + KEY), (b"x-api-key", KEY)],
    [(b"authorization", b"Bearer ollama"), (b"x-api-key", KEY)],
    [(b"authorization", b"Bearer " + KEY), (b"authorization", b"Bearer " + KEY)],
    [(b"authorization", b"Negotiate abcdef=="), (b"x-api-key", KEY)],
]


@pytest.mark.parametrize("headers", WAYS)
def test_every_way_to_send_a_key_shows_the_same_credential_g4(headers: list[tuple[bytes, bytes]]) -> None:
    """Alone, twice, beside a placeholder, and with the same key in front of the path."""
    assert shown(*headers) == KEY
    assert shown(*headers, path_key=KEY) == KEY


@pytest.mark.parametrize("headers", WAYS)
def test_two_different_credentials_are_refused_g4(headers: list[tuple[bytes, bytes]]) -> None:
    """Nobody can tell which one counts: a proxy in front may have checked the other one."""
    with pytest.raises(BadRequest) as caught:
        shown(*headers, path_key=b"another")
    assert KEY.decode() not in caught.value.message


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer a"), (b"x-api-key", b"b")],
        [(b"authorization", b"Bearer one"), (b"authorization", b"Bearer two")],
        [(b"x-api-key", b"one"), (b"x-api-key", b"two")],
        [basic(b"u", b"one"), (b"x-api-key", b"two")],
    ],
)
def test_so_are_two_headers_that_differ_g4(headers: list[tuple[bytes, bytes]]) -> None:
    """Also two of the same name, of which a dict keeps the last one only."""
    with pytest.raises(BadRequest):
        shown(*headers)


@pytest.mark.parametrize("word", sorted(PLACEHOLDERS))
def test_a_placeholder_is_no_credential(word: bytes) -> None:
    """SDKs want some key; what people write there for an Ollama without keys counts as none."""
    for text in (word, word.upper(), b" " + word):
        for headers in ([(b"authorization", b"Bearer " + text)], [(b"x-api-key", text)], [basic(b"ollama", text)]):
            assert shown(*headers) is None
    assert shown(path_key=word) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic",
        b"Basic !!!",
        b"Basic Og==",
        b"Digest username=x",
        b"Negotiate YII=",
        b"x",
        b":",
        b"a:",
    ],
)
def test_what_shows_no_key_is_none(value: bytes) -> None:
    """Malformed values, and what is between a client and another server."""
    assert shown((b"authorization", value)) is None


def test_a_signature_of_the_cli_is_one() -> None:
    """`<public key>:<signature>`, without a scheme."""
    public_key, signature = b"\x00\x00\x00\x0bssh-ed25519" + b"k" * 36, b"s" * 64
    value = base64.b64encode(public_key) + b":" + base64.b64encode(signature)
    assert shown((b"authorization", value)) == Signature(public_key, signature)


@pytest.mark.parametrize("value", [b"\xff\x00\xfe" * 1000, bytes(range(32, 256)) * 4])
def test_binary_values_are_credentials_like_others(value: bytes) -> None:
    """They are looked up by their digest, and are not decoded."""
    assert shown((b"authorization", b"Bearer " + value)) == value.strip()
