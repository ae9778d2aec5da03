"""Bodies are read like Go reads them: more than 560 cases, with Go 1.26's results for Ollama's own request types."""

from __future__ import annotations

import pytest

from router.core.payload.fields import REQUESTS
from router.core.payload.management import read_names
from router.core.payload.read import read_request
from router.errors import BadRequest
from tests.go_verdicts import CASES, body_of, error_text, name_of

# The time in nanoseconds that means indefinitely.
FOREVER_NS = (1 << 63) - 1
REFUSED_AFTER_DECODING = {
    "[] is too short - 'messages'",
    "invalid input",
    "invalid input type",
    "max_tokens is required and must be positive",
    "messages is required",
    "top_logprobs must be between 0 and 20",
}


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] in REQUESTS], ids=name_of)
def test_an_inference_body_is_read_as_go_reads_it_f1(case):
    """The model, options, times and flags are equal, or the error is."""
    kind, go = case["kind"], case["go"]
    if "error" in go:
        with pytest.raises(BadRequest) as caught:
            read_request(kind, body_of(case))
        assert caught.value.message == error_text(kind, go)
        return
    try:
        request = read_request(kind, body_of(case))
    except BadRequest as exc:
        if exc.message not in REFUSED_AFTER_DECODING:
            raise
        return  # well-typed, and rejected by Ollama's handler: test_read.py
    assert request.model == go.get("model", "")
    assert request.has_model is bool(go.get("model", "").strip())
    assert request.num_predict == (go.get("num_predict") if kind.startswith("v1_") else None)
    options = go.get("options", {})
    sent = options.get("num_ctx")
    is_number = isinstance(sent, int | float) and not isinstance(sent, bool)
    expected = None if not is_number else int(sent) if abs(sent) < 2**63 else -(1 << 63)
    assert (request.num_ctx, request.options.num_ctx) == (expected, expected)
    assert bool(request.options_error) == (sent is not None and not is_number)
    assert request.options.num_batch == options.get("num_batch")
    assert_flags(kind, case, request)


def assert_flags(kind, case, request):
    go = case["go"]
    if kind in ("generate", "chat"):
        assert request.stream is go.get("stream", True)
        assert ("thinking" in request.needs) is bool(go.get("think"))
        assert ("vision" in request.needs) is bool(go.get("images"))
        assert request.format is (go.get("format", "null") not in ("null", '""'))
        is_empty = not (go.get("prompt") if kind == "generate" else go.get("messages"))
        is_zero = go.get("keep_alive_ns") == "0"
        assert (request.is_load_only, request.is_unload) == (is_empty and not is_zero, is_empty and is_zero)
    elif kind.startswith("v1_"):
        assert request.stream is bool(go.get("stream"))
    assert ("tools" in request.needs) is bool(go.get("tools"))
    assert ("insert" in request.needs) is bool(go.get("suffix"))


@pytest.mark.parametrize("case", [case for case in CASES if case["go"].get("keep_alive_ns")], ids=name_of)
def test_keep_alive_is_the_time_that_go_keeps(case):
    """Seconds, Go durations, indefinitely, and the overflow that unloads at once."""
    nanoseconds = int(case["go"]["keep_alive_ns"])
    seconds = read_request(case["kind"], body_of(case)).keep_alive_s
    if nanoseconds == FOREVER_NS:
        assert seconds == float("inf")
    else:
        assert seconds == max(0, nanoseconds) / 1e9


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] not in REQUESTS], ids=name_of)
def test_a_management_body_names_what_go_names_f1_f3(case):
    """`model` wins over `name`, the last duplicate counts, in any case; or Go's error."""
    kind, go = case["kind"], case["go"]
    if "error" in go:
        with pytest.raises(BadRequest) as caught:
            read_names(body_of(case), kind)
        assert caught.value.message == error_text(kind, go)
        return
    expected = {key: go[key] for key in ("source", "destination", "from") if go.get(key)}
    if model := go.get("model") or go.get("name"):
        expected["model"] = model
    assert read_names(body_of(case), kind) == expected
