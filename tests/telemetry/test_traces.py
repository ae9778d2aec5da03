"""Spans: what is made of events, how they are sent, and that nothing waits for a collector."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.teams.keys import make_key
from router.telemetry import Decided, Finished, Switched, TraceContext, TraceHook
from router.telemetry.otlp import OtlpExporter, endpoint_of, exporter_of
from router.telemetry.spans import MOST_SWITCHES, Link, Moment, Noted, Shared, Span, SpanMaker, Value
from tests.telemetry.collector import attributes_of, collector

TRACE, PARENT, OWN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
CONTEXT = TraceContext(TRACE, OWN, PARENT)
DECIDED = Decided("r1", "coding", "big", "small", "fallback: big too big", "fallback", chain="big", cause="too_big")
FINISHED = Finished(
    "r1", "coding", "/api/chat", 200, "big", "small", "completed", queue_s=4.0, duration_s=10.0, ttft_s=5.0,
    tokens_in=7, tokens_out=9, reason="fallback: big too big", operation="chat", span=CONTEXT,
)  # fmt: skip
END_S = 1_800_000_000.0


def spans_of(*noted: Noted, maker: SpanMaker | None = None) -> list[Span]:
    maker = maker or SpanMaker()
    return [span for each in noted for span in maker.spans_of(each)]


def attributes(span: Span) -> dict[str, Value]:
    return {**span.shared.attributes, **span.attributes}


def test_what_requests_have_in_common_is_one_object_that_is_encoded_once() -> None:
    """Only ids, times and tokens are a request's own."""
    other = msgspec.structs.replace(FINISHED, request_id="r2", queue_s=1.0, tokens_in=8, tokens_out=10)
    one, two = (spans_of(Noted(END_S, event, DECIDED))[0] for event in (FINISHED, other))
    assert one.shared is two.shared
    assert one.moments[0].shared is two.moments[0].shared
    assert set(one.attributes) == {
        "ollama_router.request_id", "ollama_router.queue_s", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
    }  # fmt: skip


def test_a_request_is_a_span_with_the_waits_in_it() -> None:
    """In the client's trace, below the client's span; the waits follow each other without gaps."""
    whole, queue, first, relay = spans_of(Noted(END_S, FINISHED, DECIDED))
    assert (whole.name, whole.kind, whole.trace_id, whole.span_id, whole.parent_id) == (
        "chat big", "server", TRACE, OWN, PARENT
    )  # fmt: skip
    assert (whole.begin_s, whole.end_s, whole.error) == (END_S - 10, END_S, "")
    times = [(span.name, span.begin_s - whole.begin_s, span.end_s - whole.begin_s) for span in (queue, first, relay)]
    assert times == [("queue", 0.0, 4.0), ("first byte", 4.0, 5.0), ("relay", 5.0, 10.0)]
    assert {(span.trace_id, span.parent_id) for span in (queue, first, relay)} == {(TRACE, OWN)}
    assert len({span.span_id for span in (whole, queue, first, relay)}) == 4


def test_its_attributes_have_the_names_of_the_conventions() -> None:
    """And the router's own; what is unknown is left out."""
    whole = spans_of(Noted(END_S, FINISHED, DECIDED))[0]
    assert attributes(whole) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "ollama", "gen_ai.request.model": "big",
        "gen_ai.response.model": "small", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 9,
        "http.request.method": "POST", "http.route": "/api/chat", "http.response.status_code": 200,
        "ollama_router.request_id": "r1", "ollama_router.team": "coding", "ollama_router.backend": "local",
        "ollama_router.chain": "big", "ollama_router.reason": "fallback: big too big",
        "ollama_router.outcome": "completed", "ollama_router.queue_s": 4.0,
    }  # fmt: skip
    (moment,) = whole.moments
    assert (moment.name, moment.at_s) == ("decision", END_S - 6)
    assert moment.shared.attributes["ollama_router.chosen"] == "small"


@pytest.mark.parametrize(
    ("more", "error", "parts"),
    [
        ({"status": 503, "outcome": "shed", "attempted": False, "ttft_s": None, "queue_s": 10.0}, "503", ["queue"]),
        ({"outcome": "client_gone"}, "client_gone", ["queue", "first byte", "relay"]),
        ({"ttft_s": None, "queue_s": 0.0}, "", ["first byte"]),
        ({"duration_s": None, "queue_s": 0.0, "ttft_s": None}, "", []),
        ({"ttft_s": 99.0, "queue_s": 99.0}, "", ["queue"]),
    ],
)
def test_whatever_a_request_met_its_parts_are_within_it(more: dict[str, object], error: str, parts: list[str]) -> None:
    """Refused, left, not streamed."""
    fields = {name: getattr(FINISHED, name) for name in FINISHED.__struct_fields__} | more
    whole, *found = spans_of(Noted(END_S, Finished(**fields), None))
    assert (whole.error, [span.name for span in found]) == (error, parts)
    assert attributes(whole).get("error.type", "") == error
    assert ("gen_ai.response.model" in attributes(whole)) == fields["attempted"]
    assert all(whole.begin_s <= span.begin_s <= span.end_s <= whole.end_s for span in found)


def test_a_load_is_a_trace_of_its_own_that_all_who_waited_for_it_link_to() -> None:
    """The one that caused it, whatever its name; others by model, backend and time."""
    maker, load = SpanMaker(), Switched("finished", "small", ("old",), 3.0, backend="local", request_id="r1")
    (loaded,) = spans_of(Noted(END_S - 7, load), maker=maker)
    assert (loaded.name, loaded.parent_id, loaded.end_s - loaded.begin_s) == ("load small", "", 3.0)
    assert loaded.attributes["ollama_router.evicted"] == "old"
    link = Link(loaded.trace_id, loaded.span_id)
    waited = {
        "r1": FINISHED,
        "r2": Finished("r2", "t", "/api/chat", 200, "big", "small", "completed", 4.0, 0, 10.0, span=CONTEXT),
        "other model": Finished("r3", "t", "/api/chat", 200, "big", "tiny", "completed", 4.0, 0, 10.0, span=CONTEXT),
        "later": Finished("r4", "t", "/api/chat", 200, "big", "small", "completed", 1.0, 0, 2.0, span=CONTEXT),
        "at once": Finished("r5", "t", "/api/chat", 200, "big", "small", "completed", 0.0, 0, 10.0, span=CONTEXT),
    }
    found = {name: spans_of(Noted(END_S, event), maker=maker)[0].links for name, event in waited.items()}
    assert found == {"r1": (link,), "r2": (link,), "other model": (), "later": (), "at once": ()}
    failed = spans_of(Noted(END_S, Switched("failed", "small", (), 1.0, "no room")))[0]
    assert (failed.error, "no room" in str(failed)) == ("failed", False)


def test_the_switches_that_are_remembered_are_bounded() -> None:
    maker = SpanMaker()
    for _ in range(2 * MOST_SWITCHES):
        maker.spans_of(Noted(END_S, Switched("finished", "small")))
    assert len(maker._switches) == MOST_SWITCHES


def test_secrets_in_names_are_masked() -> None:
    """A client may put its key anywhere."""
    key = make_key("coding", "x" * 32)
    event = Finished(key, "t", "/api/chat", 404, f"https://user:pass@host/{key}", "m", "completed", span=CONTEXT)
    text = str(spans_of(Noted(END_S, event), Noted(END_S, Switched("finished", key, (key,)))))
    assert "chat https" in text
    assert key not in text
    assert "pass@" not in text


class Kept:
    """An exporter that keeps what it is given, and may be slow or fail."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.why, self.is_closed = "", False
        self.may_go_on, self.sent = threading.Event(), threading.Event()
        self.may_go_on.set()

    def send(self, spans: Sequence[Span]) -> str:
        self.may_go_on.wait(20)
        if self.why == "raise":
            raise OSError("odd")
        if not self.why:
            self.spans += spans
        self.sent.set()
        return self.why

    def close(self) -> None:
        self.is_closed = True


def hook_of(kept: Kept, warnings: list[str], most_waiting: int = 100) -> TraceHook:
    return TraceHook(kept, most_waiting=most_waiting, every_s=0.01, warn=warnings.append, unix_now=lambda: END_S)


def test_only_sampled_requests_are_sent_with_their_decisions() -> None:
    """By a thread; the rest at the end."""
    kept = Kept()
    hook = hook_of(kept, [])
    untraced = Finished("r3", "t", "/api/chat", 200, "a", "a", "completed")
    hook.on_requests([DECIDED], [FINISHED, untraced])
    hook.on(Switched("started", "small"))
    hook.on(Switched("finished", "small"))
    hook.close(20)
    assert [span.name for span in kept.spans] == ["chat big", "queue", "first byte", "relay", "load small"]
    assert attributes(kept.spans[0])["ollama_router.chain"] == "big"
    assert kept.is_closed


def test_a_collector_that_is_slow_holds_nobody_and_the_oldest_are_dropped() -> None:
    """What waits is bounded, decisions of requests that never end included."""
    kept = Kept()
    hook = hook_of(kept, [], most_waiting=10)
    kept.may_go_on.clear()
    hook.on(Switched("finished", "first"))
    while hook._waiting:  # until the thread has taken it, and hangs in the exporter
        threading.Event().wait(0.005)
    for number in range(50):
        hook.on(Switched("finished", f"m{number}"))
        hook.on_requests([Decided(f"r{number}", "t", "a", "a", "fits", "exact")], [])
    assert (len(hook._waiting), hook.lost, len(hook._decided)) == (10, 40, 10)
    kept.may_go_on.set()
    hook.close(20)
    assert [span.name for span in kept.spans] == ["load first", *(f"load m{number}" for number in range(40, 50))]


def test_an_event_of_which_no_spans_can_be_made_costs_only_its_own() -> None:
    """The thread goes on, and says it."""
    kept, warnings = Kept(), list[str]()
    hook = hook_of(kept, warnings)
    for model in ("first", 0, "last"):
        hook.on(Switched("finished", model))  # type: ignore[arg-type]
    hook.close(20)
    assert [span.name for span in kept.spans] == ["load first", "load last"]
    assert (hook.lost, len(warnings), kept.is_closed) == (1, 2, True)


def test_no_thread_is_left_of_a_router_whose_start_has_failed() -> None:
    """It begins with the first event; the exporter is closed all the same."""
    kept, before = Kept(), threading.active_count()
    hook = hook_of(kept, [])
    assert threading.active_count() == before
    hook.close(1)
    hook.close(1)
    assert kept.is_closed


@pytest.mark.parametrize("why", ["refused", "raise"])
def test_what_cannot_be_sent_is_said_once_and_its_end_too(why: str) -> None:
    """Spans are dropped meanwhile and counted."""
    kept, warnings = Kept(), list[str]()
    hook = hook_of(kept, warnings)
    kept.why = why
    for number in range(3):
        hook.on(Switched("finished", f"m{number}"))
        while hook.lost <= number:
            threading.Event().wait(0.005)
    kept.why = ""
    hook.on(Switched("finished", "last"))
    hook.close(20)
    assert [span.name for span in kept.spans] == ["load last"]
    assert len(warnings) == 2
    assert warnings[0].startswith("traces cannot be sent")
    assert warnings[1] == "traces are sent again; 3 spans were dropped"


HEX = "0123456789abcdef"
TEXTS = st.text(max_size=20) | st.just("x" * 200) | st.just("ä" * 70)
VALUES = TEXTS | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 127, 128, -1]) | st.floats(allow_nan=False)
ATTRIBUTES = st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=5)
OWN_ATTRIBUTES = st.dictionaries(st.text(max_size=8).map("own.{}".format), VALUES, max_size=5)  # none is shared, too
TIMES = st.floats(0, 2e9)


def ids(digits: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=digits, max_size=digits).filter(lambda text: text.strip("0") != "")


SHARED = st.builds(Shared, ATTRIBUTES)
SPANS = st.builds(
    Span, TEXTS, ids(32), ids(16), st.just("") | ids(16), TIMES, TIMES, st.sampled_from(["server", "internal"]),
    OWN_ATTRIBUTES,
    st.lists(st.builds(Link, ids(32), ids(16)), max_size=2).map(tuple),
    st.lists(st.builds(Moment, TEXTS, TIMES, SHARED), max_size=2).map(tuple),
    TEXTS,
    SHARED,
)  # fmt: skip


@given(st.lists(SPANS, max_size=3))
def test_spans_are_encoded_as_opentelemetry_encodes_them(spans: list[Span]) -> None:
    """Whatever is in them: the same message, written directly."""
    sdk = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder", reason="no [otel]")
    exporter = OtlpExporter("http://c:4318", 1.0)
    theirs = sdk.encode_spans([exporter._readable(span) for span in spans])
    ours = type(theirs).FromString(exporter._head.request(spans))
    if spans:  # of none, theirs has not even the resource
        assert ours == theirs


@pytest.mark.parametrize("has_internal", [True, False])
def test_spans_arrive_at_a_collector_as_they_are(has_internal: bool) -> None:
    """OTLP over HTTP, decoded by OpenTelemetry's own messages; also with a library that takes no encoded spans."""
    with collector() as collected:
        exporter = OtlpExporter(collected.url, 5.0)
        assert exporter._send_bytes is not None
        exporter._send_bytes = exporter._send_bytes if has_internal else None
        maker = SpanMaker()
        load = Switched("finished", "small", (), 3.0, backend="local", request_id="r1")
        spans = spans_of(Noted(END_S - 7, load), Noted(END_S, FINISHED, DECIDED), maker=maker)
        assert exporter.send(spans) == ""
        exporter.close()
    assert collected.paths == ["/v1/traces"]
    assert collected.resources[0]["service.name"] == "ollama-router"
    loaded, whole, queue = collected.spans[:3]
    assert (whole.name, whole.kind, whole.trace_id.hex(), whole.span_id.hex(), whole.parent_span_id.hex()) == (
        "chat big", 2, TRACE, OWN, PARENT
    )  # fmt: skip
    assert attributes_of(whole) == attributes(spans[1])
    assert (whole.start_time_unix_nano, whole.end_time_unix_nano) == (int((END_S - 10) * 1e9), int(END_S * 1e9))
    assert [(link.trace_id, link.span_id) for link in whole.links] == [(loaded.trace_id, loaded.span_id)]
    assert [event.name for event in whole.events] == ["decision"]
    assert (queue.parent_span_id.hex(), queue.kind) == (OWN, 1)


def test_a_collector_that_refuses_or_is_away_is_an_answer_and_no_exception() -> None:
    with collector() as collected:
        collected.status = 400
        exporter = OtlpExporter(collected.url, 1.0)
        assert "collector" in exporter.send(spans_of(Noted(END_S, FINISHED)))
        url = collected.url
    assert "collector" in OtlpExporter(url, 0.5).send(spans_of(Noted(END_S, FINISHED)))


def test_the_address_of_a_collector_may_have_a_path() -> None:
    assert endpoint_of("http://c:4318") == endpoint_of("http://c:4318/") == "http://c:4318/v1/traces"
    assert endpoint_of("https://c/otlp/v1/traces") == "https://c/otlp/v1/traces"


def test_without_the_library_nothing_is_traced_and_the_operator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.telemetry.otlp.is_available", lambda: False)
    warnings: list[str] = []
    assert exporter_of("http://c:4318", 1.0, warnings.append) is None
    assert "pip install 'ollama-router[otel]'" in warnings[0]


def test_without_a_collector_the_library_is_not_imported() -> None:
    """By nothing that serves."""
    code = "import sys, router.app; print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
