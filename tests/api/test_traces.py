"""The trace id of `traceparent`, by the rules of W3C Trace Context, and the router's own span."""

from __future__ import annotations

import re

import pytest

from router.api.traces import Tracing, trace_id_of
from router.core.ollama.routes import TARGETS
from router.core.payload.read import InferenceRequest
from router.routing.call import Call

CHAT_ROUTE = TARGETS["POST", b"/api/chat"]
ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GOOD = f"00-{ID}-{PARENT}-01"


def read(*values: str) -> str:
    headers = [(b"host", b"x"), *((b"traceparent", value.encode("latin-1")) for value in values)]
    return trace_id_of(headers, dict(headers))


@pytest.mark.parametrize("value", [GOOD, f" {GOOD}\t", f"00-{ID}-{PARENT}-00", f"cc-{ID}-{PARENT}-01",
                                   f"cc-{ID}-{PARENT}-01-what-the-future-brings"])  # fmt: skip
def test_a_valid_header_has_its_trace_id(value: str) -> None:
    """A later version may have more behind the fields of version 00."""
    assert read(value) == ID


@pytest.mark.parametrize(
    "value",
    [
        "", "00", ID, GOOD.upper(), f"ff-{ID}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[1:]}-{PARENT}-01", f"00-{ID}0-{PARENT}-01", f"00-{ID}-{PARENT}-1", f"{GOOD}-more", f"cc{GOOD[2:]}.",
        f"00-{ID[:-1]}g-{PARENT}-01", f"{GOOD},{GOOD}", "x" * 10_000,
    ],
)  # fmt: skip
def test_an_invalid_header_is_ignored(value: str) -> None:
    assert read(value) == ""


def test_two_headers_are_none() -> None:
    assert (read(GOOD, GOOD), read()) == ("", "")


KNOWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


def begun(*headers: tuple[bytes, bytes], sample: float = 1.0, chance: float = 0.5) -> tuple[Call, str]:
    """Return a call whose span has begun, and the headers that go upstream."""
    call = Call(CHAT_ROUTE, InferenceRequest("a"), b"{}", lines=b"unchanged")
    pairs = [(b"host", b"x"), *headers]
    Tracing(sample, lambda: chance).begin(call, pairs, dict(pairs))
    request = call.upstream(b"{}")
    return call, (request.lines + request.own_lines).decode()


def test_a_span_of_its_own_stands_between_the_clients_and_what_is_asked_upstream():
    """In the client's trace, with its state; other headers as without it."""
    call, lines = begun((b"traceparent", f"{KNOWN}01".encode()), (b"tracestate", b"v=1"), (b"cookie", b"c"))
    span = call.span
    assert (span.trace_id, span.parent_id) == (KNOWN[3:35], KNOWN[36:52])
    assert span.span_id not in (span.parent_id, "0" * 16)
    assert call.trace_id == span.trace_id
    assert lines.splitlines() == ["tracestate: v=1", f"traceparent: 00-{span.trace_id}-{span.span_id}-01"]


def test_a_trace_that_the_client_does_not_record_is_not_recorded_and_its_header_unchanged():
    call, lines = begun((b"traceparent", f"{KNOWN}00".encode()))
    assert (call.span, call.trace_id, lines) == (None, KNOWN[3:35], "unchanged")


@pytest.mark.parametrize("value", [None, b"odd", f"{KNOWN}0x".encode(), b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"])
def test_without_a_valid_parent_a_new_trace_begins(value):
    """What came with an invalid one is not passed on."""
    sent = [] if value is None else [(b"traceparent", value), (b"tracestate", b"v=1")]
    (one, lines), (other, _) = begun(*sent), begun(*sent)
    assert one.span.trace_id != other.span.trace_id
    assert one.span.parent_id == ""
    kept = "" if sent else "unchanged"  # all that was to go upstream
    assert lines == f"{kept}traceparent: 00-{one.span.trace_id}-{one.span.span_id}-01\r\n"


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_what_traced_requests_have_in_common_is_kept_apart_from_their_ids(sample):
    """So that what is rendered of it for one serves the next."""
    (one, _), (other, _) = begun(sample=sample), begun(sample=sample)
    requests = [call.upstream(b"{}") for call in (one, other)]
    assert [request.lines for request in requests] == [b"unchanged", b"unchanged"]
    assert requests[0].own_lines != requests[1].own_lines


@pytest.mark.parametrize(("sample", "flags"), [(0.0, "00"), (0.5, "00"), (0.6, "01"), (1.0, "01")])
def test_a_part_of_the_new_traces_is_recorded_and_the_next_one_is_told(sample, flags):
    call, lines = begun(sample=sample, chance=0.5)
    assert (call.span is not None) == (flags == "01")
    assert re.fullmatch(f"unchangedtraceparent: 00-{call.trace_id}-[0-9a-f]{{16}}-{flags}\r\n", lines)
