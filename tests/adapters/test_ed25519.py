"""Signatures of the Ollama CLI by the real library, over the bytes that it signs."""

from __future__ import annotations

import base64

import pytest

from router.adapters.ed25519 import verifier
from router.core.teams.credentials import credential_of
from router.core.teams.identity import Identities
from router.core.teams.keys import digest_of
from router.core.teams.team import Key, Team
from router.errors import Unauthorized

# RFC 8032, 7.1, test 2.
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
VALUE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
FRONT = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"


@pytest.fixture
def verify():
    pytest.importorskip("cryptography", reason="cryptography is not installed: pip install '.[ssh]'")
    found = verifier()
    assert found is not None
    return found


def test_a_signature_is_that_of_its_key_and_message(verify) -> None:
    """The example of the standard; nothing else, and never an exception."""
    assert verify(PUBLIC, VALUE, b"\x72")
    for raw, value, message in (
        (PUBLIC, VALUE, b"\x73"),
        (PUBLIC, VALUE[:-1] + b"\x01", b"\x72"),
        (PUBLIC, VALUE[:-1], b"\x72"),
        (PUBLIC, b"", b"\x72"),
        (b"\xff" * 32, VALUE, b"\x72"),
        (b"\x00" * 32, b"\x00" * 64, b""),
        (b"", VALUE, b"\x72"),
    ):
        assert not verify(raw, value, message)


def test_what_the_command_sends_shows_its_team(verify) -> None:
    """`Authorization: <public key>:<signature>`, as its auth/auth.go writes it."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private = ed25519.Ed25519PrivateKey.generate()
    blob = FRONT + private.public_key().public_bytes_raw()
    team = Team("coding", keys=(Key("laptop", digest_of(blob), is_ssh=True),))
    identities = Identities((team,), verify=verify)
    signed = private.sign(b"POST,/api/chat?ts=1700000000")
    value = base64.b64encode(blob) + b":" + base64.b64encode(signed)
    signature = credential_of([(b"authorization", value)], {b"authorization": value})
    for method, path, time, is_right in (
        ("POST", "/api/chat", "1700000000", True),
        ("POST", "/api/pull", "1700000000", False),
        ("GET", "/api/chat", "1700000000", False),
        ("POST", "/api/chat", "1700000001", False),
    ):
        if is_right:
            assert identities.of_signature(signature, method, path, time, 1.7e9).identity.team is team
        else:
            with pytest.raises(Unauthorized):
                identities.of_signature(signature, method, path, time, 1.7e9)
