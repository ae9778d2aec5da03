"""Which answers may begin with a line of the router's."""

import json

import pytest

from router.core.payload.announcing import MOST_BYTES, MOST_OBJECTS, may_announce
from router.core.payload.read import read_request

USER, ANSWERED = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def may(kind, body, *, first_only=False):
    raw = body if isinstance(body, bytes) else json.dumps({"model": "a", **body}).encode()
    return may_announce(kind, read_request(kind, raw), raw, first_only=first_only)


@pytest.mark.parametrize(
    ("kind", "body", "always", "first"),
    [
        ("chat", {"messages": [USER]}, True, True),
        ("chat", {"messages": [USER, ANSWERED, USER]}, True, False),
        ("chat", {"messages": [USER, {**ANSWERED, "role": "ASSISTANT"}, USER]}, True, False),
        ("chat", {"messages": [USER, ANSWERED]}, False, False),
        ("chat", {"messages": []}, False, False),
        ("chat", {}, False, False),
        ("chat", {"messages": [USER], "format": "json"}, False, False),
        ("chat", {"messages": [{"role": "user", "content": "", "images": ["aGk="]}]}, True, True),
        ("v1_chat", {"messages": [USER]}, True, True),
        ("v1_chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, True, True),
        ("v1_chat", {"messages": [USER], "response_format": {"type": "json_schema"}}, False, False),
        ("generate", {"prompt": "hi"}, True, True),
        ("generate", {"prompt": "hi", "context": []}, True, True),
        ("generate", {"prompt": "hi", "context": [1, 2]}, True, False),
        ("generate", {"prompt": "hi", "raw": True}, False, False),
        ("generate", {"prompt": "hi", "raw": False}, True, True),
        ("generate", {"prompt": "hi", "suffix": "}"}, False, False),
        ("generate", {"prompt": ""}, False, False),
        ("generate", {"prompt": "hi", "_debug_render_only": True}, False, False),
        ("v1_completions", {"prompt": "hi"}, False, False),
        ("v1_messages", {"messages": [USER], "max_tokens": 5}, False, False),
        ("embed", {"input": "hi"}, False, False),
    ],
)
def test_an_answer_for_people_may_be_announced(kind, body, always, first):
    """And none for a program."""
    assert (may(kind, body), may(kind, body, first_only=True)) == (always, first)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","prompt":"hi","RAW":true}',
        b'{"model":"a","prompt":"hi","raw":false,"raw":true}',
        b'{"model":"a","prompt":"hi","r\\u0061w":true}',
    ],
)
def test_keys_are_those_that_ollama_reads(body):
    """In any spelling; the last one counts."""
    assert not may("generate", body)


def test_a_large_body_is_not_looked_into():
    """Reading it would keep the loop."""
    assert not may("generate", {"prompt": "x" * MOST_BYTES})


def test_a_body_with_many_messages_is_not_looked_into():
    """Empty ones are the smallest: reading them all takes longer than the loop may be kept."""
    assert may("chat", {"messages": [*[{}] * 99, USER]})
    assert not may("chat", {"messages": [*[{}] * MOST_OBJECTS, USER]})
