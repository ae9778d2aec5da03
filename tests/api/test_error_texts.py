"""Errors name what the client named, in whole bodies and in streams; the content of answers stays as it is."""

import json

import pytest

from router.api.error_texts import shown_error, shown_value
from router.api.streams import EventStream, LineStream
from router.core.ollama.routes import TARGETS
from router.http.client.response import UpstreamResponse
from tests.fakes import FakeDispatcher, client, running_edge
from tests.http.scripted_relay import ScriptedRelay

TAG = "ollama-router-derived/mistral:7b-d0d3a5429-o5f0c1e-c32768-b512-gx"
RENAME = (TAG.encode(), b"Mistral:7B")
TEXT, SHOWN = (
    f'"{TAG}" cannot (registry.ollama.ai/{TAG})',
    '"Mistral:7B" cannot (registry.ollama.ai/library/mistral:7b)',
)
ASKED = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"input":"hi","max_tokens":9}'
STAT = f"stat /m/registry.ollama.ai/{TAG.replace(':', '/')}: gone"
STAT_SHOWN = "stat /m/registry.ollama.ai/library/mistral/7b: gone"
DIALECTS = {
    "/api/chat": lambda text: {"error": text},
    "/v1/chat/completions": lambda text: {"error": {"message": text, "type": "api_error"}},
    "/v1/messages": lambda text: {"type": "error", "error": {"type": "api_error", "message": text}},
    "/v1/responses": lambda text: {"type": "error", "code": "server_error", "message": text, "param": None},
    "a failed response": lambda text: {
        "type": "response.failed",
        "response": {"error": {"message": text}, "output": []},
    },
}
CONTENT = [
    {"model": "m", "message": {"content": TEXT}, "done": False},
    {"choices": [{"delta": {"content": f'{{"error":"{TAG}"}}'}}]},
    {"message": {"tool_calls": [{"function": {"name": "error", "arguments": {"error": TEXT}}}]}},
    {"type": "content_block_delta", "delta": {"text": TEXT, "error": TEXT}},
    {"type": "response.completed", "response": {"error": None, "output": [{"text": TEXT, "error": TEXT}]}},
    {"error": None, "response": TEXT},
]


def encoded(value):
    return json.dumps(value, separators=(",", ":")).encode()


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_an_error_in_a_stream_and_with_a_status_names_what_the_client_named(dialect):
    """In every dialect; its other members stay."""
    before, after = encoded(dialect(TEXT)), encoded(dialect(SHOWN))
    assert shown_value(before, RENAME) == shown_error(before, RENAME) == after
    line = LineStream(TARGETS["POST", b"/api/chat"], RENAME)
    assert line.feed(before + b"\n" + before + b"\n") == after + b"\n" + after + b"\n"
    for head in (b"data: ", b"data:", b"event: error\ndata: "):
        event = EventStream(TARGETS["POST", b"/v1/messages"], RENAME)
        assert event.feed(head + before + b"\n\n") == head + after + b"\n\n"


def test_the_last_line_of_a_stream_without_its_line_break_is_an_error_like_the_others():
    """It was held back until the end."""
    line = LineStream(TARGETS["POST", b"/api/chat"], RENAME)
    assert line.feed(encoded({"error": TEXT})) == b""
    assert line.rest() == encoded({"error": SHOWN})


@pytest.mark.parametrize("value", CONTENT, ids=range(len(CONTENT)))
@pytest.mark.parametrize("rename", [RENAME, None], ids=["tag", "none"])
def test_the_content_of_an_answer_is_never_altered(value, rename):
    """Byte for byte, whatever a model says."""
    body = encoded(value)
    assert shown_value(body, rename) == body
    assert LineStream(TARGETS["POST", b"/api/chat"], rename).feed(body + b"\n") == body + b"\n"
    event = b"data: " + body + b"\n\n"
    assert EventStream(TARGETS["POST", b"/v1/messages"], rename).feed(event) == event


def test_a_name_in_an_event_is_replaced_although_its_text_looks_like_another_event():
    """The data begin at the start of a line."""
    stream = EventStream(TARGETS["POST", b"/v1/chat/completions"], RENAME)
    value = {"model": TAG, "choices": [{"delta": {"content": "data: x\ndata: y"}}]}
    shown = stream.feed(b"data: " + encoded(value) + b"\n\n")
    assert shown == b"data: " + encoded({**value, "model": "Mistral:7B"}) + b"\n\n"


@pytest.mark.parametrize("path", [path for path in DIALECTS if path.startswith("/")])
async def test_a_request_that_named_no_tag_hears_of_none(path):
    """A listing that failed prints the path of somebody's manifest; a name may be the client's own, and stays."""
    body = encoded(DIALECTS[path](f"{STAT} {TAG}"))
    relay = ScriptedRelay(lambda _: UpstreamResponse.of(500, [(b"content-length", b"%d" % len(body))], body))
    async with running_edge(FakeDispatcher(relay)) as running, client(running.port) as raw:
        reply = await raw.ask("POST", path, ASKED)
        assert (reply.status, reply.body) == (500, encoded(DIALECTS[path](f"{STAT_SHOWN} {TAG}")))


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/tags"), ("POST", "/api/show"), ("DELETE", "/api/delete")])
async def test_lists_and_management_hide_paths_of_tags_as_well(method, path):
    """They are not routed, but Ollama lists manifests for them too."""
    body = encoded({"error": STAT})
    relay = ScriptedRelay(lambda _: UpstreamResponse.of(500, [(b"content-length", b"%d" % len(body))], body))
    async with running_edge(FakeDispatcher(relay)) as running, client(running.port) as raw:
        reply = await raw.ask(method, path, b'{"model":"m"}')
        assert (reply.status, reply.json()) == (500, {"error": STAT_SHOWN})


def test_a_chain_is_named_in_place_of_its_variant():
    """As a name of its own, not as a part of another one."""
    rename = (b"mistral:7b", b"team")
    text = '"mistral:7b" and registry.ollama.ai/library/mistral:7b, not mistral:7b-x, my-mistral:7b or a/mistral:7b'
    shown = '"team" and registry.ollama.ai/library/team:latest, not mistral:7b-x, my-mistral:7b or a/mistral:7b'
    assert shown_error(encoded({"error": text}), rename) == encoded({"error": shown})
