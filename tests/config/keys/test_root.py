"""The keys at the top: where the router listens, who may reach it, and what anonymous clients may do."""

from urllib.parse import urlsplit

import pytest

from router.core.teams.keys import digest_of, make_key
from tests.config.keys.play import ALONE, SMALL, compare_small, get, play, send


@pytest.mark.key("listen")
def test_clients_connect_where_listen_says():
    """Two addresses of this machine."""

    async def story(one):
        return urlsplit(one.router.url).hostname, (await get(one.router.url, "/")).body

    found = compare_small(story, "listen", ["127.0.0.1:0", "127.0.0.2:0"])
    assert found == [("127.0.0.1", b"Ollama is running"), ("127.0.0.2", b"Ollama is running")]


@pytest.mark.key("admin")
def test_the_admin_pages_are_where_admin_says():
    """And not where clients connect."""

    async def story(one):
        where = urlsplit(one.router.admin_url).hostname
        healthy = (await get(one.router.admin_url, "/healthz")).status
        return where, healthy, (await get(one.router.url, "/healthz")).status

    assert compare_small(story, "admin", ["127.0.0.1:0", "127.0.0.2:0"]) == [
        ("127.0.0.1", 200, 404),
        ("127.0.0.2", 200, 404),
    ]


@pytest.mark.key("insecure_no_auth")
def test_beyond_this_machine_anonymous_clients_manage_models_only_with_insecure_no_auth():
    """On a loopback address they may in any case."""

    async def story(one):
        body = {"source": SMALL, "destination": "copy"}
        return (await send(one.router.url, "POST", "/api/copy", body)).status

    everywhere = {**ALONE, "listen": "0.0.0.0:0"}
    assert compare_small(story, "insecure_no_auth", [False, True], everywhere) == [403, 200]
    assert play(story) == 200


@pytest.mark.key("hosts")
def test_clients_reach_the_router_under_the_names_in_hosts():
    """Both listeners."""

    async def story(one):
        urls = one.router.url, one.router.admin_url
        return [(await get(url, "/readyz", host="gpu.example:80")).status for url in urls]

    values = [[], ["gpu.example"], ["*.example"], ["*"], ["*.gpu.example"]]
    assert compare_small(story, "hosts", values) == [[403, 403], [200, 200], [200, 200], [200, 200], [403, 403]]


@pytest.mark.key("origins")
def test_web_pages_of_the_origins_may_use_the_router():
    """`*` stands for any text."""

    async def story(one):
        reply = await get(one.router.url, "/api/version", [("Origin", "https://chat.example")])
        return reply.status, reply.headers.get("access-control-allow-origin")

    refused, allowed = (403, None), (200, "https://chat.example")
    found = compare_small(story, "origins", [[], ["https://*.other"], ["https://chat.example"], ["https://*.example"]])
    assert found == [refused, refused, allowed, allowed]


ADMIN_KEY = make_key("admin", "0123456789abcdefghijABCDEFGHIJxy")
DIGEST = digest_of(ADMIN_KEY.encode()).hex()


async def status_of_a_change(one, *headers):
    return (await send(one.router.admin_url, "POST", "/router/forget", headers=headers)).status


@pytest.mark.key("admin_keys.*.sha256", "admin_keys.*.id")
def test_with_admin_keys_a_change_needs_one():
    """On loopback reading does not; the configuration shows which keys there are, but not their hashes."""
    ways = [[], [("x-router-admin", "1")], [("x-router-admin", ADMIN_KEY)], [("Authorization", f"Bearer {ADMIN_KEY}")]]

    async def story(one):
        shown = (await get(one.router.admin_url, "/router/config")).json()["admin_keys"]
        ids = [(key["id"], key["sha256"]) for key in shown]
        return [await status_of_a_change(one, *headers) for headers in ways], ids

    keys = [[], [{"id": "ops", "sha256": DIGEST}], [{"id": "other", "sha256": DIGEST[::-1]}]]
    assert compare_small(story, "admin_keys", keys) == [
        ([403, 200, 200, 200], []),
        ([401, 401, 200, 200], [("ops", "***")]),
        ([401, 401, 401, 401], [("other", "***")]),
    ]


@pytest.mark.key("admin_keys.*.sha256_file")
def test_the_hash_of_an_admin_key_may_be_in_a_file(tmp_path):
    """As `sha256sum` writes it."""
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"{DIGEST}  -\n")
    wrong.write_text(DIGEST[::-1])

    async def story(one):
        return await status_of_a_change(one, ("x-router-admin", ADMIN_KEY))

    keys = [[{"id": "ops", "sha256_file": str(file)}] for file in (right, wrong)]
    assert compare_small(story, "admin_keys", keys) == [200, 401]


@pytest.mark.key("admin_keys.*.expires")
def test_an_admin_key_ends_when_it_expires():
    """A date is its first moment."""

    async def story(one):
        return await status_of_a_change(one, ("x-router-admin", ADMIN_KEY))

    keys = [[{"id": "ops", "sha256": DIGEST, "expires": date}] for date in (None, "2999-01-01", "2001-01-01")]
    assert compare_small(story, "admin_keys", keys) == [200, 200, 401]
