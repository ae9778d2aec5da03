"""The simulator's request types against Go's verdicts on Ollama's own."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_simulator.api import anthropic_requests, openai_requests, responses_requests, schemas
from ollama_simulator.api.values import go_base64
from ollama_simulator.gojson import bind
from router.core.go.types import Struct
from router.errors import BadRequest
from tests.go_verdicts import CASES, body_of, name_of

REQUESTS: dict[str, Struct] = {
    "generate": schemas.GENERATE,
    "chat": schemas.CHAT,
    "embed": schemas.EMBED,
    "embeddings": schemas.EMBEDDING,
    "show": schemas.SHOW,
    "pull": schemas.PULL,
    "push": schemas.PUSH,
    "create": schemas.CREATE,
    "copy": schemas.COPY,
    "delete": schemas.DELETE,
    "v1_chat": openai_requests.CHAT,
    "v1_completions": openai_requests.COMPLETION,
    "v1_embeddings": openai_requests.EMBED,
    "v1_responses": responses_requests.RESPONSES,
    "v1_messages": anthropic_requests.MESSAGES,
}
LONGEST_S = ((1 << 63) - 1) / 1e9
"""Go keeps 64 bits of nanoseconds, 292 years, which stands for indefinitely."""


@pytest.mark.parametrize("case", [case for case in CASES if "error" in case["go"]], ids=name_of)
def test_a_body_that_go_refuses_is_refused_in_the_same_words(case: dict[str, Any]) -> None:
    """Malformed JSON, wrong types, values out of range."""
    with pytest.raises(BadRequest) as caught:
        bind(body_of(case), REQUESTS[case["kind"]])
    assert caught.value.message == case["go"]["error"]


@pytest.mark.parametrize("case", [case for case in CASES if "error" not in case["go"]], ids=name_of)
def test_a_body_that_go_takes_names_the_same_model(case: dict[str, Any]) -> None:
    """The same strings, and the same time to keep the model."""
    found, go = bind(body_of(case), REQUESTS[case["kind"]]), case["go"]
    for key in ("model", "name", "source", "destination", "from"):
        assert (found.get(key) or "") == go.get(key, "")
    if (nanoseconds := go.get("keep_alive_ns")) is not None:
        seconds = min(max(0.0, found["keep_alive"]), LONGEST_S)
        assert seconds == pytest.approx(max(0, int(nanoseconds)) / 1e9, abs=1e-9)


def test_a_chat_body_keeps_what_was_sent() -> None:
    """Roles are folded to lower case; absent fields stay absent."""
    found = bind(b'{"model":"m","messages":[{"role":"USER","content":"x"}],"keep_alive":-1}', schemas.CHAT)
    assert found["messages"] == [{"role": "user", "content": "x"}]
    assert found["keep_alive"] == float("inf")
    assert "stream" not in found


def test_tools_keep_the_order_and_the_nesting_of_their_properties() -> None:
    """A property's type is a word or several; properties nest."""
    inner = b'"z":{"type":"string"},"a":{"type":["number","null"],"enum":[1,null]}'
    parameters = b'{"properties":{"o":{"properties":{%b}}}}' % inner
    found = bind(b'{"tools":[{"function":{"parameters":%b}}]}' % parameters, schemas.CHAT)
    outer = found["tools"][0]["function"]["parameters"]["properties"]
    assert outer == {
        "o": {"properties": {"z": {"type": "string"}, "a": {"type": ["number", "null"], "enum": [1, None]}}}
    }
    assert list(outer["o"]["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"tools":[{"function":{"parameters":{"properties":[]}}}]}',
        b'{"messages":[{"tool_calls":[{"function":{"arguments":"{}"}}]}]}',
    ],
)
def test_ordered_objects_refuse_other_values(body: bytes) -> None:
    """In the words of the decoder that Ollama uses for them."""
    with pytest.raises(BadRequest, match="Value looks like object, but can't find closing '}' symbol"):
        bind(body, schemas.CHAT)


def test_base64_errors_name_the_byte() -> None:
    """A data URL fails at its colon."""
    with pytest.raises(BadRequest, match="illegal base64 data at input byte 4"):
        go_base64("data:image/png;base64,AAAA")
