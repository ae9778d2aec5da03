"""OTLP over HTTP by OpenTelemetry's SDK, which is optional: imported only if a collector is configured."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from router import __version__
from router.telemetry import semconv
from router.telemetry.otlp_bytes import NS, head_of
from router.telemetry.spans import Span

MISSING = "the library opentelemetry is missing (pip install 'ollama-router[otel]')"
TRACES_PATH = "/v1/traces"


def endpoint_of(url: str) -> str:
    """Return the address to which traces are sent: `url` itself if it has a path, else with that of OTLP."""
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + TRACES_PATH


def is_available() -> bool:
    """Return whether the library is installed."""
    try:
        importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        importlib.import_module("opentelemetry.sdk.trace")
    except ImportError:
        return False
    return True


class OtlpExporter:
    """Sends spans to the collector at `url`. Raises ImportError without the library.

    Headers, certificates and compression are those of OTEL_EXPORTER_OTLP_*, attributes of the resource those of
    OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.

    Where the library can send what is encoded already, spans are not given to its own encoder.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        http = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        self._api: Any = importlib.import_module("opentelemetry.trace")
        self._sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        self._success: Any = importlib.import_module("opentelemetry.sdk.trace.export").SpanExportResult.SUCCESS
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        scopes: Any = importlib.import_module("opentelemetry.sdk.util.instrumentation")
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what fails is said once, and not per attempt
        named = {"service.name": "ollama-router", "service.version": __version__}
        self._resource = resources.Resource(named).merge(resources.OTELResourceDetector().detect())
        self._scope = scopes.InstrumentationScope("ollama-router", __version__, attributes={"semconv": semconv.GEN_AI})
        self._exporter: Any = http.OTLPSpanExporter(endpoint=endpoint_of(url), timeout=timeout_s)
        # An internal of 1.45: what is public takes spans, and encodes them five times as slowly as `otlp_bytes`.
        # Versions without it get the spans themselves.
        self._send_bytes: Any = getattr(getattr(self._exporter, "_client", None), "export", None)
        scope = self._scope
        self._head = head_of(dict(self._resource.attributes), scope.name, scope.version, dict(scope.attributes))

    def send(self, spans: Sequence[Span]) -> str:
        """Send them; return why they could not be, "" if they were."""
        if self._send_bytes is not None:
            is_sent = self._send_bytes(self._head.request(spans)).success
        else:
            is_sent = self._exporter.export([self._readable(span) for span in spans]) is self._success
        return "" if is_sent else "the collector does not answer, or refuses them"

    def close(self) -> None:
        """Release its connections."""
        self._exporter.shutdown()

    def _readable(self, span: Span) -> Any:
        """Return a span as the SDK has it."""
        kind = self._api.SpanKind.SERVER if span.kind == "server" else self._api.SpanKind.INTERNAL
        failed = self._api.Status(self._api.StatusCode.ERROR, span.error) if span.error else self._api.Status()
        return self._sdk.ReadableSpan(
            span.name,
            self._context(span.trace_id, span.span_id),
            self._context(span.trace_id, span.parent_id, is_remote=span.kind == "server") if span.parent_id else None,
            self._resource,
            {**span.shared.attributes, **span.attributes},
            [self._sdk.Event(each.name, each.shared.attributes, round(each.at_s * NS)) for each in span.moments],
            [self._api.Link(self._context(*link)) for link in span.links],
            kind,
            status=failed,
            start_time=round(span.begin_s * NS),
            end_time=round(span.end_s * NS),
            instrumentation_scope=self._scope,
        )

    def _context(self, trace_id: str, span_id: str, *, is_remote: bool = False) -> Any:
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        return self._api.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, flags)


def exporter_of(url: str, timeout_s: float, warn: Callable[[str], None]) -> OtlpExporter | None:
    """Return the exporter; None, after a warning, without the library."""
    if is_available():
        return OtlpExporter(url, timeout_s)
    warn(f"telemetry.otlp.endpoint is set, but nothing is traced: {MISSING}")
    return None
