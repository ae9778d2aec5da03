"""The form of keys: recognizable, with a checksum that tells a typo without a look-up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.teams.keys import ALPHABET, FORM, digest_of, has_typo, make_key

SECRET = "0123456789abcdefghijABCDEFGHIJxy"
KEY = make_key("coding", SECRET)


@given(
    team=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", fullmatch=True),
    secret=st.text(ALPHABET, min_size=32, max_size=32),
)
def test_every_key_has_the_form_and_no_typo(team: str, secret: str) -> None:
    """Also for a team whose name holds the separator."""
    key = make_key(team, secret)
    found = FORM.fullmatch(key)
    assert found is not None
    assert (found[1], found[2]) == (team, secret)
    assert not has_typo(key)


@pytest.mark.parametrize("at", range(3, len(KEY)))
def test_a_changed_character_is_a_typo(at: int) -> None:
    """In the team, in the secret or in the checksum."""
    other = "a" if KEY[at] != "a" else "b"
    assert has_typo(KEY[:at] + other + KEY[at + 1 :])


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "x", KEY[:20], "or_", "or_x", KEY + " ", KEY.replace("_", "-")])
def test_a_key_that_is_cut_off_or_too_long_has_a_typo(key: str) -> None:
    """As it happens with copy and paste; what does not begin like a key of the router is none of it."""
    assert has_typo(key) == key.startswith("or_")


@pytest.mark.parametrize("key", ["sk-abc", "", "eyJhbGciOi", "OR_x"])
def test_keys_of_another_form_have_no_typo(key: str) -> None:
    """They can be listed by their hash as well, and only a look-up tells."""
    assert not has_typo(key)


def test_a_digest_is_that_of_sha256sum() -> None:
    """So that it can be made without the router."""
    assert digest_of(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
