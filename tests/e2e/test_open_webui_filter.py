"""The filter for Open WebUI in config/examples: which model has answered is a status line, and the answer unchanged.

It is called as Open WebUI 0.12 calls it: once for each event of a stream, with the arguments that it names.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.config.keys.play import ALONE, HUGE, SMALL, play, send

FILE = Path(__file__).parents[2] / "config/examples/open_webui_filter.py"
CHAIN = {**ALONE, "chains": {HUGE: [HUGE, SMALL]}}
BODY = {"model": HUGE, "messages": [{"role": "user", "content": "[[tokens=4]] hi"}], "stream": True}


def loaded() -> Any:
    """Return a new filter, imported as Open WebUI does it: from its text."""
    spec = importlib.util.spec_from_file_location("function_which_model", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Filter()


def event(text: str, model: str = SMALL, **more: Any) -> dict[str, Any]:
    """Return an event as Open WebUI makes it of a line of Ollama's."""
    return {"id": "chatcmpl-1", "model": model, "choices": [{"index": 0, "delta": {"content": text}}], **more}


class Screen:
    """An event emitter that keeps what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def __call__(self, shown: dict[str, Any]) -> None:
        assert shown["type"] == "status"
        assert shown["data"]["done"] is True
        self.lines.append(shown["data"]["description"])


async def seen(
    one: Any, events: list[dict[str, Any]], asked: str = HUGE, message: str = "m1", base: str | None = None
) -> tuple[list[str], str]:
    """Pass events through the filter; return the status lines and the text of the answer."""
    screen, text = Screen(), ""
    model = {"id": asked, "info": {"base_model_id": base}}
    available = {
        "__event_emitter__": screen,
        "__metadata__": {"message_id": message},
        "__model__": model,
        "__user__": {},
    }
    wanted = {name: value for name, value in available.items() if name in inspect.signature(one.stream).parameters}
    for each in copy.deepcopy(events):
        passed = await one.stream(event=each, **wanted)
        text += "".join(choice["delta"].get("content") or "" for choice in passed.get("choices", []))
    while one._tasks:
        await asyncio.gather(*one._tasks)
    return screen.lines, text


async def test_another_model_than_the_one_asked_for_is_named_once() -> None:
    """With the first event; the answer is unchanged."""
    found = await seen(loaded(), [event(""), event("hel"), event("lo"), {"usage": {}}])
    assert found == ([f"answered by {SMALL} instead of {HUGE}"], "hello")


async def test_the_model_that_was_asked_for_is_named_only_if_that_is_wanted() -> None:
    """Also where a model of Open WebUI's own is made from it."""
    one = loaded()
    assert await seen(one, [event("hi")], asked=f"{SMALL}") == ([], "hi")
    assert await seen(one, [event("hi")], asked="my-helper", base=SMALL) == ([], "hi")
    one.valves.only_if_other = False
    assert await seen(one, [event("hi")], asked=SMALL, message="m2") == ([f"answered by {SMALL}"], "hi")


async def test_the_line_of_the_router_becomes_the_status_line() -> None:
    """It is removed from the answer."""
    line = f"answered by {SMALL} instead of {HUGE}: {HUGE} too big"
    assert await seen(loaded(), [event(f"[{line}]\n\n"), event("hello")]) == ([line], "hello")
    assert await seen(loaded(), [event(f"[{line}]\n\nhello [1]\n\n")]) == ([line], "hello [1]\n\n")


@pytest.mark.parametrize(
    "odd", [{}, {"choices": None}, {"choices": [None]}, {"error": "x"}, {"choices": [{"delta": None}], "model": "a"}]
)
async def test_odd_events_pass_unchanged(odd: dict[str, Any]) -> None:
    """Whatever an upstream sends, and without a place to show a status."""
    one = loaded()
    assert await one.stream(event=copy.deepcopy(odd)) == odd
    assert await one.stream(event=copy.deepcopy(odd), __event_emitter__=Screen(), __metadata__=None) == odd


async def test_messages_that_have_their_line_do_not_grow_without_bound() -> None:
    one = loaded()
    for number in range(1500):
        await seen(one, [event("hi")], message=f"m{number}")
    assert len(one._said) == 1000


def test_the_reason_is_read_from_the_admin_address_while_the_answer_goes_on() -> None:
    """A real router's answers, in the form that Open WebUI gives them."""

    async def story(stage: Any) -> tuple[list[str], str]:
        reply = await send(stage.router.url, "POST", "/api/chat", BODY)
        lines = [json.loads(line) for line in reply.body.splitlines()]
        events = [event(line["message"]["content"], line["model"]) for line in lines]
        one = loaded()
        one.valves.admin_url = stage.router.admin_url
        return await seen(one, events)

    lines, text = play(story, CHAIN, models=(HUGE, SMALL))
    first = f"answered by {SMALL} instead of {HUGE}"
    assert lines == [first, f"{first}: {HUGE} too big"]
    assert text


def test_an_announced_answer_is_the_same_as_one_that_is_not() -> None:
    """With `defaults.announce: always` the filter removes what the router has added."""

    async def story(stage: Any) -> tuple[list[str], str]:
        reply = await send(stage.router.url, "POST", "/api/chat", BODY)
        lines = [json.loads(line) for line in reply.body.splitlines()]
        return await seen(loaded(), [event(line["message"]["content"], line["model"]) for line in lines])

    plain, announced = (
        play(story, {**CHAIN, "defaults.announce": when}, models=(HUGE, SMALL)) for when in ("off", "always")
    )
    assert plain[1] == announced[1]
    assert announced[0][-1] == f"answered by {SMALL} instead of {HUGE}: {HUGE} too big"


async def test_an_admin_address_that_does_not_answer_costs_nothing_but_the_reason() -> None:
    """The name is shown."""
    one = loaded()
    one.valves.admin_url, one.valves.timeout_s = "http://127.0.0.1:1", 0.2
    assert await seen(one, [event("hi")]) == ([f"answered by {SMALL} instead of {HUGE}"], "hi")
