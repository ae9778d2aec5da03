"""Long bodies: what they ask for is the same as that of short ones, and nothing long is decoded at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from router.core.go import json_keys, json_scan
from router.core.payload import messages, quick
from router.core.payload import rewrite as rewriting
from router.core.payload.read import read_request, read_wholly, rewrite
from router.errors import BadRequest

TEXT = "word, [x] {y} " * 3
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 9}}
MESSAGES = [
    {"role": "system", "content": TEXT},
    {"role": "user", "content": [{"type": "text", "text": TEXT}, IMAGE]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "user", "content": [{"type": "text", "text": TEXT}] * 20},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": TEXT}}}] * 9
BODIES: list[dict[str, Any]] = [
    {"model": "m", "messages": [{"role": "user", "content": TEXT}] * 30, "stream": False, "options": {"num_ctx": 8192}},
    {"model": "m", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 5},
    {"model": "m", "prompt": TEXT, "system": TEXT, "images": ["iVBORw0KGgo=" * 9] * 9, "context": [1] * 300},
    {"model": "m", "input": [TEXT] * 30, "instructions": TEXT, "reasoning": {"effort": "low"}},
    {"model": "m", "input": [1.5] * 300, "keep_alive": "5m", "format": {"type": "object", "properties": {"a": {}}}},
    {
        "model": "m",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}] * 9,
    },
    {"model": "m", "messages": [{"role": "user", "content": [1, TEXT]}] * 9, "tools": [{"type": 1}] * 30},
    {"model": "m", "messages": [{"role": 1}] * 60, "max_tokens": 1, "prompt": [TEXT, None], "x": {"a": [[[TEXT]]]}},
]
KINDS = ("generate", "chat", "embed", "v1_chat", "v1_completions", "v1_embeddings", "v1_responses", "v1_messages")


def asked(kind: str, body: bytes) -> tuple[int, object]:
    """Return the size of the prompt, and what else a body asks for and how it is sent."""
    try:
        found = read_wholly(kind, body)
    except BadRequest as error:
        return 0, error.message
    sent = rewrite(body, model="n", options={"num_ctx": 4096}, members=found.members, plain=found.plain)
    rest = msgspec.structs.replace(found, members=None, plain=None, prompt_bytes=0)
    return found.prompt_bytes, (rest, json.loads(b"".join(sent) if isinstance(sent, list) else sent))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_long_body_asks_for_the_same_as_a_short_one_f8(
    monkeypatch: pytest.MonkeyPatch, kind: str, body: dict[str, Any]
) -> None:
    """Wherever it is divided."""
    whole = json.dumps(body).encode()
    prompt_bytes, expected = asked(kind, whole)
    for long in (16, 60, 400):
        for module in (json_keys, quick, rewriting):
            monkeypatch.setattr(module, "LONG_BYTES", long)
        for module in (json_keys, json_scan):
            monkeypatch.setattr(module, "STEP_BYTES", max(16, long // 4))
        monkeypatch.setattr(json_keys, "MOST_KEYS", 10)  # shorter ones are split at once
        found_bytes, found = asked(kind, whole)
        assert found == expected
        assert found_bytes == pytest.approx(prompt_bytes, rel=0.1)  # the quotes of a message may count


LONG = json_keys.LONG_BYTES + 50_000
LONG_TEXT = '"' + "word " * (LONG // 5) + '"'
LARGE = {
    "a text": LONG_TEXT,
    "a list of a text": f"[{LONG_TEXT}]",
    "texts": "[" + '"word, word",' * (LONG // 13) + '""]',
    "numbers": "[" + "123456," * (LONG // 7) + "1]",
    "messages": "[" + '{"role":"user","content":"abc abc abc abc"},' * (LONG // 44) + "{}]",
    "parts": "[" + '{"type":"text","text":"abc abc abc abc"},' * (LONG // 41) + '{"type":"text","text":""}]',
    "a message": '[{"role":"user","content":[{"type":"text","text":' + LONG_TEXT + "}]}]",
    "messages of parts": "[" + '{"role":"user","content":[{"type":"text","text":"abc"}]},' * (LONG // 57) + "{}]",
    "white space": "[" + " \n" * (LONG // 2) + "]",
    "tools": "[" + '{"type":"function","function":{"name":"f","parameters":{}}},' * (LONG // 60) + "{}]",
    "a number": "1" * LONG,
    "brackets": "[" * 900 + LONG_TEXT + "]" * 900,
}
KEYS = ("messages", "input", "tools", "context", "keep_alive", "model")


class Counted:
    """A decoder that keeps how many bytes it was given at once."""

    most_bytes = 0

    def __init__(self, decoder: msgspec.json.Decoder[Any]) -> None:
        self._decoder = decoder

    def decode(self, text: bytes | memoryview) -> Any:
        Counted.most_bytes = max(Counted.most_bytes, len(memoryview(text)))
        return self._decoder.decode(text)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    names = {json_keys: ("_MEMBERS", "_ELEMENTS", "_STRING", "_VALUE"), messages: ("_QUICK", "_TEXT_PARTS")}
    for module, found in names.items():
        for name in found:
            monkeypatch.setattr(module, name, Counted(getattr(module, name)))
    Counted.most_bytes = 0
    return Counted


@pytest.mark.parametrize("kind", ["chat", "generate", "v1_responses"])
@pytest.mark.parametrize("shape", LARGE)
def test_nothing_long_of_a_body_is_decoded_at_once_f8(decoders: type[Counted], shape: str, kind: str) -> None:
    """Under whatever key it is."""
    for key in KEYS:
        body = f'{{"max_tokens":1,"{key}":{LARGE[shape]}}}'.replace("{", '{"model":"m",', key != "model").encode()
        try:
            assert quick.read_quick(kind, body) is None
            found = read_request(kind, body)
        except BadRequest:
            continue
        sent = rewrite(body, model="n", members=found.members, plain=found.plain)
        assert isinstance(sent, list) is (key != "model")  # which is replaced
        assert (b"".join(sent) if isinstance(sent, list) else sent).startswith(b'{"model":"n",')
    assert decoders.most_bytes <= json_keys.LONG_BYTES
