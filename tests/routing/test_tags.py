"""Derived tags seen from outside: no answer names one, and none stays behind. The whole router on a virtual clock."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.models.library import real_library, real_model
from ollama_simulator.models.registry import Registry
from ollama_simulator.server import SimConfig
from router.app import running
from router.config import load_config
from router.core.ollama.derived_names import derived_name, is_derived
from router.core.ollama.names import ModelName
from router.core.ollama.runner import LoadOptions
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from router.planning.stage import stage

MODEL, OTHER, EMBEDDER = "llama3.2:3b", "mistral:7b", "nomic-embed-text:v1.5"
MODELS = (MODEL, OTHER, EMBEDDER)
NO_TOOLS = "gemma3:1b"
OPTIONS = LoadOptions(num_ctx=8192, num_batch=512)
VANISH = {"times": -1, "delay_s": 0.02}
ALONE = {"defaults.auto_chains": "off"}


def play(story, config=ALONE, **sim):
    """Run one story on a new stage."""
    machine = Machine(cards=(CardSpec(total_mib=24564),), speeds=Speeds(load_mib_per_s=10000, tokens_per_s=100))

    async def run():
        async with stage(SimConfig(machine=machine, models=MODELS, **sim), config) as one:
            await story(one)

    run_virtual(run())


async def send(url, method, target, body=None):
    """Send one request; return its status and its body."""
    client = HttpRelay(url, first_byte_timeout_s=1e5, idle_timeout_s=1e5)
    try:
        data = b"" if body is None else json.dumps(body).encode()
        answer = await client.open(UpstreamRequest(method.encode(), target.encode(), [], data, len(data)))
        parts = []
        while part := await answer.read():
            parts.append(part)
        return answer.status, b"".join(parts).decode()
    finally:
        await client.aclose()


def chat(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "[[tokens=3]] hi"}], **more}


async def use(one, model=MODEL, url=""):
    """Send a request that needs a derived tag."""
    status, _ = await send(url or one.url, "POST", "/v1/chat/completions", chat(model))
    return status


def tags(one):
    """Return the derived tags that are on the server."""
    return [model.show_name for model in one.sim.library.models.values() if is_derived(model.show_name)]


def leave_tag(one, model=MODEL, owner=""):
    """Put a tag on the server, as a router that was killed leaves it."""
    base = one.sim.library.find(model)
    name = derived_name(model, base.digest, OPTIONS, owner)
    made = real_model(model)
    one.sim.library.add(type(made)(**{**vars(made), "name": ModelName.parse(name)}))
    return name


def weights_on_disk(one, weights):
    return weights in one.sim.library.blobs


# --- names in errors -----------------------------------------------------------------------------------------------

WRONG = [
    ("/v1/chat/completions", chat("?", reasoning_effort="high")),
    ("/v1/chat/completions", chat("?", reasoning_effort="high", stream=True)),
    ("/v1/chat/completions", chat("?", reasoning_effort="low", stream_options={"include_usage": True}, stream=True)),
    ("/v1/completions", {"model": "?", "prompt": "a", "suffix": "b"}),
    ("/v1/completions", {"model": "?", "prompt": "a", "suffix": "b", "stream": True}),
    ("/v1/responses", {"model": "?", "input": "hi", "reasoning": {"effort": "high"}}),
    ("/v1/messages", chat("?", max_tokens=9) | {"messages": "x"}),
    ("/v1/embeddings", {"model": "?", "input": "hi", "dimensions": "x"}),
    ("/api/chat", chat("?", think=True)),
    ("/api/generate", {"model": "?", "prompt": "a", "suffix": "b"}),
]


@pytest.mark.parametrize("spelled", [OTHER, "Mistral:7B", "registry.ollama.ai/library/mistral:7b"])
@pytest.mark.parametrize(("path", "body"), WRONG, ids=[f"{number}{path}" for number, (path, _) in enumerate(WRONG)])
def test_an_error_is_the_text_that_ollama_itself_has_for_the_clients_name(path, body, spelled):
    """Of the first request, which loads the model, and of the next."""

    async def story(one):
        named = {**body, "model": spelled}
        for _ in range(2):
            assert _error(await send(one.url, "POST", path, named)) == _error(
                await send(one.sim.url, "POST", path, named)
            )

    play(story)


def _error(reply):
    """Return status and body of an answer without its random id."""
    status, body = reply
    return status, body.split(',"request_id"')[0]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"])
def test_what_a_model_cannot_do_is_said_of_the_clients_name_in_full(path):
    """Ollama's text for tools has the whole name without quotes."""
    tool = {"name": "f", "parameters": {}, "input_schema": {"type": "object"}}
    kind = {"/v1/responses": {"type": "function", **tool}, "/v1/messages": tool}.get(
        path, {"type": "function", "function": tool}
    )

    async def story(one):
        one.sim.library.add(real_model(NO_TOOLS))
        for is_streamed in (False, True, False):
            body = {**chat(NO_TOOLS), "input": "hi", "max_tokens": 9, "tools": [kind], "stream": is_streamed}
            found = _error(await send(one.url, "POST", path, body))
            assert f"registry.ollama.ai/library/{NO_TOOLS} does not support tools" in found[1]
            assert found == _error(await send(one.sim.url, "POST", path, body))

    play(story)


def test_an_error_for_a_chain_names_the_chain():
    """The client has never heard of its variant."""

    async def story(one):
        for path in ("/v1/chat/completions", "/api/chat"):
            _, body = await send(one.url, "POST", path, chat("team", reasoning_effort="high", think=True))
            assert '\\"team\\" does not support thinking' in body

    play(story, {"chains": {"team": [OTHER]}})


# --- tags go with their models -------------------------------------------------------------------------------------


async def _pull(url):
    await send(url, "POST", "/api/pull", {"model": MODEL})


async def _create(url):
    await send(url, "POST", "/api/create", {"model": MODEL, "from": MODEL, "system": "Answer."})


async def _copy(url):
    await send(url, "POST", "/api/copy", {"source": OTHER, "destination": MODEL})


async def _delete(url):
    await send(url, "DELETE", "/api/delete", {"model": MODEL.upper()})


CHANGES = [_delete, _create, _copy, _pull]


def newer():
    """Return a registry that has another model under the name."""
    found, registry = real_library([OTHER]).find(OTHER), Registry(tls=True)
    registry.add(type(found)(**{**vars(found), "name": ModelName.parse(MODEL)}))
    return registry


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
@pytest.mark.parametrize(("is_direct", "within_s"), [(False, 2), (True, 32)], ids=["through us", "straight"])
def test_a_tag_goes_when_its_model_is_deleted_or_replaced(change, is_direct, within_s):
    """However it is spelled; the tags of other models stay, and a new one is made for what has replaced it."""

    async def story(one):
        assert await use(one) == await use(one, OTHER) == 200
        (old,) = [tag for tag in tags(one) if "/llama" in tag]
        await change(one.sim.url if is_direct else one.url)
        await asyncio.sleep(within_s)
        left = tags(one)
        assert (old in left, len(left)) == (False, 1)
        status = await use(one)
        assert (status, len(tags(one))) == ((404, 1) if change is _delete else (200, 2))

    play(story, registry=newer())


def test_when_the_answer_to_a_deletion_arrives_the_weights_are_free():
    """No manifest of ours refers to them: Ollama has removed the blob."""

    async def story(one):
        weights = one.sim.library.find(MODEL).weights.digest
        await use(one)
        status, _ = await send(one.url, "DELETE", "/api/delete", {"model": MODEL})
        assert (status, tags(one), weights_on_disk(one, weights)) == (200, [], False)

    play(story)


def test_a_model_that_was_deleted_at_ollama_is_never_pulled_for_a_tag():
    """Ollama pulls the model that a tag is to be made from, if it is missing."""

    async def story(one):
        hello = {"model": MODEL, "prompt": "[[tokens=3]] hi", "options": {"num_ctx": 8192}}
        await send(one.url, "POST", "/api/generate", hello)
        await _delete(one.sim.url)
        assert await use(one) == 404
        assert one.sim.library.find(MODEL) is None

    registry = Registry(tls=True)
    registry.add(real_library([MODEL]).find(MODEL))
    play(story, registry=registry)


# --- leftovers -----------------------------------------------------------------------------------------------------


def test_leftovers_of_an_old_router_go_unless_something_runs_on_their_weights():
    """They name no owner: a router of an older version may be using one whose model is loaded."""

    async def story(one):
        used, unused = leave_tag(one), leave_tag(one, OTHER)
        gone = "ollama-router-derived/gone:7b-d12345678-c8192-b512-gx"
        leave_named(one, gone)
        await send(one.url, "POST", "/api/generate", {"model": MODEL, "prompt": "[[tokens=3]] hi", "keep_alive": -1})
        await asyncio.sleep(45)
        assert (used in tags(one), unused in tags(one), gone in tags(one)) == (True, False, False)
        await send(one.url, "POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
        await asyncio.sleep(45)
        assert tags(one) == []

    play(story)


def leave_named(one, name):
    made = real_model(MODEL)
    one.sim.library.add(type(made)(**{**vars(made), "name": ModelName.parse(name)}))


def test_leftovers_at_start_disturb_no_request():
    """Prompts for cold models while they are removed; listings fail where a manifest vanishes. No model is barred."""
    machine = Machine(cards=(CardSpec(total_mib=24564),), speeds=Speeds(load_mib_per_s=10000, tokens_per_s=100))

    async def run():
        config = SimConfig(machine=machine, models=MODELS)
        async with stage(config, None) as one:
            for number in range(20):
                leave_named(one, f"ollama-router-derived/gone:{number}-d12345678-c8192-b512-gx")
            one.sim.faults.add("vanish", **VANISH)
            async with router_at(one) as url:
                asked = [use(one, model, url) for model in (MODEL, OTHER) * 5]
                assert await asyncio.gather(*asked) == [200] * 10
                await asyncio.sleep(60)
                assert not [tag for tag in tags(one) if "gone" in tag]
                assert {seen.status for seen in one.sim.seen if seen.path == "/api/delete"} == {200}

    run_virtual(run())


@asynccontextmanager
async def router_at(one, **options):
    """Run one more router in front of the stage's Ollama; return its URL."""
    names = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:", **ALONE, **options}
    config = load_config(env={}, options={**names, "backends.local.url": one.sim.url})
    async with running(config, probe=one.sim.probe(), is_probed=True) as router:
        yield router.url


# --- two routers ---------------------------------------------------------------------------------------------------


def test_two_routers_leave_each_other_their_tags():
    """Neither at the start of one, nor meanwhile, nor at its end."""

    async def story(one):
        await use(one)
        (first,) = tags(one)
        async with router_at(one) as url:
            await asyncio.sleep(200)
            assert tags(one) == [first]
            assert await use(one, url=url) == 200
            assert len(tags(one)) == 2
            await asyncio.sleep(200)
            assert len(tags(one)) == 2
        assert tags(one) == [first]

    play(story)


def test_no_list_shows_anybodys_tags():
    """Of either router; ps shows the model that runs."""

    async def story(one):
        async with router_at(one) as url:
            await use(one)
            await use(one, OTHER, url)
            other = next(tag for tag in tags(one) if "mistral" in tag)
            await send(one.sim.url, "POST", "/api/generate", {"model": OTHER, "keep_alive": 0})
            await asyncio.sleep(3)
            await send(one.sim.url, "POST", "/v1/chat/completions", chat(other))  # now loaded under the tag's name
            for target in ("/api/tags", "/v1/models", "/api/ps"):
                for at in (one.url, url):
                    assert "derived" not in (await send(at, "GET", target))[1]
            assert OTHER in (await send(one.url, "GET", "/api/ps"))[1]

    play(story)


def test_a_tag_of_another_router_whose_model_is_long_gone_is_removed():
    """Nobody can use it, and Ollama frees the weights only then."""

    async def story(one):
        kept, orphan = leave_tag(one, owner="abc123"), leave_tag(one, OTHER, owner="abc123")
        await send(one.url, "DELETE", "/api/delete", {"model": OTHER})
        assert sorted(tags(one)) == sorted([kept, orphan])
        await asyncio.sleep(200)
        assert tags(one) == [kept]

    play(story)


def test_a_client_may_name_another_routers_tag_as_any_model():
    """It is passed on, and answers name it as it was named."""

    async def story(one):
        name = leave_tag(one, OTHER, owner="abc123")
        status, body = await send(one.url, "POST", "/v1/chat/completions", chat(name))
        assert (status, json.loads(body)["model"]) == (200, name)
        direct = await send(one.sim.url, "POST", "/api/chat", chat(name, think=True))
        assert await send(one.url, "POST", "/api/chat", chat(name, think=True)) == direct

    play(story)


# --- listings that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions", "/api/embed"])
def test_manifests_that_vanish_cost_no_client_an_answer(path):
    """Somebody creates and deletes tags at Ollama all the time; it answers 404, 400 and 500 for any model."""

    async def story(one):
        body = {"model": EMBEDDER if "embed" in path else MODEL, "input": "hi", "prompt": "hi"} | chat(MODEL)
        body["model"] = EMBEDDER if "embed" in path else MODEL
        one.sim.faults.add("vanish", **VANISH)
        churn = asyncio.create_task(_churn(one))
        try:
            statuses = [(await send(one.url, "POST", path, body))[0] for _ in range(40)]
            lists = [(await send(one.url, "GET", "/api/tags"))[0] for _ in range(40)]
        finally:
            churn.cancel()
        assert (set(statuses), set(lists)) == ({200}, {200})
        assert {404, 400, 500} & {seen.status for seen in one.sim.seen}

    play(story)


async def _churn(one):
    while True:
        leave_named(one, "somebodys:tag")
        await asyncio.sleep(0.4)
        one.sim.library.remove(ModelName.parse("somebodys:tag"))
        await asyncio.sleep(0.03)
