"""A conversation is known by what it begins with."""

from __future__ import annotations

import json

from router.core.payload.conversation import MOST_BYTES, conversation_of

SYSTEM, FIRST = {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}


def number(*messages, **more):
    return conversation_of(json.dumps({"model": "m", "messages": list(messages), **more}).encode())


def test_it_is_the_same_for_each_turn_of_a_conversation():
    """And another one for another first message, or another system prompt."""
    first = number(SYSTEM, FIRST)
    assert first == number(SYSTEM, FIRST, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and?"})
    assert first == number(SYSTEM, FIRST, stream=False)
    assert len({first, number(FIRST), number(SYSTEM, {"role": "user", "content": "bye"})}) == 3


def test_what_is_no_conversation_has_none():
    """Whatever a client sends."""
    for body in (b"", b"{}", b"[1]", b'{"messages":null}', b'{"messages":[1]}', b'{"messages":[]}', b"{" * 9999):
        assert conversation_of(body) == 0
    assert conversation_of(b'{"messages":[{"role":"user"}]}' + b" " * MOST_BYTES) == 0
