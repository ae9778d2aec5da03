"""Which requests are turns of one conversation."""

import json

import pytest

from router.core.payload.conversation import MOST_BYTES, MOST_MESSAGES, USUAL_BYTES, conversation_of
from router.core.payload.conversation import beginning_of as keyed

SYSTEM, FIRST = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue? ]}"}
ANSWER, SECOND = {"role": "assistant", "content": "Rayleigh."}, {"role": "user", "content": "And at sunset?"}


def beginning_of(body):
    return keyed(body, b"a secret")


def beginning(*messages, **more):
    return beginning_of(json.dumps({"model": "m", "messages": messages, **more}).encode())


def test_each_turn_has_the_beginning_of_the_first_one():
    """Whatever is said later, and whatever else the request asks for."""
    first = beginning(SYSTEM, FIRST)
    assert len(first) == 16
    assert beginning(SYSTEM, FIRST, ANSWER, SECOND) == first
    assert beginning(SYSTEM, FIRST, ANSWER, SECOND, stream=False, options={"num_ctx": 4096}) == first


@pytest.mark.parametrize(
    "other", [(FIRST,), (SYSTEM, SECOND), ({**SYSTEM, "content": "Be long."}, FIRST), (SYSTEM, ANSWER, FIRST)]
)
def test_another_beginning_is_another_conversation(other):
    """The system prompt counts too."""
    assert beginning(*other) != beginning(SYSTEM, FIRST)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b'{"prompt":"hi"}', b'{"messages":[]}', b'{"messages":null}', b'{"messages"', b'{"messages":[',
        b'{"messages":[{"role":"user"', b'{"messages":[{"role":"assistant","content":"x"}]}', b'{"messages":["user"]}',
        b'{"messages":' + b"[" * 60_000, b'{"messages":[' + b"9" * 60_000 + b"]}", b'{"messages":[\xff\xfe',
    ],
)  # fmt: skip
def test_a_body_without_a_question_has_none(body):
    """Malformed ones, too."""
    assert beginning_of(body) == b""


@pytest.mark.parametrize("size", [USUAL_BYTES - 100, USUAL_BYTES - 60, USUAL_BYTES, 3 * USUAL_BYTES])
def test_a_long_beginning_counts_wholly(size):
    """Up to its end, which the first look may not see."""
    first = {"role": "user", "content": "x" * size}
    assert beginning(SYSTEM, first, ANSWER, SECOND) == beginning(SYSTEM, first)
    assert beginning(SYSTEM, {**first, "content": "x" * (size - 1) + "y"}) != beginning(SYSTEM, first)


def test_only_so_much_of_a_beginning_counts():
    """What differs after that is not read."""
    long = {"role": "user", "content": "x" * 2 * MOST_BYTES}
    first = beginning(long)
    assert first
    assert beginning({**long, "content": long["content"] + "y"}, ANSWER, SECOND) == first
    assert beginning({**long, "content": "y" + long["content"]}) != first


def test_only_so_many_messages_of_a_beginning_count():
    """Each takes a while to read: 64 KiB hold twenty thousand empty ones."""
    many = [{}] * MOST_MESSAGES
    assert beginning(*many, FIRST) == beginning(*many, SECOND)
    assert beginning(*many[1:], FIRST) != beginning(*many[1:], SECOND)


def test_a_conversation_has_a_number_without_a_secret():
    """So that all routers choose the same place for it; 0 is no conversation."""
    body, other = (json.dumps({"messages": [SYSTEM, message]}).encode() for message in (FIRST, SECOND))
    assert conversation_of(body) == conversation_of(body) != conversation_of(other)
    assert conversation_of(b"{}") == 0
