"""Lines and events of a stream: what is passed on, what is held, how an end is understood. Nothing is sent here."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.endings import StreamEnd, body_ending
from router.api.streams import EventStream, LineStream, is_stream, renamed_json, stream_of
from router.core.ollama.routes import TARGETS
from router.errors import UpstreamError

GENERATE = TARGETS[("POST", b"/api/generate")]
CHAT = TARGETS[("POST", b"/v1/chat/completions")]
RESPONSES = TARGETS[("POST", b"/v1/responses")]
MESSAGES = TARGETS[("POST", b"/v1/messages")]
RENAME = (b"tag", b"shown")


@pytest.fixture(autouse=True)
def _way():
    """Nothing here is taken by an edge: once is enough."""


def lines(*values):
    return b"".join(json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in values)


def events(*values):
    texts = (value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for value in values)
    return b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)


def passed(stream, *chunks):
    return [stream.feed(chunk) for chunk in chunks]


def test_only_whole_lines_are_passed_on():
    """So that an error can follow at any time."""
    stream = LineStream(GENERATE)
    assert passed(stream, b'{"a":', b"1}\n", b'{"b":2}\n{"c"', b":3}", b"\n") == [
        b"",
        b'{"a":1}\n',
        b'{"b":2}\n',
        b"",
        b'{"c":3}\n',
    ]


def test_only_whole_events_are_passed_on():
    """The empty line may lie on the border of two chunks."""
    stream = EventStream(CHAT)
    assert passed(stream, b"data: 1\n", b"\ndata: 2", b"\n\ndata: 3\n\n") == [
        b"",
        b"data: 1\n\n",
        b"data: 2\n\ndata: 3\n\n",
    ]


@given(st.lists(st.binary(max_size=6), max_size=12), st.sampled_from([LineStream, EventStream]))
def test_however_a_stream_is_cut_the_same_bytes_come_out_in_their_order(chunks, kind):
    """What is passed on is a beginning of what came in, and ends with a whole piece."""
    stream = kind(GENERATE)
    out = b"".join(stream.feed(chunk) for chunk in chunks)
    whole = b"".join(chunks)
    end = whole.rfind(stream.separator)
    assert out == whole[: end + len(stream.separator) if end >= 0 else 0]


def test_a_last_line_without_its_line_break_is_passed_on_if_it_is_whole():
    """Half a value is not: it would look like a fault of the client's parser."""
    stream = LineStream(GENERATE)
    stream.feed(b'{"done":true}')
    assert (stream.rest(), stream.ending()) == (b'{"done":true}', StreamEnd(True))
    assert stream.rest() == b""
    stream.feed(b'{"done":tr')
    assert stream.rest() == b""
    assert EventStream(CHAT).rest() == b""


def test_a_last_event_without_its_empty_line_is_passed_on_if_it_ends_the_stream():
    """Another one may be half of itself."""
    stream = EventStream(CHAT)
    stream.feed(b"data: [DONE]\n")
    assert (stream.rest(), stream.ending().is_terminated) == (b"data: [DONE]\n", True)
    stream.feed(b'data: {"a":1}')
    assert stream.rest() == b""


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (lines({"done": False}, {"done": True, "prompt_eval_count": 3, "eval_count": 4}), StreamEnd(True, 3, 4)),
        (lines({"status": "pulling"}, {"status": "success"}), StreamEnd(True)),
        (lines({"error": "out of memory"}), StreamEnd(True)),
        (lines({"done": False}), StreamEnd(False)),
        (b"nonsense\n", StreamEnd(False)),
        (b"", StreamEnd(False)),
    ],
)
def test_a_stream_of_lines_ends_by_its_own_last_word(text, end):
    """Done, success, or an error; tokens where it counts them."""
    stream = LineStream(GENERATE)
    stream.feed(text)
    assert stream.ending() == end


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (events({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, "[DONE]"), StreamEnd(True, 3, 4)),
        (events({"type": "message_stop"}), StreamEnd(True)),
        (events({"type": "response.completed"}), StreamEnd(True)),
        (events({"error": {"message": "x"}}), StreamEnd(True)),
        (
            events({"usage": {"input_tokens": 5, "output_tokens": 6}, "type": "x"}, {"type": "message_stop"}),
            StreamEnd(True, 5, 6),
        ),
        (events({"choices": []}), StreamEnd(False)),
        (b": a comment\n\n", StreamEnd(False)),
        (b"", StreamEnd(False)),
    ],
)
def test_a_stream_of_events_ends_by_its_own_last_word(text, end):
    """In the words of each dialect."""
    stream = EventStream(CHAT)
    stream.feed(text)
    assert stream.ending() == end


def test_an_error_is_said_in_the_words_of_the_route():
    """As a line or an event that its clients understand."""
    assert LineStream(GENERATE).error("cut") == b'{"error":"cut"}\n'
    openai = json.loads(EventStream(CHAT).error("cut", 502).removeprefix(b"data: "))
    assert (openai["error"]["message"], openai["error"]["type"]) == ("cut", "api_error")
    head, data = EventStream(RESPONSES).error("cut").strip().split(b"\ndata: ")
    assert (head, json.loads(data)["message"]) == (b"event: error", "cut")
    head, data = EventStream(MESSAGES).error("cut", 503).strip().split(b"\ndata: ")
    assert (head, json.loads(data)["error"]) == (b"event: error", {"type": "overloaded_error", "message": "cut"})


def test_each_line_is_shown_under_the_name_that_the_client_shall_see():
    """Other lines, and the name elsewhere in a line, stay as they are."""
    stream = LineStream(GENERATE, RENAME)
    text = b'{"model":"tag","response":"tag"}\n{"model":"other"}\n{"status":"tag"}\n'
    assert stream.feed(text) == text.replace(b'{"model":"tag"', b'{"model":"shown"')


def test_each_event_is_shown_under_the_name_that_the_client_shall_see():
    """Wherever the dialect has it: at the top, in the message, in the response."""
    stream = EventStream(MESSAGES, RENAME)
    text = events(
        {"model": "tag"}, {"message": {"model": "tag"}}, {"response": {"model": "tag"}}, {"text": "tag"}, "[DONE]"
    )
    assert stream.feed(b"event: x\n" + text) == b"event: x\n" + text.replace(b'"model":"tag"', b'"model":"shown"')


@pytest.mark.parametrize(
    "value",
    [
        b'{"model": "other", "n":1}',
        b'{"message": {"model": "other"}}',
        b'{"message": "tag", "response": []}',
        b'{"message": {"model": "tag"',
        b"[1, 2]",
        b"tag",
        b"",
    ],
)
def test_what_does_not_name_the_model_stays_byte_for_byte(value):
    """Also where it is no JSON."""
    assert renamed_json(value + b"\n", RENAME) == value + b"\n"


def test_a_whole_answer_tells_its_tokens():
    """In each dialect; None where it tells none."""
    assert body_ending(b'{"prompt_eval_count":1,"eval_count":2}') == StreamEnd(True, 1, 2)
    assert body_ending(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}') == StreamEnd(True, 1, 2)
    assert body_ending(b'{"usage":{"input_tokens":1,"output_tokens":2}}') == StreamEnd(True, 1, 2)
    assert body_ending(b'{"embeddings":[]}') == body_ending(b"\xff") == StreamEnd(True)


def test_a_stream_is_known_by_its_type():
    """Everything else is a whole answer."""
    kinds = {b"application/x-ndjson": LineStream, b"text/event-stream; charset=utf-8": EventStream}
    for content_type, kind in kinds.items():
        assert is_stream(content_type)
        assert type(stream_of(content_type, GENERATE, None)) is kind
    assert not is_stream(b"application/json")
    assert stream_of(b"application/json", GENERATE, None) is None


CRLF = b'data: {"model":"tag","n":1}\r\n\r\n'


@given(st.integers(1, 4))
def test_events_with_line_ends_of_the_other_kind_are_passed_on_at_once(size):
    """Byte for byte, however they are cut, and with the name replaced."""
    whole = CRLF + b"event: x\r\n" + CRLF + b": note\r\n\r\ndata: [DONE]\r\n\r\n"
    stream = EventStream(CHAT)
    sent = passed(stream, *(whole[at : at + size] for at in range(0, len(whole), size)))
    assert b"".join(sent) == whole
    assert len([piece for piece in sent if piece]) == 4
    assert stream.ending() == StreamEnd(is_terminated=True)
    renaming = EventStream(CHAT, RENAME)
    assert renaming.feed(whole) == whole.replace(b'"tag"', b'"shown"')


def test_line_ends_of_both_kinds_may_be_mixed():
    """Each empty line ends an event."""
    stream = EventStream(CHAT)
    assert passed(stream, b"data: 1\n\r\ndata: 2\r\n\ndata: 3\n") == [b"data: 1\n\r\ndata: 2\r\n\n"]


@pytest.mark.parametrize("framing", [LineStream, EventStream])
def test_a_line_without_end_is_given_up(framing):
    """In one piece or in many; a line that is as long as allowed passes."""
    stream = framing(CHAT, most_bytes=10)
    assert stream.feed(b"12345678" + framing.separator) == b"12345678" + framing.separator
    assert passed(stream, b"1234567890", b"1") == [b"", b""]
    with pytest.raises(UpstreamError, match="more than 10 bytes"):
        stream.feed(b"2")
    whole = b"1" + framing.separator
    stream = framing(CHAT, most_bytes=10)
    assert stream.feed(whole + b"12345678901") == whole
    with pytest.raises(UpstreamError):
        stream.rest()


ODD_COUNTS = [-1, 1.5, "7", None, True, [], {}, 2**31 + 1, 2**53 + 1, 10**400]


@pytest.mark.parametrize("count", ODD_COUNTS, ids=[repr(count)[:12] for count in ODD_COUNTS])
def test_an_odd_count_is_no_count_and_spoils_no_ending(count):
    """The other one is read; the stream has ended as it should."""
    stream = LineStream(GENERATE)
    stream.feed(lines({"done": True, "prompt_eval_count": count, "eval_count": 2}))
    assert stream.ending() == StreamEnd(True, None, 2)
    assert body_ending(lines({"eval_count": count, "prompt_eval_count": 3})) == StreamEnd(True, 3, None)
    stream = EventStream(CHAT)
    stream.feed(events({"usage": {"prompt_tokens": count, "completion_tokens": 5}}, "[DONE]"))
    assert stream.ending() == StreamEnd(True, None, 5)
    stream = EventStream(RESPONSES)
    stream.feed(events({"type": "response.completed", "usage": count, "eval_count": count}))
    assert stream.ending() == StreamEnd(True)


def test_bytes_that_are_no_text_spoil_no_ending():
    """Only the field that holds them is not read."""
    stream = LineStream(GENERATE)
    stream.feed(b'{"status":"\xff","done":true,"eval_count":2}\n')
    assert stream.ending() == StreamEnd(True, None, 2)


def test_empty_lines_after_the_last_one_are_not_the_last_one():
    """Some servers add them."""
    stream = LineStream(GENERATE)
    assert passed(stream, lines({"done": True}), b"\n", b"\r\n") == [lines({"done": True}), b"\n", b"\r\n"]
    assert stream.ending() == StreamEnd(is_terminated=True)
