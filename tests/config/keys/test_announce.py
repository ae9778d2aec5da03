"""`announce`: the line in front of an answer that says which variant has answered, and why."""

import asyncio
import json

import pytest

from tests.config.keys.play import ALONE, EMBEDDER, HUGE, SMALL, chat, compare, hello, play, send

CHAIN = {**ALONE, "chains": {HUGE: [HUGE, SMALL]}}
LINE = f"[answered by {SMALL} instead of {HUGE}: {HUGE} too big]"
ALWAYS = {**CHAIN, "defaults.announce": "always"}
NATIVE, OPENAI = "/api/chat", "/v1/chat/completions"
USER, ANSWERED = {"role": "user", "content": "[[tokens=4]] hi"}, {"role": "assistant", "content": "hello"}


def said(reply, path):
    """The text of an answer, streamed or not."""
    assert reply.status == 200, reply.body
    if path.startswith("/v1"):
        if not reply.body.startswith(b"data:"):
            return reply.json()["choices"][0]["message"]["content"]
        events = [line[6:] for line in reply.body.decode().splitlines() if line.startswith("data: {")]
        parts = [json.loads(event)["choices"] for event in events]
        return "".join(part[0]["delta"].get("content") or "" for part in parts if part)
    lines = [json.loads(line) for line in reply.body.splitlines()]
    return "".join(line["message"]["content"] if "message" in line else line["response"] for line in lines)


def asked(path, body, config=ALWAYS, models=(HUGE, SMALL)):
    """The answer under `config`."""

    async def story(one):
        return await send(one.router.url, "POST", path, body)

    return play(story, config, models=models)


@pytest.mark.key("defaults.announce")
def test_the_variant_that_answered_is_named_in_front_of_the_answer_if_that_is_wanted():
    """Off by default; first is for the first answer of a conversation."""

    async def story(one):
        talk = {"model": HUGE, "stream": False, "messages": [USER]}
        first = await send(one.router.url, "POST", NATIVE, talk)
        second = await send(one.router.url, "POST", NATIVE, {**talk, "messages": [USER, ANSWERED, USER]})
        return [said(reply, NATIVE).startswith(f"{LINE}\n\n") for reply in (first, second)]

    found = compare(story, "defaults.announce", ["off", "first", "always"], CHAIN, models=(HUGE, SMALL))
    assert found == [[False, False], [True, False], [True, True]]


@pytest.mark.key("chains.*.announce")
def test_a_chain_may_be_announced_alone():
    """Or not, where all others are."""

    async def story(one):
        return [
            said(
                await send(one.router.url, "POST", NATIVE, {"model": name, "stream": False, "messages": [USER]}), NATIVE
            )
            for name in (HUGE, SMALL)
        ]

    texts = []
    for default, own in (("off", "always"), ("always", "off")):
        chain = {HUGE: {"variants": [HUGE, SMALL], "announce": own}}
        texts.append(play(story, {**ALONE, "defaults.announce": default, "chains": chain}, models=(HUGE, SMALL)))
    assert [[text.startswith("[answered by ") for text in pair] for pair in texts] == [[True, False], [False, True]]
    assert texts[1][1].startswith(f"[answered by {SMALL}: it was loaded]\n\n")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [NATIVE, "/api/generate", OPENAI])
def test_counts_and_last_lines_are_ollamas_own(path, stream):
    """A stream has one line or event more, and all of Ollama's, unchanged; the token counts are those without it."""
    body = hello(HUGE, stream=stream) if path == "/api/generate" else {**chat(HUGE), "stream": stream}
    with_line, without = asked(path, body), asked(path, body, CHAIN)
    assert said(with_line, path) == f"{LINE}\n\n{said(without, path)}"
    split = b"\n\n" if path == OPENAI else b"\n"
    if stream:
        mine, theirs = (reply.body.split(split) for reply in (with_line, without))
        assert len(mine) == len(theirs) + 1
    counts = ("usage",) if path == OPENAI else ("prompt_eval_count", "eval_count", "done_reason", "context")
    ends = [json.loads(reply.body.splitlines()[-1]) for reply in (with_line, without) if path != OPENAI or not stream]
    if ends:
        assert [ends[0].get(name) for name in counts] == [ends[1].get(name) for name in counts]


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (NATIVE, {"tools": [TOOL]}),
        (NATIVE, {"format": "json"}),
        (NATIVE, {"format": {"type": "object"}}),
        (NATIVE, {"messages": [USER, ANSWERED]}),
        (NATIVE, {"messages": [USER, {"role": "tool", "content": "3"}]}),
        (OPENAI, {"tools": [TOOL]}),
        (OPENAI, {"response_format": {"type": "json_object"}}),
        ("/v1/completions", {"prompt": "def f("}),
    ],
)
def test_what_programs_read_has_no_line(path, more):
    """Tools, formats, an answer that the client has begun, what editors complete."""
    body = {"model": SMALL, "stream": False, "messages": [USER], **more}
    if "prompt" in body:
        del body["messages"]
    reply = asked(path, body, {**ALWAYS, "chains": {}}, models=(SMALL,))
    assert reply.status == 200
    assert b"answered by" not in reply.body


@pytest.mark.parametrize(
    "more",
    [
        {"raw": True},
        {"RAW": True},
        {"suffix": "}"},
        {"format": "json"},
        {"prompt": ""},
        {"keep_alive": 0, "prompt": ""},
    ],
)
def test_raw_answers_loads_and_unloads_have_no_line(more):
    """Whatever the spelling."""
    body = {**hello(SMALL, stream=False), **more}
    reply = asked("/api/generate", body, {**ALWAYS, "chains": {}}, models=(SMALL,))
    assert b"answered by" not in reply.body


def test_a_continued_answer_counts_as_a_later_one():
    """/api/generate with the tokens of the answers before."""

    async def story(one):
        first = await send(one.router.url, "POST", "/api/generate", hello(SMALL, stream=False))
        again = hello(SMALL, stream=False, context=first.json()["context"])
        return [said(first, ""), said(await send(one.router.url, "POST", "/api/generate", again), "")]

    first, second = play(story, {**ALONE, "defaults.announce": "first"}, models=(SMALL,))
    assert first.startswith("[answered by ")
    assert "answered by" not in second


def test_embeddings_and_errors_have_no_line():
    """A 404 is Ollama's own, and vectors are numbers."""
    reply = asked("/api/embed", {"model": EMBEDDER, "input": "hi"}, {**ALWAYS, "chains": {}}, models=(EMBEDDER,))
    assert reply.json()["embeddings"]
    assert b"answered by" not in reply.body
    missing = asked(NATIVE, {"model": "nothing:1b", "messages": [USER]}, {**ALWAYS, "chains": {}}, models=(SMALL,))
    assert (missing.status, b"answered by" in missing.body) == (404, False)


def test_a_stream_that_breaks_off_after_the_line_still_ends_with_an_error():
    """As without the line."""

    async def story(one):
        await send(one.router.url, "POST", NATIVE, {"model": SMALL, "messages": [USER]})
        task = asyncio.create_task(
            send(
                one.router.url, "POST", NATIVE, {"model": SMALL, "messages": [{**USER, "content": "[[tokens=400]] hi"}]}
            )
        )
        await asyncio.sleep(1.0)
        await one.sim.stop()
        return await task

    reply = play(story, {**ALWAYS, "chains": {}}, models=(SMALL,))
    lines = reply.body.splitlines()
    assert b"answered by" in lines[0]
    assert "error" in json.loads(lines[-1])
