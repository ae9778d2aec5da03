"""A raw HTTP client that sends recorded requests byte for byte and returns responses with their framing."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Reply:
    """A response: `chunks` of a chunked body, or `body`. `framing`: none, length, chunked or close."""

    status: int = 0
    reason: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    framing: str = "none"
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    closed: bool = False
    incomplete: bool = False

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


def request_bytes(request: dict[str, Any], authority: str, prefix: str = "") -> list[bytes]:
    """Return the pieces to send. Host and absolute targets that name the recorded server are changed to `authority`.

    `prefix` is a path prefix that the recorder removed from the request.
    """
    if "raw" in request:
        return [request["raw"].encode("latin-1")]
    body = request_body(request)
    target = request["target"].replace("http://127.0.0.1:11500", f"http://{authority}").removeprefix(prefix)
    lines = [f"{request['method']} {target} {request.get('http', 'HTTP/1.1')}"]
    for name, value in request["headers"]:
        if name == "X-Big":
            value = "a" * 1_100_000
        lines.append(f"{name}: {_pointed(name, value, authority)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if "body_omitted" in request:
        count = int(request["body_omitted"].split()[0])
        return [head, *(b"8000\r\n" + b"\0" * 32768 + b"\r\n" for _ in range(count)), b"0\r\n\r\n"]
    if "chunks" in request:
        pieces = [f"{len(c['text'].encode()):x}\r\n{c['text']}\r\n".encode() for c in request["chunks"]]
        return [head, *pieces, b"0\r\n\r\n"]
    return [head + body]


def _pointed(name: str, value: str, authority: str) -> str:
    if name.lower() == "host" or name == "Origin":
        return value.replace("127.0.0.1:11500", authority)
    return value


def request_body(request: dict[str, Any]) -> bytes:
    """Return the body of a recorded request."""
    if "body" in request:
        return str(request["body"]).encode()
    if "body_b64" in request:
        return base64.b64decode(request["body_b64"])
    if "body_repeat" in request:
        parts = request["body_repeat"]
        return (parts["prefix"] + parts["unit"] * parts["count"] + parts["suffix"]).encode()
    return b""


class Client:
    """One connection for one recorded step."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self.prefix = prefix
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80

    async def exchange(self, step: dict[str, Any], hang_up_after_s: float | None = None) -> Reply | None:
        """Send a step's request and read the response, None if there is none."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
        try:
            request = step["request"]
            for number, piece in enumerate(request_bytes(request, f"{self.host}:{self.port}", self.prefix)):
                if number > 1 and "chunks" in request:
                    await asyncio.sleep(0.1)
                writer.write(piece)
            await writer.drain()
            if "half close" in json.dumps(step.get("label") or "") or _is_short(request):
                writer.write_eof()
            reading = self._read(reader, request)
            if hang_up_after_s is None:
                return await asyncio.wait_for(reading, 120)
            return await _until(reading, hang_up_after_s)
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, request: dict[str, Any]) -> Reply | None:
        method = request.get("method") or request["raw"].split(" ", 1)[0]
        count = request.get("raw", "").count("HTTP/1.1\r\n") if "raw" in request else 1
        reply: Reply | None = None
        for _ in range(max(1, count)):
            reply = await read_reply(reader, method)
        if reply is not None and not reply.closed:
            reply.closed = await _is_closed(reader, reply)
        return reply


def _is_short(request: dict[str, Any]) -> bool:
    """Whether a raw request's body is shorter than its Content-Length: the recorder half closed the connection then."""
    raw = request.get("raw", "")
    head, _, body = raw.partition("\r\n\r\n")
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and value.strip().isdigit():
            return int(value) > len(body)
    return False


async def _until(reading: Any, after_s: float) -> Reply | None:
    """Return the response if it arrives within `after_s`, when the client hangs up; else None."""
    task = asyncio.ensure_future(reading)
    done, _ = await asyncio.wait({task}, timeout=after_s)
    if not done:
        task.cancel()
        return None
    return task.result()  # type: ignore[no-any-return]


async def _is_closed(reader: asyncio.StreamReader, reply: Reply) -> bool:
    if reply.framing == "close":
        return True
    wants = reply.header("Connection").lower() == "close"
    try:
        data = await asyncio.wait_for(reader.read(1), 0.05 if not wants else 2)
    except TimeoutError:
        return False
    return data == b""


async def read_reply(reader: asyncio.StreamReader, method: str) -> Reply | None:
    """Read one response; interim ones are skipped."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None
            raise
        lines = head.decode("latin-1").split("\r\n")[:-2]
        parts = lines[0].split(" ", 2)
        status, reason = parts[1], parts[2] if len(parts) > 2 else ""
        if not status.startswith("1"):
            break
    pairs = [line.split(": ", 1) if ": " in line else [line.rstrip(":"), ""] for line in lines[1:]]
    reply = Reply(int(status), reason, [(name, value) for name, value in pairs])
    if method == "HEAD" or reply.status in (204, 304):
        return reply
    if reply.header("Transfer-Encoding") == "chunked":
        await _read_chunks(reader, reply)
    elif reply.header("Content-Length"):
        reply.framing = "length"
        reply.body = await reader.readexactly(int(reply.header("Content-Length")))
    else:
        reply.framing, reply.closed = "close", True
        reply.body = await reader.read()
    return reply


async def _read_chunks(reader: asyncio.StreamReader, reply: Reply) -> None:
    reply.framing = "chunked"
    while True:
        try:
            size = int(await reader.readline() or b"x", 16)
            data = await reader.readexactly(size)
            await reader.readline()
        except (ValueError, asyncio.IncompleteReadError):
            reply.incomplete = True
            return
        if size == 0:
            return
        reply.chunks.append(data)
