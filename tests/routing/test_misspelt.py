"""A misspelt model: Ollama's own error reaches the client as it is, and the reason names what was probably meant."""

from __future__ import annotations

import json

from tests.config.keys.play import ALONE, SMALL, connect, play

WRONG = SMALL.replace("ll", "l", 1)


def test_a_misspelt_model_gets_ollamas_error_and_a_hint_in_the_reason():
    """Whatever the route; a name that is like none gets no hint."""

    async def story(one):
        raw, direct = await connect(one.router.url), await connect(one.sim.url)
        found = []
        for path, more in (("/api/chat", {"messages": []}), ("/v1/completions", {"prompt": "a"})):
            for model in (WRONG, "phi4"):
                body = {"model": model, **more}
                ours, theirs = (
                    await raw.ask("POST", path, json.dumps(body)),
                    await direct.ask("POST", path, json.dumps(body)),
                )
                assert (ours.status, ours.body) == (theirs.status, theirs.body)
                found.append(ours.headers["x-router-reason"])
        raw.close()
        direct.close()
        return found

    hint = f"passthrough: not installed (did you mean {SMALL}?)"
    assert play(story, ALONE) == [hint, "passthrough: not installed"] * 2
