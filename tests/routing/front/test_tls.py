"""Fronts and nodes over a network that others can read: the node shows a certificate, and the front checks it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from router.app import running
from router.config import load_config
from tests.certificates import Certificate, certificate, needs_openssl
from tests.config.keys.play import ALONE, SMALL, get, hello, send
from tests.routing.nodes.stage import KEY, noded

pytestmark = [pytest.mark.real_time, needs_openssl]


@asynccontextmanager
async def secured(folder, tls, **front):
    """Run a front with these keys of its backend before a node with these keys of `tls`, with `https:` between them.

    The node is listed, or with `discover.tls_name` found by its address.
    """
    (folder / "key").write_text(KEY)
    shown = {f"tls.{key}": str(value) for key, value in tls.items()}
    async with noded({**ALONE, **shown}, models=(SMALL,)) as node:
        options = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", **ALONE}
        at = urlsplit(node.url)
        found = {"discover.dns": at.hostname, "discover.port": at.port}
        listed = {"discover.static": [node.url]}
        pool = {"kind": "node", "key_file": str(folder / "key"), **(found if "discover.tls_name" in front else listed)}
        pool |= front
        options |= {f"backends.pool.{key}": value for key, value in pool.items()}
        async with running(load_config(env={}, options=options)) as found:
            yield node, found


async def asked(front):
    """Ask a front; return the status, the node, and what the answer says."""
    reply = await send(front.url, "POST", "/api/generate", hello(SMALL))
    return reply.status, reply.headers.get("x-router-backend", ""), reply.body.decode()


def files(made: Certificate) -> dict[str, str]:
    return {"cert": str(made.cert), "key": str(made.key)}


async def test_a_node_with_a_certificate_of_ca_is_used_over_tls(tmp_path):
    """Its state, its lists and requests, streamed as well."""
    ours = certificate(tmp_path)
    async with secured(tmp_path, files(ours), ca=str(ours.cert)) as (node, front):
        assert node.url.startswith("https:")
        assert (await asked(front))[:2] == (200, "gpu-a")
        reply = await send(front.url, "POST", "/api/generate", hello(SMALL, tokens=50, stream=True))
        assert reply.body.count(b'"response"') > 10
        assert b'"done":true' in reply.body
        assert [row["name"] for row in (await get(front.url, "/api/tags")).json()["models"]] == [SMALL]


@pytest.mark.parametrize("has_ca", [True, False])
async def test_a_node_with_another_certificate_gets_no_request_and_the_front_says_why(tmp_path, has_ca):
    """Neither the key of the fronts nor a prompt is sent to it."""
    ours, other = certificate(tmp_path, "ours"), certificate(tmp_path, "other")
    async with secured(tmp_path, files(other), **({"ca": str(ours.cert)} if has_ca else {})) as (node, front):
        status, _, said = await asked(front)
        assert status == 503
        assert "certificate" in said
        assert not node.upstream("/api/generate")


async def test_a_node_can_ask_fronts_for_a_certificate_as_well(tmp_path):
    """A front without one, or with another, gets no connection; one with it is used as ever."""
    ours, fronts, other = (certificate(tmp_path, name) for name in ("ours", "fronts", "other"))
    tls = {**files(ours), "client_ca": fronts.cert}
    for shown, expected in ((fronts, 200), (other, 503), (None, 503)):
        keys = {"client_cert": str(shown.cert), "client_key": str(shown.key)} if shown is not None else {}
        async with secured(tmp_path, tls, ca=str(ours.cert), **keys) as (node, front):
            status, _, said = await asked(front)
            assert status == expected, said
            assert bool(node.upstream("/api/generate")) == (expected == 200)
