"""One HTTP request: its head parsed by the rules of net/http, its body read on demand."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote_to_bytes

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
VERSION = re.compile(rb"HTTP/(\d)\.(\d)")
ERROR_HEADERS = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Seen:
    """A record of one request. Times are the loop's; `closed_at_s`: when its connection ended."""

    method: str
    target: str
    path: str
    headers: list[tuple[str, str]]
    connection: int
    at_s: float
    body: bytes = b""
    model: str = ""
    status: int = 0
    chunks: int = 0
    is_finished: bool = False
    cancelled_at_s: float | None = None
    closed_at_s: float | None = None

    def header(self, name: str) -> str:
        """Return the value of the first header of that name, or ""."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class Transport(Protocol):
    """The transport as a fault uses it."""

    def close(self) -> None: ...


class Connection(Protocol):
    """The client's connection as requests and responses use it."""

    buffer: bytearray
    closed_at_s: float | None
    number: int
    records: deque[Seen]

    @property
    def transport(self) -> Transport: ...

    @property
    def has_left(self) -> bool: ...

    async def fill(self) -> bool: ...

    async def write(self, data: bytes) -> None: ...

    def body_ended(self) -> None: ...

    def reset(self) -> None: ...


class BadHead(Exception):
    """A head that net/http refuses; `answer` is the response that it sends, after which it closes."""

    def __init__(self, reason: str, body: str | None = None) -> None:
        super().__init__(reason)
        self.answer = f"HTTP/1.1 {reason}{ERROR_HEADERS}{reason if body is None else body}".encode()


def bad(text: str) -> BadHead:
    """Return a 400 with net/http's own text."""
    return BadHead(f"400 Bad Request: {text}")


class Request:
    """A request. `path` is decoded once, `query` raw. `remaining`: body bytes not read yet, −1 = chunked."""

    def __init__(self, method: str, target: str, version: tuple[int, int], headers: list[tuple[str, str]]) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.host = ""
        self.path = ""
        self.raw_path = ""
        self.query = ""
        self.remaining = 0
        self.body: bytes | None = None
        self.is_body_complete = True
        self.read_error = ""
        self.connection: Connection
        self.awaits_continue = False

    def header(self, name: str, default: str = "") -> str:
        """Return the value of the first header of that name, or ""."""
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), default)

    @property
    def wants_close(self) -> bool:
        """Whether the connection ends after this request: the client said so, or is HTTP/1.0 without keep-alive."""
        tokens = {part.strip().lower() for part in self.header("Connection").split(",")}
        return "close" in tokens or (self.version < (1, 1) and "keep-alive" not in tokens)

    async def read(self) -> bytes:
        """Read the whole body. If it ends early, return what was received and clear `is_body_complete`."""
        if self.body is None:
            if self.awaits_continue and self.version >= (1, 1):
                self.awaits_continue = False
                await self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.body = await (self._chunked() if self.remaining < 0 else self._sized())
            if self.is_body_complete:
                self.connection.body_ended()
        return self.body

    async def _sized(self) -> bytes:
        parts = []
        while self.remaining:
            buffer = self.connection.buffer
            if not buffer and not await self.connection.fill():
                self.is_body_complete = False
                break
            piece = bytes(buffer[: self.remaining])
            del buffer[: len(piece)]
            self.remaining -= len(piece)
            parts.append(piece)
        return b"".join(parts)

    async def _chunked(self) -> bytes:
        parts: list[bytes] = []
        while True:
            line = await self._line()
            size = int(line.split(b";")[0].strip() or b"x", 16) if line is not None and _is_hex(line) else None
            if size is None:
                self.is_body_complete = False
                self.read_error = "invalid byte in chunk length" if line is not None else ""
                return b"".join(parts)
            if size == 0:
                while (trailer := await self._line()) not in (b"", None):
                    del trailer
                self.remaining = 0
                return b"".join(parts)
            self.remaining = size
            parts.append(await self._sized())
            if not self.is_body_complete:
                return b"".join(parts)
            await self._line()
            self.remaining = -1

    async def _line(self) -> bytes | None:
        buffer = self.connection.buffer
        while (end := buffer.find(b"\n")) < 0:
            if not await self.connection.fill():
                return None
        line = bytes(buffer[:end]).rstrip(b"\r")
        del buffer[: end + 1]
        return line


def _is_hex(line: bytes) -> bool:
    return re.fullmatch(rb"[0-9a-fA-F]{1,16}", line.split(b";")[0].strip()) is not None


def parse_head(head: bytes, connection: Connection) -> Request:
    """Parse the request line and headers. Raises BadHead where net/http refuses them."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    parts = lines[0].split(b" ")
    if len(parts) < 3 or not TOKEN.fullmatch(parts[0]):
        raise BadHead("400 Bad Request")
    method, target, proto = parts[0], b" ".join(parts[1:-1]), parts[-1]
    match = VERSION.fullmatch(proto)
    if match is None or not target or b" " in target:
        raise BadHead("400 Bad Request")
    request = Request(method.decode(), target.decode("latin-1"), (int(match[1]), int(match[2])), _headers(lines[1:]))
    request.connection = connection
    _check_host(request)
    _split_target(request, target)
    return request


def _headers(lines: list[bytes]) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    for line in lines:
        if line[:1] in b" \t" and line and headers:
            name, value = headers[-1]
            headers[-1] = (name, f"{value} {line.strip().decode('latin-1')}")
            continue
        name_bytes, colon, value_bytes = line.partition(b":")
        if not colon or not name_bytes:
            raise BadHead("400 Bad Request")
        if not TOKEN.fullmatch(name_bytes):
            raise bad("invalid header name")
        value_bytes = value_bytes.strip(b" \t")
        if any((byte < 0x20 and byte != 9) or byte == 0x7F for byte in value_bytes):
            raise BadHead("400 Bad Request")
        headers.append((name_bytes.decode(), value_bytes.decode("latin-1")))
    return headers


def _check_host(request: Request) -> None:
    hosts = [value for key, value in request.headers if key.lower() == "host"]
    if request.method == "PRI":
        raise BadHead("400 Bad Request")
    if request.version[0] != 1:
        raise BadHead("505 HTTP Version Not Supported: unsupported protocol version")
    if len(hosts) > 1:
        raise BadHead("400 Bad Request")
    if not hosts and request.version >= (1, 1):
        raise bad("missing required Host header")
    if hosts and re.search(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]", hosts[0]):
        raise bad("malformed Host header")
    request.host = hosts[0] if hosts else ""


def _split_target(request: Request, target: bytes) -> None:
    if request.method == "CONNECT" and not target.startswith(b"/"):
        request.host, target = target.decode("latin-1"), b""
    elif not target.startswith(b"/") and target != b"*":
        scheme, separator, rest = target.partition(b"://")
        if not separator or not scheme:
            raise BadHead("400 Bad Request")
        authority, slash, path = rest.partition(b"/")
        request.host = authority.decode("latin-1")
        target = slash + path
    path, _, query = target.partition(b"?")
    if re.search(rb"%(?![0-9a-fA-F]{2})", path) or any(byte < 0x21 or byte == 0x7F for byte in path):
        raise BadHead("400 Bad Request")
    request.raw_path = path.decode("latin-1")
    request.path = unquote_to_bytes(path).decode("utf-8", "replace")
    request.query = query.decode("latin-1")


def body_plan(request: Request) -> None:
    """Set the framing of the body. Raises BadHead where net/http refuses it."""
    codings = [value for key, value in request.headers if key.lower() == "transfer-encoding"]
    lengths = [value.strip() for key, value in request.headers if key.lower() == "content-length"]
    if codings and request.version >= (1, 1):
        if len(codings) > 1 or codings[0].strip().lower() != "chunked":
            raise BadHead("501 Not Implemented", "Unsupported transfer encoding")
        request.remaining = -1
    elif lengths:
        if len(set(lengths)) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
            raise BadHead("400 Bad Request")
        request.remaining = int(lengths[0])
    expected = request.header("Expect")
    if expected and expected.lower() != "100-continue" and request.version >= (1, 1):
        raise BadHead("417 Expectation Failed")
    request.awaits_continue = request.header("Expect").lower() == "100-continue" and request.remaining != 0
