"""Who may see the admin pages, and who may change something there."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from router.admin.lock import AdminLock
from router.admin.pages import page_paths
from router.core.teams.keys import digest_of, make_key
from router.core.teams.team import Key

KEY = make_key("admin", "0123456789abcdefghijABCDEFGHIJxy").encode()
OLD_KEY, EXPIRY_S = b"sk-old", 1000.0
KEYS = (Key("ops", digest_of(KEY)), Key("old", digest_of(OLD_KEY), EXPIRY_S))
HOST = (b"host", b"127.0.0.1:11436")
OWN = [
    {b"x-router-admin": b"1"},
    {b"origin": b"http://127.0.0.1:11436"},
    {b"sec-fetch-site": b"same-origin"},
]
FOREIGN: list[Mapping[bytes, bytes]] = [
    {},
    {b"origin": b"http://evil.example"},
    {b"origin": b"null"},
    {b"sec-fetch-site": b"cross-site"},
    {b"sec-fetch-site": b"same-site"},
    {b"referer": b"http://127.0.0.1:11436/"},
    {b"cookie": b"x-router-admin=1"},
]
WITH_KEY = [
    {b"authorization": b"Bearer " + KEY},
    {b"authorization": b"bearer  " + KEY},
    {b"x-router-admin": KEY},
    {b"authorization": b"Bearer " + KEY, b"x-router-admin": b"ollama-router"},
]
WRONG = [
    *FOREIGN,
    *OWN,
    {b"authorization": b"Bearer " + KEY[:-1]},
    {b"authorization": b"Basic " + KEY},
    {b"authorization": b"Bearer x", b"x-router-admin": KEY},
    {b"x-router-admin": digest_of(KEY).hex().encode()},
    {b"x-router-admin": b""},
    {b"x-api-key": KEY},
]


def statuses(lock: AdminLock, heads, method: str = "POST", path: str = "/router/forget") -> set[int]:
    found = [lock.refusal(method, path, dict([HOST, *head.items()])) for head in heads]
    return {200 if one is None else one.status for one in found}


def test_on_loopback_without_keys_pages_are_read_and_changes_come_from_here_k4() -> None:
    """A page of another site can send none of these headers without being asked for it first."""
    lock = AdminLock()
    assert statuses(lock, [*FOREIGN, *OWN, *WRONG], "GET", "/router/state") == {200}
    assert statuses(lock, OWN) == {200}
    assert statuses(lock, FOREIGN) == {403}


def test_with_keys_a_change_needs_one_everywhere_k4() -> None:
    """Reading on loopback does not: who is there can read the router's files as well."""
    for is_loopback in (True, False):
        lock = AdminLock(KEYS, is_loopback=is_loopback)
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert statuses(lock, WITH_KEY, method) == {200}
            assert statuses(lock, WRONG, method) == {401}
        assert statuses(lock, WRONG, "GET", "/router/state") == ({200} if is_loopback else {401})


def test_beyond_loopback_reading_needs_a_key_too_k4() -> None:
    """State, metrics, configuration and events; not the files of the dashboard, which asks for the key, and health."""
    lock = AdminLock(KEYS, is_loopback=False, public=page_paths())
    for path in ("/router/state", "/metrics", "/router/config", "/router/events", "/nope", "//", "/healthz/"):
        assert statuses(lock, WITH_KEY, "GET", path) == {200}
        assert statuses(lock, WRONG, "GET", path) == {401}
    for path in ("/", "/main.js", "/dashboard.css", "/healthz", "/readyz"):
        assert statuses(lock, WRONG, "GET", path) == {200}
        assert statuses(lock, WRONG, "POST", path) == {401}


def test_beyond_loopback_without_keys_it_is_closed_k4() -> None:
    """The text says how to open it."""
    lock = AdminLock(is_loopback=False)
    for method in ("GET", "POST"):
        assert statuses(lock, [*WRONG, *WITH_KEY], method, "/router/state") == {403}
    refused = lock.refusal("GET", "/metrics", {})
    assert refused is not None
    assert "keys new --admin" in refused.why
    assert statuses(lock, [{}], "GET", "/readyz") == {200}


def test_insecure_no_auth_opens_it_k4() -> None:
    """But not for pages of other sites."""
    for keys in ((), KEYS):
        lock = AdminLock(keys, is_loopback=False, is_open=True)
        assert statuses(lock, FOREIGN, "GET", "/router/state") == {200}
        assert statuses(lock, OWN) == {200}
        assert statuses(lock, FOREIGN) == {403}


@pytest.mark.parametrize(("now_s", "status"), [(EXPIRY_S - 1, 200), (EXPIRY_S, 401)])
def test_an_admin_key_expires(now_s: float, status: int) -> None:
    """To the second."""
    lock = AdminLock(KEYS, clock=lambda: now_s)
    assert statuses(lock, [{b"authorization": b"Bearer " + OLD_KEY}]) == {status}


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ({}, "this needs an admin key"),
        ({b"x-router-admin": b"ollama-router"}, "this needs an admin key"),
        ({b"x-router-admin": b"1"}, "this needs an admin key"),
        ({b"authorization": b"Basic dTpw"}, "this needs an admin key"),
        ({b"authorization": b"Bearer sk-wrong"}, "the admin key is not known here, or was revoked"),
        ({b"x-router-admin": b"sk-wrong"}, "the admin key is not known here, or was revoked"),
        ({b"authorization": b"Bearer sk-wrong", b"x-router-admin": b"ollama-router"}, "is not known here"),
        ({b"authorization": b"Bearer " + KEY[:-1]}, "the admin key has a typo or was cut off"),
        ({b"authorization": b"Bearer " + OLD_KEY}, "the admin key has expired"),
        ({b"authorization": b"Bearer sk-team"}, "this is the key of a team"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_key(head, text: str) -> None:
    """One that is wrong is not called missing; none of them is quoted."""
    lock = AdminLock(KEYS, is_loopback=False, clock=lambda: EXPIRY_S, is_of_team=lambda key: key == b"sk-team")
    for method, path in (("GET", "/router/state"), ("POST", "/router/reload"), ("POST", "/router/explain")):
        refused = lock.refusal(method, path, head)
        assert refused is not None
        assert (refused.status, text in refused.why) == (401, True)
        assert not any(value.rpartition(b" ")[2].decode() in refused.why for value in head.values() if len(value) > 13)


def test_the_key_of_a_team_opens_the_explanation_only() -> None:
    """And only to read it."""
    lock = AdminLock(KEYS, is_loopback=False, is_of_team=lambda key: key == b"sk-team")
    shown = [{b"authorization": b"Bearer sk-team"}]
    assert statuses(lock, shown, "GET", "/router/explain") == {200}
    for method, path in (("POST", "/router/explain"), ("GET", "/router/state"), ("GET", "/router/explain/")):
        assert statuses(lock, shown, method, path) == {401}


def test_how_long_a_request_may_read_is_that_of_its_key() -> None:
    """Where none is needed, or it does not end, there is no end."""
    old, new = {b"authorization": b"Bearer " + OLD_KEY}, {b"authorization": b"Bearer " + KEY}
    lock = AdminLock(KEYS, is_loopback=False, clock=lambda: EXPIRY_S - 3)
    assert (lock.valid_for_s(old), lock.valid_for_s(new)) == (3, None)
    assert AdminLock(KEYS, clock=lambda: EXPIRY_S - 3).valid_for_s(old) is None
