"""`backends`: where the Ollama is, and which of its cards count."""

import asyncio
import base64
import os
import ssl

import pytest

from router.errors import ConfigError
from tests.certificates import certificate, needs_openssl
from tests.config.keys.play import BIG, SMALL, cards, compare, get, hello, in_front_of, play, send
from tests.http.raw_upstream import answer, raw_upstream


@pytest.mark.key("backends.*.gpus")
def test_only_the_cards_in_gpus_count():
    """By index or UUID; none at all means that requests pass unchanged."""

    async def story(one):
        sizes = [total_mib for _, total_mib, _ in await cards(one)]
        return sizes, (await one.ask(hello(BIG))).status

    values = ["auto", [0], [1], ["GPU-00000000-0000-0000-0000-000000000001"], "none"]
    found = compare(story, "backends.local.gpus", values, cards=(24564, 8192))
    assert found == [([24564, 8192], 200), ([24564], 200), ([8192], 503), ([8192], 503), ([], 200)]


@pytest.mark.key("backends.*.gpus")
def test_the_order_of_gpus_is_that_of_ollama():
    """Its first card is main_gpu 0, whatever index the probe gives it; the start of a UUID is enough."""

    async def story(one):
        return [total_mib for _, total_mib, _ in await cards(one)]

    values = [[1, 0], ["0", "1"], ["GPU-00000000-0000-0000-0000-000000000001", 0]]
    found = compare(story, "backends.local.gpus", values, cards=(24564, 8192))
    assert found == [[8192, 24564], [24564, 8192], [8192, 24564]]


@pytest.mark.key("backends.*.url")
def test_requests_go_to_the_ollama_at_url():
    """Each of two routers shows the models of its own."""

    async def story(one):
        rows = (await get(one.router.url, "/api/tags")).json()["models"]
        return [row["name"] for row in rows]

    assert [play(story, models=(name,)) for name in (SMALL, BIG)] == [[SMALL], [BIG]]


FACTS = {b"/api/version": b'{"version":"0.33.0"}', b"/api/ps": b'{"models":[]}', b"/api/tags": b'{"models":[]}'}


def proxied(prefix=b"", credentials=None):
    """The script of an Ollama that is published below `prefix`, to whom `credentials` are shown."""

    async def script(visit):
        is_right = visit.target.startswith(prefix)
        is_known = credentials is None or b"\r\nauthorization: " + credentials + b"\r\n" in lowered(visit.head)
        status = b"200 OK" if is_right and is_known else b"401 Unauthorized" if is_right else b"404 Not Found"
        body = FACTS.get(visit.target.removeprefix(prefix), b'{"response":"a","done":true}')
        await answer(body, status=status)(visit)

    return script


def lowered(head):
    """A head whose names are in lower case."""
    lines = (line.partition(b":") for line in head.split(b"\r\n"))
    return b"\r\n".join(name.lower() + colon + value for name, colon, value in lines)


async def answers(url, **config):
    """What the router's readiness and an inference request say of the Ollama at `url`."""
    async with in_front_of(url, {f"backends.local.{key}": value for key, value in config.items()}) as router:
        await asyncio.sleep(0.05)
        ready = (await get(router.admin_url, "/readyz")).status
        return ready, (await send(router.url, "POST", "/api/generate", {"model": "m", "prompt": "hi"})).status


@pytest.mark.real_time
@pytest.mark.key("backends.*.url")
async def test_a_path_in_url_is_put_in_front_of_ollamas_own():
    """On the data path and on the control plane, with and without a slash at its end."""
    async with raw_upstream(proxied(b"/team/ollama")) as upstream:
        found = [await answers(upstream.url + path) for path in ("/team/ollama", "/team/ollama/", "/other")]
    assert found == [(200, 200), (200, 200), (503, 502)]


@needs_openssl
@pytest.mark.real_time
@pytest.mark.key("backends.*.ca")
async def test_an_https_ollama_must_have_a_certificate_of_ca(tmp_path):
    """Both planes trust that file, and nothing else."""
    ours, other = certificate(tmp_path, "ours"), certificate(tmp_path, "other")
    async with raw_upstream(proxied(), tls=ours.server_side()) as upstream:
        found = [await answers(upstream.url, ca=ca) for ca in (str(ours.cert), str(other.cert), None)]
    assert found == [(200, 200), (503, 502), (503, 502)]


@needs_openssl
@pytest.mark.real_time
@pytest.mark.key("backends.*.client_cert", "backends.*.client_key")
async def test_an_ollama_that_asks_for_a_certificate_is_shown_client_cert(tmp_path):
    """With its key in client_key, or in the same file; one of somebody else opens nothing."""
    server, ours, other = (certificate(tmp_path, name) for name in ("server", "ours", "other"))
    both = tmp_path / "both.pem"
    both.write_bytes(ours.cert.read_bytes() + ours.key.read_bytes())
    tls, ca = server.server_side(), str(server.cert)
    tls.load_verify_locations(ours.cert)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with raw_upstream(proxied(), tls=tls) as upstream:
        for shown, found in (
            ({"client_cert": str(ours.cert), "client_key": str(ours.key)}, (200, 200)),
            ({"client_cert": str(both)}, (200, 200)),
            ({"client_cert": str(other.cert), "client_key": str(other.key)}, (503, 502)),
            ({}, (503, 502)),
        ):
            assert await answers(upstream.url, ca=ca, **shown) == found, shown


@pytest.mark.real_time
@pytest.mark.key("backends.*.bearer_file", "backends.*.basic_file")
async def test_credentials_in_a_file_are_sent_with_every_request(tmp_path):
    """Those of a client are not passed on in their place."""
    token, pair = tmp_path / "token", tmp_path / "pair"
    token.write_text("s3cret-token\n")
    pair.write_text("user:s3cret")
    basic = b"Basic " + base64.b64encode(b"user:s3cret")
    async with raw_upstream(proxied(credentials=b"Bearer s3cret-token")) as upstream:
        assert await answers(upstream.url, bearer_file=str(token)) == (200, 200)
        assert await answers(upstream.url, basic_file=str(pair)) == (503, 502)
        assert await answers(upstream.url) == (503, 502)
        assert all(head.lower().count(b"authorization") <= 1 for head, _ in upstream.requests)
    async with raw_upstream(proxied(credentials=basic)) as upstream:
        assert await answers(upstream.url, basic_file=str(pair)) == (200, 200)


@pytest.mark.real_time
@pytest.mark.parametrize("key", ["ca", "client_cert", "bearer_file", "basic_file"])
@pytest.mark.parametrize("content", [None, b"", b"pipe", b"s3cret\nand more", b"\xff\x00s3cret", b"s3cret"])
async def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path, key, content):
    """At the start. It names key and file, and repeats nothing of what is in it."""
    path = tmp_path / "file"
    if content == b"pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    if (key, content) == ("bearer_file", b"s3cret"):
        return
    with pytest.raises(ConfigError) as caught:
        await answers("https://127.0.0.1:9", **{key: str(path)})
    text = caught.value.message
    assert text.startswith(f"backends.local.{key}: ") and str(path) in text and "allowed: " in text
    assert "s3cret" not in text and "\n" not in text
