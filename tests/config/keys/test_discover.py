"""`backends` of kind node: what makes a router a front, and where its nodes are."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from ollama_simulator.clock import run_virtual
from router.app import running
from router.config import load_config
from router.errors import ConfigError
from tests.adapters.discovery.test_endpointslices import Api, endpoint, listed, slice_of
from tests.certificates import certificate, needs_openssl
from tests.config.keys.play import get, record, send
from tests.http.raw_upstream import raw_upstream
from tests.routing.front.stage import KEY, SMALL, FakeNode
from tests.routing.front.test_tls import asked, files, secured

ASK = {"model": SMALL, "prompt": "hi"}
OWN = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}


def played(tmp_path, config, nodes=("a",), story=None, api=None):
    """What `story` returns for a front with `config`, whose values may be made of the URLs of nodes and the API."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "other").write_text("another-key-0123456789")

    async def run():
        async with AsyncExitStack() as stack:
            found = [FakeNode(name) for name in nodes]
            for node in found:
                node.upstream = await stack.enter_async_context(raw_upstream(node.serve))
            server = await stack.enter_async_context(raw_upstream(api.serve)) if api is not None else None
            urls = [node.url for node in found]
            made = config(urls, server.url if server is not None else None)
            options = {f"backends.local.{key}": value for key, value in made.items()}
            router = await stack.enter_async_context(running(load_config(env={}, options=OWN | options)))
            await record(router.admin_url)
            return await (story or usable)(router, found)

    return run_virtual(run())


async def usable(router, _nodes):
    """How many nodes the front can use, and what a request gets."""
    await asyncio.sleep(0.5)
    ready = (await get(router.admin_url, "/readyz")).json()
    return ready["nodes"]["usable"], (await send(router.url, "POST", "/api/generate", ASK)).status


def node_config(tmp_path, key="key", **discover):
    """Return the keys of a backend of nodes."""
    found = {f"discover.{name}": value for name, value in discover.items()}
    return {"kind": "node", "key_file": str(tmp_path / key), **found}


def port_of(url):
    return urlsplit(url).port


@pytest.mark.key("backends.*.kind")
def test_kind_says_whether_nodes_or_an_ollama_are_asked(tmp_path):
    """A node answers only who shows the key of its fronts."""

    async def story(router, nodes):
        await asyncio.sleep(0.5)
        status = (await send(router.url, "POST", "/api/generate", ASK)).status
        return status, len(nodes[0].calls)

    front = played(tmp_path, lambda urls, _: node_config(tmp_path, static=urls), story=story)
    other = played(tmp_path, lambda urls, _: {"url": urls[0], "probe.kind": "none"}, story=story)
    assert front == (200, 1)
    assert (other[0] != 200, other[1]) == (True, 0)


@pytest.mark.key("backends.*.key_file")
def test_key_file_holds_what_nodes_know_their_fronts_by(tmp_path):
    """With another key no node can be used."""
    found = [
        played(tmp_path, lambda urls, _, key=key: node_config(tmp_path, key, static=urls)) for key in ("key", "other")
    ]
    assert found == [(1, 200), (0, 503)]


@pytest.mark.key("backends.*.discover.static")
def test_static_lists_nodes(tmp_path):
    """Each of them is used."""
    found = [
        played(tmp_path, lambda urls, _, most=most: node_config(tmp_path, static=urls[:most]), nodes="abc")
        for most in (1, 3)
    ]
    assert found == [(1, 200), (3, 200)]


@pytest.mark.key("backends.*.discover.dns", "backends.*.discover.port")
def test_dns_and_port_find_nodes_by_a_name(tmp_path):
    """With another port there is nobody."""

    def at(name, port):
        return lambda urls, _: node_config(tmp_path, dns=name, port=port or port_of(urls[0]))

    assert played(tmp_path, at("localhost", None)) == (1, 200)
    assert played(tmp_path, at("127.0.0.1", None)) == (1, 200)
    assert played(tmp_path, at("localhost", 1)) == (0, 503)


@pytest.mark.key("backends.*.discover.endpointslices", "backends.*.discover.api")
def test_endpointslices_are_read_from_the_api_server(tmp_path):
    """Of the service that is named, from the server that is named."""

    def asked(service, is_there=True):
        api = Api([listed(slice_of("s", endpoint("a", "127.0.0.1")))])

        def config(urls, url):
            where = url if is_there else "http://127.0.0.1:1"
            return node_config(tmp_path, endpointslices=service, port=port_of(urls[0]), api=where)

        found = played(tmp_path, config, api=api)
        return found[0], [head.split(b"?")[0] for head in api.heads[:1]]

    path = b"GET /apis/discovery.k8s.io/v1/namespaces/%b/endpointslices"
    assert asked("llm/nodes") == (1, [path % b"llm"])
    assert asked("prod/nodes") == (1, [path % b"prod"])
    assert asked("llm/nodes", is_there=False) == (0, [])


@pytest.mark.key("backends.*.discover.every_s")
def test_every_s_is_the_pause_after_a_failure(tmp_path):
    """An API server that is away for a moment costs this long."""

    async def story(router, _nodes):
        await asyncio.sleep(5)
        return (await get(router.admin_url, "/readyz")).json()["nodes"]["usable"]

    def after(every_s):
        api = Api([503, listed(slice_of("s", endpoint("a", "127.0.0.1")))])
        more = {"endpointslices": "llm/nodes", "every_s": every_s}

        def config(urls, url):
            return node_config(tmp_path, port=port_of(urls[0]), api=url, **more)

        return played(tmp_path, config, story=story, api=api)

    assert [after(1.0), after(30.0)] == [1, 0]


@needs_openssl
@pytest.mark.real_time
@pytest.mark.key("backends.*.discover.tls_name")
async def test_nodes_that_a_name_leads_to_have_certificates_of_tls_name(tmp_path):
    """Whatever their addresses are; a node with another certificate gets neither the key nor a prompt."""
    ours = certificate(tmp_path, names="DNS:nodes.llm")
    for tls_name, expected in (("nodes.llm", 200), ("others.llm", 503)):
        keys = {"ca": str(ours.cert), "discover.tls_name": tls_name}
        async with secured(tmp_path, files(ours), **keys) as (node, front):
            await record(front.admin_url)
            status, _, said = await asked(front)
            assert status == expected, said
            assert bool(node.upstream("/api/generate")) == (expected == 200)
            assert ("certificate" in said) == (expected == 503)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"kind": "node"}, "key_file"),
        ({"kind": "node", "key_file": "k"}, "static, dns or endpointslices"),
        ({"kind": "node", "key_file": "k", "discover.static": ["http://a:1"], "discover.dns": "b"}, "one of static"),
        ({"kind": "node", "key_file": "k", "discover.dns": "b", "url": "http://a:1"}, "without url"),
        ({"kind": "node", "key_file": "k", "discover.dns": "b", "gpus": "none"}, "without gpus"),
        ({"kind": "node", "key_file": "k", "discover.dns": "b", "ca": "c"}, "ca and client_cert together with"),
        ({"kind": "node", "key_file": "k", "discover.static": ["https://a:1"], "discover.tls_name": "b"}, "tls_name"),
        ({"key_file": "k"}, "together with kind: node"),
        ({"discover.dns": "b"}, "together with kind: node"),
        ({"kind": "node", "key_file": "k", "discover.endpointslices": "nodes"}, "such as"),
        ({"kind": "node", "key_file": "k", "discover.dns": "b", "discover.port": 0}, "port"),
        ({"kind": "pool"}, "kind"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, text):
    """The error names what is allowed."""
    with pytest.raises(ConfigError, match=text):
        load_config(env={}, options={f"backends.local.{key}": value for key, value in keys.items()})


def test_a_front_has_no_other_backend(tmp_path):
    """It could not be told whose the cards are. Nor is it a node itself."""
    file = tmp_path / "router.yaml"
    node = "{kind: node, key_file: k, discover: {dns: nodes}}"
    file.write_text(f"backends:\n  pool: {node}\n  desk: {{url: 'http://127.0.0.1:11434'}}\n")
    with pytest.raises(ConfigError, match="only backend"):
        load_config(file, env={})
    (tmp_path / "sha").write_text("0" * 64)
    file.write_text(f"backends:\n  pool: {node}\nnode: {{name: a, key_sha256_file: {tmp_path / 'sha'}}}\n")
    with pytest.raises(ConfigError, match="a front is not a node"):
        load_config(file, env={})


def test_in_no_pod_endpointslices_need_an_api(tmp_path, monkeypatch):
    """The error says so, and does not look for a server."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="no pod of Kubernetes"):
        played(tmp_path, lambda _urls, _: node_config(tmp_path, endpointslices="llm/nodes"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with pytest.raises(ConfigError, match="token of its account"):
        played(tmp_path, lambda _urls, _: node_config(tmp_path, endpointslices="llm/nodes"))
