"""Faults that tests or the admin route inject into responses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ollama_simulator.http.requests import Connection

KINDS = [
    "slow",
    "drip",
    "cut",
    "reset",
    "short_length",
    "gzip",
    "eof",
    "hang",
    "status",
    "answer",
    "crash",
    "oom",
    "bad_header",
    "huge_line",
    "redirect",
    "bad_status_line",
    "raw",
    "vanish",
]


class Answer(Protocol):
    """The response as a fault uses it."""

    status: int
    is_started: bool
    is_finished: bool
    chunks_written: int
    connection: Connection

    def set(self, name: str, value: str) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def line(self, data: bytes) -> None: ...

    async def finish(self) -> None: ...


class FaultTaken(Exception):
    """The fault has sent the response or closed the connection itself."""


@dataclass(slots=True)
class Fault:
    """One injected fault.

    `kind`: slow (head delayed by `delay_s`), drip (each chunk delayed by `delay_s`), cut (half a chunk, then FIN),
    reset (RST), short_length (fewer bytes than Content-Length), gzip (labelled gzip without being compressed), eof (a
    clean end without `done`), hang (nothing more), status (`status` and `body`), answer (`status`, `headers`, and
    `body` or `chunks`), crash and oom (the runner dies after `after_chunks` tokens), bad_header (CR LF inside a
    header), huge_line (one chunk of `size` bytes), redirect, bad_status_line, raw (the bytes of `body`, then FIN).
    vanish: a listing of the manifests takes `delay_s`, and fails if one is removed meanwhile, as it can in Ollama.
    cut, reset, eof and hang take effect after `after_chunks` chunks, with 0 in place of the head. `route` and `model`
    restrict the fault to a path and to a model name as sent. `times` −1 = always.
    """

    kind: str
    route: str = ""
    model: str = ""
    method: str = ""
    times: int = 1
    after_chunks: int = 1
    delay_s: float = 0.0
    status: int = 500
    body: str = '{"error":"simulated"}'
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    size: int = 9_000_000
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; one of {', '.join(KINDS)}")

    def fits(self, method: str, path: str, model: str) -> bool:
        """Whether the fault applies to this request."""
        fits_model = self.times != 0 and self.model in ("", model)
        return fits_model and self.route in ("", path) and self.method in ("", method)

    async def instead(self, response: Answer) -> None:
        """Act in place of the handler. Raises FaultTaken if the handler must not run."""
        if self.kind == "slow":
            await asyncio.sleep(self.delay_s)
        elif self.kind in ("status", "redirect", "answer"):
            await self._plain(response)
        elif self.kind in ("bad_status_line", "raw", "gzip", "short_length"):
            await self._raw(response)
        elif self.kind in ("cut", "reset", "eof", "hang") and self.after_chunks <= 0:
            await self._end(response, b"")

    async def _plain(self, response: Answer) -> None:
        response.status = 307 if self.kind == "redirect" else self.status
        if self.kind != "answer":
            response.set("Content-Type", "application/json; charset=utf-8")
        if self.kind == "redirect":
            response.set("Location", "http://127.0.0.1:9/elsewhere")
        for name, value in self.headers:
            response.set(name, value)
        for chunk in self.chunks:
            await response.line(chunk.encode())
        await response.write(self.body.encode() if not self.chunks else b"")
        await response.finish()
        raise FaultTaken

    async def _raw(self, response: Answer) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
        body = self.body.encode()
        texts = {
            "bad_status_line": b"HTTP/9 banana\r\n\r\n",
            "raw": body,
            "gzip": f"{head}Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
            "short_length": f"{head}Content-Length: {len(body) + 100}\r\n\r\n".encode() + body,
        }
        await response.connection.write(texts[self.kind])
        response.connection.transport.close()
        raise FaultTaken

    async def before_head(self, response: Answer) -> None:
        """Act just ahead of the head."""
        if self.kind == "bad_header":
            response.set("X-Broken", "a\r\nX-Injected: 1\r\n b")

    async def before_chunk(self, response: Answer, data: bytes) -> None:
        """Act just ahead of a chunk. Raises FaultTaken if nothing may follow."""
        if self.kind == "drip":
            await asyncio.sleep(self.delay_s)
        if self.kind == "huge_line" and response.chunks_written == self.after_chunks:
            line = b'{"model":"huge","response":"' + b"x" * self.size + b'","done":false}\n'
            await response.connection.write(b"%x\r\n%s\r\n" % (len(line), line))
        if self.kind in ("cut", "reset", "eof", "hang") and response.chunks_written >= self.after_chunks:
            await self._end(response, data)

    async def _end(self, response: Answer, data: bytes) -> None:
        connection = response.connection
        if self.kind == "cut" and data:
            await connection.write(b"%x\r\n%s" % (len(data), data[: len(data) // 2]))
        if self.kind == "eof" and response.is_started:
            await connection.write(b"0\r\n\r\n")
            response.is_finished = True
            raise FaultTaken
        if self.kind == "hang":
            await asyncio.Event().wait()
        if self.kind == "reset":
            connection.reset()
        connection.transport.close()
        raise FaultTaken


class FaultBook:
    """The faults to inject. The first that fits a request is used, and its `times` is reduced."""

    def __init__(self) -> None:
        self.ordered: list[Fault] = []

    def add(self, kind: str, **details: Any) -> Fault:
        """Add a fault. Raises ValueError for an unknown kind."""
        fault = Fault(kind, **details)
        self.ordered.append(fault)
        return fault

    def load(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Replace all faults, as the admin route does. Raises ValueError or TypeError."""
        known = {item.name for item in fields(Fault)}
        made = [Fault(**{key: value for key, value in entry.items() if key in known}) for entry in entries]
        self.ordered = made

    def clear(self) -> None:
        """Remove all faults."""
        self.ordered.clear()

    def take(self, method: str, path: str, model: str) -> Fault | None:
        """Return the fault for a request, if any, and count its use."""
        return self._take(method, path, model, is_vanish=False)

    def take_vanish(self, method: str, path: str, model: str) -> Fault | None:
        """Return the `vanish` for a request, if any, and count its use; it acts beside another fault."""
        return self._take(method, path, model, is_vanish=True)

    def _take(self, method: str, path: str, model: str, *, is_vanish: bool) -> Fault | None:
        for fault in self.ordered:
            if (fault.kind == "vanish") is is_vanish and fault.fits(method, path, model):
                fault.times -= 1 if fault.times > 0 else 0
                fault.hits += 1
                return fault
        return None
