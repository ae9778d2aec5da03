"""What fails leaves no error behind that only the garbage collector frees, with all that its traceback refers to.

Python's collector looks very seldom at objects that have lived for a while, because it stops the router meanwhile.
"""

import asyncio

import pytest

from tests.config.keys.play import ALONE, BIG, OTHER, SMALL, chat, connect, in_front_of, play, send
from tests.http.raw_upstream import answer, raw_upstream
from tests.leftovers import errors_left, uncollected
from tests.routing.test_storms import ALWAYS, FAULTS, GENERATE, reset, status

TAGS, SHOW, CHAT = "/api/tags", "/api/show", "/api/chat"
FAILURES = FAULTS | {
    "tags 500": status(TAGS, 500),
    "tags number": status(TAGS, 200, body='{"models":5}'),
    "show 500": status(SHOW, 500),
    "show cut": status(SHOW, 200, body='{"model_info":{'),
    "show reset": reset(SHOW),
    "chat 500": status(CHAT, 500),
    "chat reset": reset(CHAT),
    "chat cut": ("reset", {"route": CHAT, "after_chunks": 2}),
    "chat hangs": ("hang", {"route": CHAT, "after_chunks": 0}),
    "load hangs": ("hang", {"route": GENERATE, "after_chunks": 0}),
}
BODIES = (
    "",
    "{",
    "[]",
    '{"model":5}',
    '{"model":"m","messages":5}',
    '{"model":"m","options":{"num_ctx":"x"}}',
    '{"model":"m","keep_alive":"x"}',
    '{"model":"a\\u0000b"}',
    '{"model":"' + "m" * 5000 + '"}',
    '{"model":"none"}',
    '{"model":"m","stream":5,"think":{}}',
    '{"model":"m","messages":[{"role":5}],"input":[[[]]],"prompt":{}}',
)


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_leaves_no_error_for_the_garbage_collector(name):
    kind, details = FAILURES[name]

    async def ask(one, *models):
        asking = (send(one.router.url, "POST", CHAT, chat(model)) for model in models)
        await asyncio.gather(*asking, return_exceptions=True)

    async def story(one):
        await ask(one, BIG)
        one.sim.faults.add(kind, times=ALWAYS, **details)
        with uncollected():
            for _ in range(3):
                await ask(one, OTHER, BIG, SMALL)
                one.router.router.backend.installed.mark_changed()
                await asyncio.sleep(30)
            return errors_left()

    assert play(story, {**ALONE, "switch.load_timeout_s": 8}) == []


@pytest.mark.parametrize("said", [b"HTTP/1.1 999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n", b"HTT0", b""])
async def test_an_answer_that_is_not_http_leaves_no_error_for_the_garbage_collector(said):
    lists = answer(b'{"models":[],"version":"0.40.0"}')

    async def script(visit):
        if visit.target == CHAT.encode():
            await visit.say(said)
            visit.writer.close()
        else:
            await lists(visit)

    async with raw_upstream(script) as upstream, in_front_of(upstream.url) as running:
        with uncollected():
            for _ in range(3):
                reply = await send(running.url, "POST", CHAT, chat("unknown"))
                assert reply.status == 502
            assert errors_left() == []


@pytest.mark.parametrize("path", [CHAT, "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/messages", SHOW])
def test_a_request_that_is_refused_leaves_no_error_for_the_garbage_collector(path):
    async def story(one):
        with uncollected():
            for body in BODIES:
                raw = await connect(one.router.url)
                assert (await raw.ask("POST", path, body)).status >= 400
                raw.close()
            await asyncio.sleep(1)
            return errors_left()

    assert play(story) == []
