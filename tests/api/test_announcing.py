"""The router's line in front of the text of an answer, in streams that arrive in any pieces, and in whole bodies."""

import json

import pytest

from router.api.announcing import Announced, announced_body
from router.api.streams import EventStream, LineStream
from router.core.ollama.routes import TARGETS

LINE = "[answered by a:1b]"
CHAT, V1 = TARGETS["POST", b"/api/chat"], TARGETS["POST", b"/v1/chat/completions"]
THINKING = b'{"model":"a","created_at":"t","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\n'
FIRST = b'{"model":"a","created_at":"t","message":{"role":"assistant","content":"hi"},"done":false}\n'
LAST = b'{"model":"a","created_at":"t","message":{"role":"assistant","content":""},"done":true,"eval_count":2}\n'
OWN = (
    b'{"model":"a","created_at":"t","message":{"role":"assistant","content":"[answered by a:1b]\\n\\n"},"done":false}\n'
)
DELTA = b'data: {"id":"c","object":"o","created":1,"model":"a","choices":[{"index":0,"delta":{"content":%b}}]}\n\n'
USAGE = b'data: {"id":"c","object":"o","created":1,"model":"a","choices":[],"usage":{"prompt_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


def fed(stream, kind, whole, size):
    """Return what is shown of a stream that arrives in pieces of `size` bytes."""
    announced = Announced(stream, kind, LINE)
    shown = b"".join(announced.feed(whole[at : at + size]) for at in range(0, len(whole), size))
    return shown + announced.rest(), announced.ending()


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_line_is_put_in_front_of_the_first_text_and_nothing_else_changes(size):
    """After the thoughts."""
    shown, end = fed(LineStream(CHAT), "chat", THINKING + FIRST + FIRST + LAST, size)
    assert shown == THINKING + OWN + FIRST + FIRST + LAST
    assert (end.is_terminated, end.tokens_out) == (True, 2)


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_an_event_is_put_in_front_of_the_first_text(size):
    """Not of one that only names the role."""
    whole = DELTA % b'""' + DELTA % b'"hi"' + USAGE + DONE
    shown, end = fed(EventStream(V1), "v1_chat", whole, size)
    events = shown.split(b"\n\n")
    own = json.loads(events.pop(1).removeprefix(b"data: "))
    assert b"\n\n".join(events) == whole
    assert own["choices"][0]["delta"] == {"role": "assistant", "content": f"{LINE}\n\n"}
    assert (own["id"], own["model"], own["choices"][0]["finish_reason"]) == ("c", "a", None)
    assert end.is_terminated


@pytest.mark.parametrize(
    "whole",
    [
        LAST, THINKING + LAST, b'{"error":"x"}\n', b'{"message":5}\n', b'{"message":{"content":5}}\n', b"odd\n",
        b"\n\n", b'{"message":{"content":"","tool_calls":[{}]},"done":true}\n',
    ],
)  # fmt: skip
def test_a_stream_without_text_has_no_line(whole):
    """An error, calls of tools, whatever an upstream may send."""
    assert fed(LineStream(CHAT), "chat", whole, 9)[0] == whole


def test_an_error_comes_as_without_the_line():
    """In the form of the stream."""
    announced = Announced(LineStream(CHAT), "chat", LINE)
    assert json.loads(announced.error("gone")) == {"error": "gone"}


@pytest.mark.parametrize(
    ("kind", "body", "place"),
    [
        (
            "chat",
            {"model": "a", "message": {"role": "assistant", "content": "hi"}, "done": True},
            ["message", "content"],
        ),
        ("generate", {"model": "a", "response": "hi", "context": [1], "done": True}, ["response"]),
        ("v1_chat", {"choices": [{"message": {"content": "hi"}}], "usage": {}}, ["choices", 0, "message", "content"]),
    ],
)
def test_an_unstreamed_answer_begins_with_the_line(kind, body, place):
    """All other members are unchanged, in their order."""
    found = json.loads(announced_body(json.dumps(body).encode(), kind, LINE))
    assert list(found) == list(body)
    inner, expected = found, json.loads(json.dumps(body))
    target = expected
    for key in place[:-1]:
        inner, target = inner[key], target[key]
    assert inner[place[-1]] == f"{LINE}\n\nhi"
    target[place[-1]] = inner[place[-1]]
    assert found == expected


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"odd", b'{"message":null}', b'{"choices":[]}', b'{"choices":[{"message":{"content":null}}]}']
)
@pytest.mark.parametrize("kind", ["chat", "generate", "v1_chat"])
def test_a_body_without_text_is_unchanged(kind, body):
    """Byte for byte."""
    assert announced_body(body, kind, LINE) == body
