"""`ollama-router serve` under its signals: reload, stop, stop now; with sockets of systemd, and over TLS."""

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import tempfile
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.certificates import certificate, needs_openssl
from tests.config.keys.play import connect, get, send
from tests.config.keys.process import ASK, START_S, ollama, served
from tests.fakes import RawClient
from tests.http.raw_upstream import STREAM_HEAD, answer, chunk

pytestmark = pytest.mark.real_time

DONE = answer(b'{"response":"a","done":true}')
RELOADED = '"msg":"the configuration was reloaded: '
NOT_RELOADED = "the configuration was not reloaded"


@asynccontextmanager
async def a_stream(config_text, folder):
    """Provide a router with a file, and a client in the middle of an answer that ends when `is_over` is set."""
    file, is_over = folder / "router.yaml", asyncio.Event()
    file.write_text(config_text)

    async def script(visit):
        await visit.say(STREAM_HEAD + chunk(b'{"response":"a"}\n'))
        await is_over.wait()
        await visit.say(chunk(b'{"response":"b","done":true}\n') + chunk(b""))

    async with ollama(script) as upstream, served(upstream.url, folder, file=file) as router, asyncio.timeout(START_S):
        raw = await connect(router.url)
        await raw.send(ASK)
        await raw.reader.readuntil(b'"a"')
        yield router, file, raw, is_over
        raw.close()


async def test_a_reload_fails_no_request_d3(tmp_path):
    """An answer under way ends as it would, requests meanwhile are served, and the new configuration holds."""
    async with a_stream("telemetry: { headers: true }", tmp_path) as (router, file, raw, is_over):
        assert "x-request-id" in (await get(router.url, "/")).headers
        file.write_text("telemetry: { headers: false }")
        router.reload()
        waits = asyncio.ensure_future(router.says(RELOADED))
        statuses = set()
        while not waits.done():
            statuses.add((await get(router.url, "/")).status)
        assert statuses == {200}
        assert "x-request-id" not in (await get(router.url, "/")).headers
        is_over.set()
        assert b'"b"' in await raw.reader.read()
        router.stop()
        assert await router.process.wait() == 0


async def test_a_broken_configuration_is_not_taken_d4(tmp_path):
    """The log names file, line and key; what serves goes on, and takes the next one that is right."""
    async with a_stream("telemetry: { headers: true }", tmp_path) as (router, file, raw, is_over):
        for text, why in (("queue:\n  wait_s: no\n", "router.yaml:2: queue.wait_s"), ("a: [", "router.yaml")):
            file.write_text(text)
            router.reload()
            line = json.loads(await router.says(NOT_RELOADED))
            assert why in line["msg"] and line["level"] == "error"
        assert (await get(router.url, "/")).status == 200
        is_over.set()
        await raw.reader.readuntil(b'"b"')
        file.write_text("telemetry: { headers: false }")
        router.reload()
        await router.says(RELOADED)
        assert "x-request-id" not in (await get(router.url, "/")).headers


async def test_a_reload_takes_the_size_of_the_logs_buffer(tmp_path):
    """Of a reader that stalls: with a small one lines are dropped."""
    file = tmp_path / "router.yaml"
    file.write_text("telemetry: { log_buffer_bytes: 9000000 }")
    async with ollama(DONE) as upstream, served(upstream.url, tmp_path, file=file) as router, asyncio.timeout(START_S):
        file.write_text("telemetry: { log_buffer_bytes: 9000 }")
        router.reload()
        await router.says(RELOADED)
        router.process.stderr._transport.pause_reading()
        raw = await connect(router.url)
        for _ in range(400):
            await raw.ask("POST", "/api/generate", json.dumps({"model": "m" * 600, "prompt": "hi"}))
        raw.close()
        router.process.stderr._transport.resume_reading()
        router.stop()
        assert any("dropped" in text for text in await router.log())


async def test_many_reloads_leave_nothing_behind(tmp_path):
    """Neither descriptors nor threads nor listening sockets."""
    async with ollama(DONE) as upstream, served(upstream.url, tmp_path) as router, asyncio.timeout(START_S):
        pid, counts = router.process.pid, []
        for _ in range(8):
            router.reload()
            await router.says(RELOADED)
            await asyncio.sleep(0.3)
            counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        assert counts[-1] <= counts[1] + 1
        assert (await get(router.url, "/")).status == 200


async def test_a_signal_during_the_start_kills_nothing():
    """SIGHUP while Ollama hangs: the router serves on, and SIGTERM ends it at once."""

    async def hangs(visit):
        await visit.gone()

    async with ollama(hangs) as upstream, asyncio.timeout(START_S):
        argv = [sys.executable, "-m", "router", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        env = {
            **os.environ,
            "OLLAMA_ROUTER_STORE__PATH": ":memory:",
            "OLLAMA_ROUTER_BACKENDS__LOCAL__PROBE__KIND": "none",
        }
        process = await asyncio.create_subprocess_exec(
            *argv, "--upstream", upstream.url.replace("127.0.0.1", "127.0.0.2"), env=env, stderr=asyncio.subprocess.PIPE
        )
        while b"listens on" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.5)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_second_signal_hastens_the_end(tmp_path):
    """The first one lets an answer go on for an hour, the second one ends it in a well-formed way."""
    async with a_stream("timeouts: { shutdown_s: 1h }", tmp_path) as (router, _file, raw, _is_over):
        router.stop()
        await asyncio.sleep(0.5)
        assert router.process.returncode is None
        router.stop()
        rest = await raw.reader.read()
        assert b'{"error":' in rest and rest.endswith(b"0\r\n\r\n")
        assert await router.process.wait() == 0


# --- sockets of systemd ----------------------------------------------------------------------------------------------

ACTIVATE = """
import os, sys
for at, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 3 + at)
    os.set_inheritable(3 + at, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(at + 1), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


@asynccontextmanager
async def activated(upstream, folder, sockets, names):
    """Run a router with the given sockets, as systemd passes them."""
    numbers = ",".join(str(sock.fileno() + 0) for sock in sockets)
    runner = (sys.executable, "-c", ACTIVATE, numbers, names)
    fds = tuple(sock.fileno() for sock in sockets)
    async with served(upstream, folder, runner=runner, fds=fds, options=()) as router:
        yield router


async def test_sockets_of_systemd_are_used(tmp_path):
    """Connections made before the start are served; no address is bound; a reload keeps them."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        for sock in (first, second):  # not numbers that the copies get
            os.set_inheritable(sock.fileno(), True)
        raw = await RawClient.to(first.getsockname()[1])
        async with ollama(DONE) as upstream, asyncio.timeout(START_S):
            high = [socket.socket(fileno=os.dup(sock.fileno())) for sock in (first, second)]
            async with activated(upstream.url, tmp_path, high, "clients:admin") as router:
                assert urlsplit(router.url).port == first.getsockname()[1]
                assert (await raw.ask("GET", "/")).status == 200
                admin = f"http://127.0.0.1:{second.getsockname()[1]}"
                assert (await get(admin, "/healthz")).status == 200
                router.reload()
                await router.says(RELOADED)
                assert (await get(router.url, "/")).status == 200
            raw.close()
            for sock in high:
                sock.close()


async def test_a_socket_of_systemd_beyond_loopback_gives_no_rights(tmp_path):
    """Its address decides what clients may, not the configured one."""
    with socket.create_server(("0.0.0.0", 0)) as first:
        async with ollama(DONE) as upstream, asyncio.timeout(START_S):
            high = socket.socket(fileno=os.dup(first.fileno()))
            async with activated(upstream.url, tmp_path, [high], "clients") as router:
                url = f"http://127.0.0.1:{urlsplit(router.url).port}"
                assert (await send(url, "POST", "/api/pull", {"model": "m"})).status == 403
            high.close()


@pytest.mark.parametrize("kind", ["datagrams", "not listening", "no socket"])
async def test_a_descriptor_that_is_no_listening_socket_is_one_clear_line(kind):
    """Exit code 2, and no traceback."""
    with tempfile.TemporaryFile() as file, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        fd = {"datagrams": udp, "not listening": tcp, "no socket": file}[kind].fileno()
        argv = [sys.executable, "-c", ACTIVATE, str(fd), "clients", sys.executable, "-m", "router", "serve"]
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE, pass_fds=(fd,))
        _, text = await process.communicate()
        assert process.returncode == 2
        (line,) = text.decode().splitlines()
        assert line.startswith("LISTEN_FDS: descriptor 3 (clients): found ")
        assert "allowed: a TCP socket that listens" in line


# --- TLS -------------------------------------------------------------------------------------------------------------


async def secret_client(url, context):
    where = urlsplit(url)
    return RawClient(*await asyncio.open_connection(where.hostname, where.port, ssl=context))


@needs_openssl
async def test_a_reload_reads_the_certificate_again(tmp_path):
    """A connection under way goes on; the next one sees the new certificate. A broken one is not taken."""
    first, second = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(first.cert.read_bytes())
    key.write_bytes(first.key.read_bytes())
    file = tmp_path / "router.yaml"
    file.write_text(f"tls: {{ cert: {cert}, key: {key} }}")
    async with ollama(DONE) as upstream, served(upstream.url, tmp_path, file=file) as router, asyncio.timeout(START_S):
        assert router.url.startswith("https://127.0.0.1:")
        raw = await secret_client(router.url, first.trusting())
        assert (await raw.ask("GET", "/")).status == 200
        cert.write_bytes(second.cert.read_bytes())
        router.reload()
        assert "found no certificate with its key" in await router.says(NOT_RELOADED)
        assert (await raw.ask("GET", "/")).status == 200
        key.write_bytes(second.key.read_bytes())
        router.reload()
        await router.says(RELOADED)
        with pytest.raises(ssl.SSLError):
            await secret_client(router.url, first.trusting())
        other = await secret_client(router.url, second.trusting())
        assert (await other.ask("POST", "/api/generate", json.dumps({"model": "m", "prompt": "hi"}))).status == 200
        raw.close()
        other.close()


async def refuses(url):
    """Wait until connections to `url` are refused."""
    while True:
        try:
            (await connect(url)).close()
        except ConnectionRefusedError:
            return True
        await asyncio.sleep(0.05)


async def test_a_reload_to_an_address_that_is_taken_is_not_taken(tmp_path):
    """The log says so, and the address before is served on."""
    file = tmp_path / "router.yaml"
    file.write_text("listen: 127.0.0.1:0")
    async with ollama(DONE) as upstream, asyncio.timeout(START_S):
        async with served(upstream.url, tmp_path, file=file, options=()) as router:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                file.write_text(f"listen: 127.0.0.1:{taken.getsockname()[1]}")
                router.reload()
                line = await router.says(NOT_RELOADED)
                assert "address already in use" in line and "listen cannot be changed to an address" in line
            assert (await get(router.url, "/")).status == 200
            router.reload()
            line = await router.says("listens on")
            assert router.url not in line
            await router.says(RELOADED)
            assert await refuses(router.url)


async def test_what_a_reload_cannot_change_is_said_by_name(tmp_path):
    """The command line holds over the file: once it is said, when the file has another value than before."""
    file = tmp_path / "router.yaml"
    file.write_text("listen: 127.0.0.1:11435\nqueue: { wait_s: 5 }")
    said = "a reload does not change listen: the command line"
    async with ollama(DONE) as upstream, served(upstream.url, tmp_path, file=file) as router, asyncio.timeout(START_S):
        url = router.url
        file.write_text("listen: 127.0.0.1:11499\nqueue: { wait_s: 6 }")
        router.reload()
        assert '"level":"warning"' in await router.says(said)
        await router.says(RELOADED)
        assert (await get(url, "/")).status == 200
        router.reload()
        await router.says(RELOADED)
        assert sum(said.encode() in line for line in router.lines) == 1
