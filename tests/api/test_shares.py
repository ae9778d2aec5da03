"""What one client may have of the connections for lists."""

import asyncio
from ipaddress import ip_network

import pytest

from router.api.settings import EdgeSettings
from router.http.client.pool import HttpRelay
from router.http.server.proxies import Proxies
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.raw_upstream import answer, raw_upstream


@pytest.mark.real_time
async def test_clients_behind_a_trusted_proxy_have_shares_of_their_own() -> None:
    """Lists that hang for one of them hold up nobody else."""

    async def script(visit):
        if len(visit.upstream.requests) <= 2:
            await visit.gone()
        await answer(b'{"models":[]}')(visit)

    settings = EdgeSettings(lists_per_address=2, proxies=Proxies((ip_network("127.0.0.1"),)))
    async with raw_upstream(script) as upstream, asyncio.timeout(20):
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), settings) as running:
            hanging = [await RawClient.to(running.port) for _ in range(3)]
            for raw in hanging:
                await raw.send(request_bytes("GET", "/api/tags", headers=[("X-Forwarded-For", "10.0.0.1")]))
            while len(upstream.requests) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            async with client(running.port) as raw:
                await raw.send(request_bytes("GET", "/api/tags", headers=[("X-Forwarded-For", "10.0.0.2")]))
                assert (await raw.reply()).status == 200
            for raw in hanging:
                raw.close()
