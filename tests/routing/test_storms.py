"""An Ollama that refuses loads, unloads or lists is asked a few times, after growing pauses, and not in a storm."""

import asyncio

import pytest

from tests.config.keys.play import ALONE, BIG, OTHER, hello, play, seen, send

ALWAYS = 1_000_000
SPAN_S = 6
GENERATE, PS = "/api/generate", "/api/ps"
ROW = f'"name":"{OTHER}","size":10,"digest":"{"x" * 64}"'


def status(route, code, **more):
    """Return a fault by which each answer has this status."""
    return "status", {"route": route, "status": code, **more}


def reset(route, **more):
    """Return a fault by which each connection is reset."""
    return "reset", {"route": route, "after_chunks": 0, **more}


def listing(body):
    """Return a fault by which ps answers with this body."""
    return status(PS, 200, body=body)


FAULTS = {
    "unload 500": status(GENERATE, 500, model=BIG),
    "unload 503": status(GENERATE, 503, model=BIG),
    "unload reset": reset(GENERATE, model=BIG),
    "load 500": status(GENERATE, 500, model=OTHER),
    "load 503": status(GENERATE, 503, model=OTHER),
    "load 404": status(GENERATE, 404, model=OTHER),
    "load reset": reset(GENERATE, model=OTHER),
    "ps 500": status(PS, 500),
    "ps 404": status(PS, 404),
    "ps reset": reset(PS),
    "ps empty": listing(""),
    "ps cut": listing('{"models":['),
    "ps number": listing('{"models":5}'),
    "ps list": listing("[1]"),
    "ps size beyond a float": listing(f'{{"models":[{{{ROW},"size_vram":1e400}}]}}'),
}
ROWS = {
    "null": "null",
    "text": '"x"',
    "no name": '{"size":10}',
    "empty name": '{"name":"","model":""}',
    "number as name": '{"name":5,"model":5}',
    "NUL in name": '{"name":"a\\u0000b"}',
    "long name": f'{{"name":"{"a" * 5000}"}}',
    "text as size": f'{{{ROW},"size_vram":"big"}}',
    "negative size": f'{{{ROW},"size_vram":-5}}',
    "huge size": f'{{{ROW},"size_vram":{10**30}}}',
    "number as digest": f'{{"name":"{OTHER}","digest":5}}',
    "no time": f'{{{ROW},"expires_at":"x"}}',
    "twice": f"{{{ROW}}},{{{ROW}}}",
}


def asked_under(kind, details):
    """Return what Ollama is asked within `SPAN_S`, and the answers to eight requests that want another model."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        await asyncio.sleep(2)
        one.sim.faults.add(kind, times=ALWAYS, **details)
        before = {path: len(seen(one, path)) for path in (GENERATE, PS, "/api/tags", "/api/version")}
        asking = [asyncio.create_task(send(one.router.url, "POST", GENERATE, hello(OTHER, tokens=1))) for _ in range(8)]
        await asyncio.sleep(SPAN_S)
        counts = {path: len(seen(one, path)) - count for path, count in before.items()}
        statuses = [task.result().status for task in asking if task.done()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return counts, statuses

    return play(story, ALONE)


@pytest.mark.parametrize("name", FAULTS)
def test_an_ollama_that_refuses_is_asked_a_few_times_and_the_requests_are_told_c9(name):
    """Loads, unloads, lists and versions, and all eight requests within six seconds."""
    counts, statuses = asked_under(*FAULTS[name])
    assert counts[GENERATE] <= 5
    assert counts["/api/tags"] <= 5
    assert counts["/api/version"] <= 5
    assert counts[PS] <= 15
    assert len(statuses) == 8
    assert set(statuses) <= {404, 500, 502, 503}


@pytest.mark.parametrize("code", [404, 500, 503])
def test_what_another_client_has_loaded_is_not_asked_for_in_a_storm(code):
    """It is loaded, and yet a load of it fails: it is left alone like any other model."""

    async def story(one):
        await send(one.sim.url, "POST", GENERATE, hello(OTHER, tokens=1))
        await asyncio.sleep(2)
        one.sim.faults.add("status", times=ALWAYS, route=GENERATE, status=code, model=OTHER)
        before = len(seen(one, GENERATE))
        asking = [asyncio.create_task(send(one.router.url, "POST", GENERATE, hello(OTHER, tokens=1))) for _ in range(8)]
        await asyncio.sleep(SPAN_S)
        statuses = [task.result().status for task in asking if task.done()]
        assert len(statuses) == 8
        assert set(statuses) <= {404, 500, 503}
        assert len(seen(one, GENERATE)) - before <= 5

    play(story, ALONE)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_ps_that_cannot_be_true_causes_no_storm(name):
    """The waits for what it shows poll; nothing is loaded or unloaded again and again."""
    counts, _ = asked_under(*listing(f'{{"models":[{ROWS[name]}]}}'))
    assert counts[GENERATE] <= 5
    assert counts[PS] <= 70


def test_requests_to_an_ollama_that_is_away_ask_for_few_readings():
    """Twice a second, however many there are, and each one is told."""

    async def story(one):
        await asyncio.sleep(2)
        one.sim.faults.add("reset", route=PS, times=ALWAYS, after_chunks=0)
        await asyncio.sleep(5)
        before = len(seen(one, PS))
        for _ in range(100):
            asking = [asyncio.create_task(send(one.router.url, "POST", GENERATE, hello(BIG))) for _ in range(5)]
            await asyncio.sleep(0.05)
        replies = await asyncio.gather(*asking)
        assert [reply.status for reply in replies] == [502] * 5
        assert len(seen(one, PS)) - before <= 18

    play(story, ALONE)
