"""The keys that only `ollama-router serve` reads: how long it takes to stop, and what it logs."""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress

import pytest

from router.app import running
from router.config import effective, load_config
from tests.certificates import certificate, needs_openssl
from tests.config.keys.play import connect, get, in_force, send
from tests.config.keys.process import ASK, ROOT, START_S, ollama, served
from tests.fakes import RawClient, request_bytes
from tests.http.raw_upstream import STREAM_HEAD, answer, chunk

pytestmark = pytest.mark.real_time


@pytest.mark.key("timeouts.shutdown_s")
async def test_an_answer_under_way_may_go_on_for_shutdown_s(tmp_path):
    """Two routers are stopped in the middle of one: the one with little time cuts it, the other one lets it end."""
    is_cut = asyncio.Event()

    async def script(visit):
        await visit.say(STREAM_HEAD + chunk(b'{"response":"a"}\n'))
        await is_cut.wait()
        await visit.say(chunk(b'{"response":"b","done":true}\n') + chunk(b""))

    async with ollama(script) as upstream, AsyncExitStack() as stack, asyncio.timeout(START_S):
        starting = (served(upstream.url, tmp_path, TIMEOUTS__SHUTDOWN_S=grace) for grace in ("100ms", "1h"))
        hasty, patient = await asyncio.gather(*map(stack.enter_async_context, starting))
        clients = [await connect(router.url) for router in (hasty, patient)]
        for raw, router in zip(clients, (hasty, patient), strict=True):
            await raw.send(ASK)
            await raw.reader.readuntil(b'"a"')
            router.stop()
        cut = await clients[0].reader.read()
        is_cut.set()
        whole = await clients[1].reader.read()
        for raw in clients:
            raw.close()
        assert (b'"b"' in cut, b'"b"' in whole) == (False, True)
        assert await hasty.process.wait() == await patient.process.wait() == 0


@pytest.mark.key("telemetry.log_level")
async def test_log_level_says_what_is_logged(tmp_path):
    """The end of a request counts as info, that no memory can be read as a warning."""
    script = answer(b'{"response":"a","done":true}')
    async with ollama(script) as upstream, AsyncExitStack() as stack, asyncio.timeout(START_S):
        starting = (served(upstream.url, tmp_path, TELEMETRY__LOG_LEVEL=level) for level in ("info", "warning"))
        logs = []
        for router in await asyncio.gather(*map(stack.enter_async_context, starting)):
            raw = await connect(router.url)
            await raw.send(ASK)
            await raw.reader.readuntil(b'"a"')
            raw.close()
            router.stop()
            logs.append(await router.log())
    everything, warnings = logs
    assert {"request", "Ollama answers", warnings[0]} <= set(everything)
    assert [text[:30] for text in warnings] == ["free VRAM cannot be read: each"]


async def ask_often(url, times):
    raw = await connect(url)
    for _ in range(times):
        await raw.ask("POST", "/api/generate", json.dumps({"model": "m" * 600, "prompt": "hi"}))
    raw.close()


@pytest.mark.key("telemetry.log_buffer_bytes")
async def test_a_reader_of_the_log_that_stalls_loses_what_exceeds_log_buffer_bytes(tmp_path):
    """It stops no request, and not the end; what it missed is counted."""
    script = answer(b'{"response":"a","done":true}')
    async with ollama(script) as upstream, AsyncExitStack() as stack, asyncio.timeout(START_S):
        starting = (served(upstream.url, tmp_path, TELEMETRY__LOG_BUFFER_BYTES=size) for size in ("9000", "9000000"))
        texts = []
        for router in await asyncio.gather(*map(stack.enter_async_context, starting)):
            router.process.stderr._transport.pause_reading()
            await ask_often(router.url, 400)
            router.process.stderr._transport.resume_reading()
            router.stop()
            texts.append(await router.log())
            assert await router.process.wait() == 0
    few, everything = ([text for text in texts_of if text == "request"] for texts_of in texts)
    assert len(few) < len(everything) == 400
    assert [any("dropped" in text for text in found) for found in texts] == [True, False]


async def test_a_log_that_nobody_reads_stops_neither_requests_nor_the_end(tmp_path):
    """The pipe is full, and SIGTERM ends the router all the same."""
    script = answer(b'{"response":"a","done":true}')
    async with ollama(script) as upstream, asyncio.timeout(START_S), served(upstream.url, tmp_path) as router:
        router.process.stderr._transport.pause_reading()
        await ask_often(router.url, 400)
        router.stop()
        while router.process.returncode is None:  # noqa: ASYNC110 - `wait` waits for the pipe, too
            await asyncio.sleep(0.01)
        router.process.stderr._transport.resume_reading()
        assert b'"msg":"request"' in await router.process.stderr.read()
        assert router.process.returncode == 0


async def test_a_full_disk_under_the_log_ends_nothing(tmp_path):
    """`2>/dev/full`: requests are served, and the exit is clean."""
    script = answer(b'{"response":"a","done":true}')
    async with ollama(script) as upstream, asyncio.timeout(START_S):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        argv = [sys.executable, "-m", "router", "serve", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OLLAMA_ROUTER_STORE__PATH": ":memory:"}
        full = os.open("/dev/full", os.O_WRONLY)
        argv += ["--upstream", upstream.url]
        process = await asyncio.create_subprocess_exec(*argv, env=env, stderr=full, cwd=tmp_path)
        os.close(full)
        try:
            while True:
                try:
                    await ask_often(f"http://127.0.0.1:{port}", 20)
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()


@needs_openssl
@pytest.mark.key("tls.cert", "tls.key")
async def test_clients_see_the_certificate_in_cert_with_the_key_in_key(tmp_path):
    """Without one they speak in the clear. A file with both needs no other one for the key."""
    made = certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(made.cert.read_bytes() + made.key.read_bytes())
    keys = {}, {"TLS__CERT": str(made.cert), "TLS__KEY": str(made.key)}, {"TLS__CERT": str(both)}
    async with ollama(answer(b"{}")) as upstream, AsyncExitStack() as stack, asyncio.timeout(START_S):
        starting = (served(upstream.url, tmp_path, **config) for config in keys)
        plain, *secret = await asyncio.gather(*map(stack.enter_async_context, starting))
        assert plain.url.startswith("http:")
        assert (await get(plain.url, "/")).status == 200
        for router in secret:
            port = int(router.url.removeprefix("https://127.0.0.1:"))
            raw = RawClient(*await asyncio.open_connection("127.0.0.1", port, ssl=made.trusting()))
            assert (await raw.ask("GET", "/")).status == 200
            raw.close()


@needs_openssl
@pytest.mark.key("tls.admin")
async def test_the_admin_address_has_tls_if_admin_says_so_or_it_is_beyond_loopback(tmp_path):
    """On loopback, where health checks and scrapers ask in the clear, it has none unless it is told to."""
    made = certificate(tmp_path)

    async def scheme(admin, value):
        options = {"tls.cert": str(made.cert), "tls.key": str(made.key), "admin": admin, "tls.admin": value}
        options |= {"listen": "127.0.0.1:0", "store.path": ":memory:", "backends.local.probe.kind": "none"}
        config = load_config(env={}, options=options | {"backends.local.url": "http://127.0.0.1:9"})
        async with running(config) as router:
            in_force.append(effective(config))
            scheme = router.admin_url.partition(":")[0]
            tls = {"ssl": made.trusting()} if scheme == "https" else {}
            raw = RawClient(*await asyncio.open_connection("127.0.0.1", router.admin.port, **tls))
            assert (await raw.ask("GET", "/healthz")).status == 200
            raw.close()
            return scheme

    for admin, expected in (("127.0.0.1:0", ["http", "https", "http"]), ("0.0.0.0:0", ["https", "https", "http"])):
        assert [await scheme(admin, value) for value in (None, True, False)] == expected


@needs_openssl
@pytest.mark.key("tls.client_ca")
async def test_nobody_connects_without_a_certificate_of_client_ca(tmp_path):
    """Nor with one of somebody else; without the key everybody does."""
    made, known, other = (certificate(tmp_path, name) for name in ("server", "known", "other"))

    async def status(client_ca, shown):
        options = {"tls.cert": str(made.cert), "tls.key": str(made.key), "tls.client_ca": client_ca}
        options |= {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}
        options |= {"backends.local.probe.kind": "none", "backends.local.url": "http://127.0.0.1:9"}
        config = load_config(env={}, options=options)
        async with running(config) as router:
            in_force.append(effective(config))
            with suppress(OSError, EOFError):
                tls = made.trusting(shown)
                raw = RawClient(*await asyncio.open_connection("127.0.0.1", router.clients.port, ssl=tls))
                return (await raw.ask("GET", "/")).status
            return None

    ca = str(known.cert)
    cases = (None, None), (None, other), (ca, known), (ca, None), (ca, other)
    assert [await status(*case) for case in cases] == [200, 200, 200, None, None]


async def test_no_secret_of_a_url_is_in_the_log(tmp_path):
    """Not of the probe's page, of an origin, or of a model's name; nor in the state."""
    script = answer(b'{"error":"cannot pull https://u:s3cret@reg/x"}', status=b"500 no")
    page = "http://u:s3cret@127.0.0.1:9/metrics?token=s3cret"
    probe = {"BACKENDS__LOCAL__PROBE__KIND": "prometheus", "BACKENDS__LOCAL__PROBE__URL": page}
    async with ollama(script) as upstream, served(upstream.url, tmp_path, **probe) as router, asyncio.timeout(START_S):
        for origin in ("http://u:s3cret@evil.example", "http://evil.example?password=s3cret"):
            assert (await get(router.url, "/api/tags", [("Origin", origin)])).status == 403
        await send(router.url, "POST", "/api/pull", {"model": "https://u:s3cret@reg.example/a/b"})
        await send(router.url, "POST", "/api/generate", {"model": "https://u:s3cret@reg.example/a/b", "prompt": "a"})
        await get(router.url, "/nowhere/http://u:s3cret@host?token=s3cret")
        router.stop()
        lines = [*router.lines, *(await router.process.stderr.read()).splitlines()]
        text = b"\n".join(lines).decode()
        assert "did not answer" in text or "cannot be read" in text
        assert "evil.example" in text
        assert "s3cret" not in text


FORWARDED = ("X-Forwarded-For", "198.51.100.1, 203.0.113.7")


async def clients_in_the_log(router):
    """The address of each client in the log of a router to whom a refused and an answered request were sent."""
    raw = await connect(router.url)
    await raw.send(request_bytes("POST", "/api/chat", "{", [FORWARDED]))
    assert (await raw.reply()).status == 400
    await raw.send(ASK.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.8\r\n\r\n"))
    assert (await raw.reply()).status == 200
    raw.close()
    router.stop()
    lines = [json.loads(line) for line in (await router.process.stderr.read()).splitlines() if line.startswith(b"{")]
    return [line.get("client", "") for line in lines if line["msg"] == "request"]


@pytest.mark.key("trusted_proxies")
async def test_x_forwarded_for_of_trusted_proxies_is_believed_e7(tmp_path):
    """In the lines of refused and of answered requests; of anybody else it is not."""
    values = ("[127.0.0.1]", "['127.0.0.0/8', '::1']", "[10.0.0.0/8]", "[]")
    async with ollama(answer(b'{"response":"a","done":true}')) as upstream, asyncio.timeout(START_S):
        async with AsyncExitStack() as stack:
            starting = (served(upstream.url, tmp_path, TRUSTED_PROXIES=value) for value in values)
            routers = await asyncio.gather(*map(stack.enter_async_context, starting))
            found = [await clients_in_the_log(router) for router in routers]
    assert found == [["203.0.113.7", "203.0.113.8"]] * 2 + [["127.0.0.1", "127.0.0.1"]] * 2


@pytest.mark.key("proxy_protocol")
async def test_connections_of_trusted_proxies_begin_with_a_proxy_header(tmp_path):
    """Then its address is the client's; without proxy_protocol the header is a bad request."""
    header = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 80\r\n"
    async with ollama(answer(b'{"response":"a","done":true}')) as upstream, asyncio.timeout(START_S):
        async with AsyncExitStack() as stack:
            trusted = {"TRUSTED_PROXIES": "[127.0.0.1]"}
            starting = (served(upstream.url, tmp_path, PROXY_PROTOCOL=value, **trusted) for value in ("true", "false"))
            routers = await asyncio.gather(*map(stack.enter_async_context, starting))
            raw = await connect(routers[0].url)
            await raw.send(header + request_bytes("POST", "/api/chat", "{"))
            assert (await raw.reply()).status == 400
            raw.close()
            routers[0].stop()
            assert '"client":"203.0.113.9"' in await routers[0].says('"request"')
            raw = await connect(routers[1].url)
            await raw.send(header + request_bytes("GET", "/"))
            assert (await raw.reply()).status == 400
            raw.close()


@pytest.mark.key("telemetry.log_fields")
async def test_a_requests_line_has_the_fields_in_log_fields(tmp_path):
    """In their order, for answered and refused requests; other lines are as they were."""
    async with ollama(answer(b'{"response":"a","done":true}')) as upstream, asyncio.timeout(START_S):
        async with AsyncExitStack() as stack:
            values = ("[client, method, route, status, duration_ms]", "[]")
            starting = (served(upstream.url, tmp_path, TELEMETRY__LOG_FIELDS=value) for value in values)
            found = []
            for router in await asyncio.gather(*map(stack.enter_async_context, starting)):
                raw = await connect(router.url)
                await raw.send(ASK + request_bytes("POST", "/api/pull", "{"))
                assert [(await raw.reply()).status for _ in range(2)] == [200, 400]
                raw.close()
                router.stop()
                lines = [json.loads(line) for line in (await router.process.stderr.read()).splitlines()]
                found.append([line for line in lines if "route" in line])
    few, everything = found
    assert sorted(line["route"] for line in few) == ["/api/generate", "/api/pull"]
    assert all(list(line) == ["client", "method", "route", "status", "duration_ms"] for line in few)
    assert all(line["client"] == "127.0.0.1" and "request_id" in line for line in everything)
