"""A collector for tests: receives OTLP over HTTP, and decodes it by OpenTelemetry's own protobuf messages."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Collected:
    """What has arrived. `status` is what the collector answers."""

    url: str = ""
    status: int = 200
    paths: list[str] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def named(self, start: str) -> list[Any]:
        """Return the spans whose names begin with `start`, in the order of their begin."""
        return sorted(
            (span for span in self.spans if span.name.startswith(start)), key=lambda s: s.start_time_unix_nano
        )

    def wait_for(self, count: int, seconds: float = 20.0) -> list[Any]:
        """Return all spans as soon as there are `count`."""
        deadline_s = time.monotonic() + seconds
        while len(self.spans) < count and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert len(self.spans) >= count, [span.name for span in self.spans]
        return self.spans


def attributes_of(span: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextmanager
def collector() -> Iterator[Collected]:
    """Run one; skipped without the library."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="no [otel]")
    collected = Collected()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collected.paths.append(self.path)
            if collected.status == 200:
                collected.bodies.append(body)
                for resource in service.ExportTraceServiceRequest.FromString(body).resource_spans:
                    collected.resources.append(attributes_of(resource.resource))
                    for scope in resource.scope_spans:
                        collected.spans += scope.spans
            self.send_response(collected.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collected.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collected
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
