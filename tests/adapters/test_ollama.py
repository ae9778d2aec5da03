"""The control plane sends the right requests to Ollama, and distinguishes the ways in which they fail."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import UTC, datetime

import httpx
import pytest
import respx

from router.adapters.ollama import CatalogReader, OllamaClient, PsRow
from router.core.ollama.runner import LoadOptions
from router.errors import LoadFailed, ModelNotFound, UpstreamError, UpstreamTimeout

URL = "http://ollama.test:11434"
LLAMA = {"name": "llama3:latest", "model": "llama3:latest", "size": 10, "digest": "d1", "details": {"family": "llama"}}
SHOW = {
    "modelfile": f"FROM /models/blobs/sha256-{'a' * 64}\n",
    "model_info": {"general.architecture": "llama"},
    "capabilities": ["completion"],
}


@pytest.fixture
async def client():
    """Provide a client of the server that respx simulates."""
    found = OllamaClient(URL)
    yield found
    await found.aclose()


@pytest.fixture
def server():
    """Provide the simulated server; a request that the test does not expect is an error."""
    with respx.mock(base_url=URL, assert_all_called=False) as mock:
        yield mock


def sent(route, index=0):
    return json.loads(route.calls[index].request.content)


async def test_version_and_tags_are_read(client, server):
    """The rows of tags are unchanged, and null is an empty list."""
    server.get("/api/version").respond(json={"version": "0.33.0"})
    server.get("/api/tags").mock(
        side_effect=[httpx.Response(200, json={"models": [LLAMA]}), httpx.Response(200, json={"models": None})]
    )
    assert await client.version() == "0.33.0"
    assert await client.tags() == [LLAMA]
    assert await client.tags() == []


async def test_rows_of_ps_are_read(client, server):
    """All fields, with nanoseconds; an incomplete row is not an error."""
    row = {
        "name": "gemma3:270m", "model": "gemma3:270m", "size": 224300892, "digest": "5aed", "size_vram": 224300891,
        "details": {"format": "gguf"}, "expires_at": "2026-11-23T01:08:54.12364988Z", "context_length": 4096,
    }  # fmt: skip
    server.get("/api/ps").respond(
        json={"models": [row, {"model": "x", "expires_at": "soon"}, {"expires_at": "2319-01-01T00:00:00"}]}
    )
    first, second, third = await client.ps()
    assert first == PsRow(
        "gemma3:270m", "5aed", 224300892, 224300891, 4096,
        datetime(2026, 11, 23, 1, 8, 54, 123649, UTC), {"format": "gguf"},
    )  # fmt: skip
    assert (second.name, second.size_bytes, second.expires_at.year) == ("x", 0, 1)
    assert third.expires_at == datetime(2319, 1, 1, tzinfo=UTC)


async def test_show_is_verbose(client, server):
    """The facts need the tensors, which only a verbose answer has."""
    route = server.post("/api/show").respond(json=SHOW)
    assert await client.show("llama3") == SHOW
    assert sent(route) == {"model": "llama3", "verbose": True}


async def test_a_load_sends_exactly_its_options(client, server):
    """Without a prompt, not streamed, and with no other option; `shift` is sent as a field, not as an option."""
    route = server.post("/api/generate").respond(json={"done": True, "done_reason": "load"})
    await client.load("llama3", LoadOptions(num_ctx=8192, num_gpu=99, shift=False), keep_alive_s=300.0)
    await client.load("llama3", LoadOptions(), keep_alive_s=math.inf)
    await client.load("llama3", LoadOptions(use_mmap=True), keep_alive_s=1.5)
    options = {"num_ctx": 8192, "num_gpu": 99}
    assert sent(route) == {"model": "llama3", "keep_alive": 300, "options": options, "stream": False, "shift": False}
    assert sent(route, 1) == {"model": "llama3", "keep_alive": -1, "options": {}, "stream": False}
    assert sent(route, 2)["keep_alive"] == 1.5


async def test_an_embedding_model_is_loaded_by_its_own_route(client, server):
    """An empty input loads it; /api/generate would refuse the model."""
    route = server.post("/api/embed").respond(json={"model": "e", "embeddings": []})
    await client.load("e", LoadOptions(num_ctx=512), keep_alive_s=60.0, embedding=True)
    assert sent(route) == {"model": "e", "keep_alive": 60, "options": {"num_ctx": 512}, "input": []}


async def test_an_unload_never_loads(client, server):
    """For every kind of model the route is used that expires a runner before it checks the model."""
    route = server.post("/api/generate").respond(json={"done": True, "done_reason": "unload"})
    await client.unload("x")
    assert sent(route) == {"model": "x", "keep_alive": 0, "stream": False}


async def test_a_failed_load_keeps_the_servers_own_text_and_status(client, server):
    """They are passed on to the client unchanged."""
    server.post("/api/generate").respond(500, json={"error": "llama-server process has terminated: exit status 1"})
    with pytest.raises(LoadFailed, match="exit status 1") as caught:
        await client.load("x", LoadOptions(), 60.0)
    assert caught.value.status == 500


async def test_an_error_with_status_200_is_an_error(client, server):
    """Some failures occur after the status was sent."""
    server.post("/api/create").respond(200, json={"error": "no such base"})
    with pytest.raises(UpstreamError, match="no such base"):
        await client.create_derived("a", "b", {"num_ctx": 4096})


async def test_derived_tags_are_created_and_deleted(client, server):
    """A derived tag has a base model and parameters; the deletion has a body."""
    create = server.post("/api/create").respond(json={"status": "success"})
    delete = server.delete("/api/delete").respond(200)
    await client.create_derived("x-router:8k", "x", {"num_ctx": 8192})
    await client.delete("x-router:8k")
    assert sent(create) == {"model": "x-router:8k", "from": "x", "parameters": {"num_ctx": 8192}, "stream": False}
    assert sent(delete) == {"model": "x-router:8k"}


@pytest.mark.parametrize("call", ["show", "unload", "delete"])
async def test_an_unknown_model_has_its_own_error(client, server, call):
    """A 404 to a request with a model is ModelNotFound, with Ollama's text."""
    server.route().respond(404, json={"error": "model 'x' not found"})
    with pytest.raises(ModelNotFound, match="model 'x' not found"):
        await getattr(client, call)("x")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (httpx.ConnectError("refused"), UpstreamError, "cannot reach Ollama at http"),
        (httpx.RemoteProtocolError(""), UpstreamError, "RemoteProtocolError"),
        (httpx.ReadTimeout("late"), UpstreamTimeout, "GET /api/ps in time"),
        (httpx.Response(502, text="<html>bad gateway"), UpstreamError, "502: <html>bad gateway"),
        (httpx.Response(404, text="404 page not found"), UpstreamError, "404 page not found"),
        (httpx.Response(500), UpstreamError, "500: Internal Server Error"),
        (httpx.Response(200, text="Ollama is running"), UpstreamError, "cannot be read: JSON is malformed"),
        (httpx.Response(200, text=f'{{"models":[{"[]," * 50_000}[]]}}'), UpstreamError, "too many values"),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), UpstreamError, "302"),
    ],
)
async def test_every_failure_is_an_upstream_error(client, server, answer, error, text):
    """No exception of httpx is raised, and redirects are not followed."""
    server.get("/api/ps").mock(side_effect=[answer])
    with pytest.raises(error, match=text):
        await client.ps()


@pytest.mark.parametrize("odd", [["x"], {}, 5, {"models": {}}, {"models": "x"}])
async def test_a_list_that_is_none_is_an_upstream_error(client, server, odd):
    """Nothing is known then; to take it for an empty list would be to take all models for unloaded."""
    server.get("/api/ps").respond(json=odd)
    with pytest.raises(UpstreamError, match="no list of models"):
        await client.ps()


async def test_more_loaded_models_than_any_machine_has_are_an_upstream_error(client, server):
    """Each costs a while on the loop, whenever the state is read."""
    server.get("/api/ps").mock(side_effect=[httpx.Response(200, json={"models": [{}] * n}) for n in (200, 201)])
    assert len(await client.ps()) == 200
    with pytest.raises(UpstreamError, match="lists 201 models"):
        await client.ps()


async def test_more_installed_models_than_any_machine_has_are_an_upstream_error(client, server):
    """Each costs a while on the loop, too."""
    server.get("/api/tags").mock(side_effect=[httpx.Response(200, json={"models": [{}] * n}) for n in (10000, 10001)])
    assert len(await client.tags()) == 10000
    with pytest.raises(UpstreamError, match="lists 10001 models"):
        await client.tags()


async def test_a_list_of_nothing_is_empty(client, server):
    """Ollama sends null for it."""
    server.get("/api/ps").respond(json={"models": None})
    assert await client.ps() == []


async def test_a_big_answer_is_decoded(client, server):
    """In a thread: the vocabulary of a large model makes an answer of many megabytes."""
    words = [f"word{number}" for number in range(200_000)]
    server.post("/api/show").respond(json=SHOW | {"model_info": {"a": 1, "tokenizer.ggml.tokens": words}})
    assert (await client.show("x"))["model_info"] == {"a": 1, "tokenizer.ggml.tokens": len(words)}


async def test_cancelling_a_caller_does_not_cancel_its_call(client, server):
    """The exchange ends regularly, so that the pool loses no connection; its failure is discarded."""
    release = asyncio.Event()
    ended = []

    async def slow(request):
        await release.wait()
        ended.append(request.url.path)
        return httpx.Response(500, json={"error": "x"})

    server.get("/api/ps").mock(side_effect=slow)
    caller = asyncio.create_task(client.ps())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    release.set()
    await asyncio.gather(*client._control._calls, return_exceptions=True)
    assert ended == ["/api/ps"]


async def test_closing_cancels_the_calls_under_way(server):
    """Shutdown does not wait for a hung server."""
    client = OllamaClient(URL)
    server.get("/api/ps").mock(side_effect=lambda _request: asyncio.sleep(3600))
    caller = asyncio.create_task(client.ps())
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(asyncio.CancelledError):
        await caller


class FakeServer:
    """Answers tags and show from dictionaries, and records the calls."""

    def __init__(self, *rows):
        self.rows = list(rows)
        self.failing = set()
        self.asked = []

    async def tags(self):
        self.asked.append("tags")
        await asyncio.sleep(0)
        return self.rows

    async def show(self, name, **_options):
        self.asked.append(name)
        await asyncio.sleep(0)
        if name in self.failing:
            raise UpstreamError("broken")
        return SHOW


async def test_the_catalog_is_keyed_by_canonical_name():
    """So every spelling of a name finds its facts."""
    catalog = await CatalogReader(FakeServer(LLAMA, {"name": "a b"}, {})).refresh()
    assert list(catalog) == ["registry.ollama.ai/library/llama3:latest"]
    assert next(iter(catalog.values())).weights == f"sha256-{'a' * 64}"


async def test_one_show_per_digest():
    """Tags of one manifest share it; unchanged models are not shown again, and keep the same facts object."""
    server = FakeServer(LLAMA, LLAMA | {"name": "copy:latest", "model": "copy:latest"})
    reader = CatalogReader(server)
    first, second = await reader.refresh(), await reader.refresh()
    assert (server.asked.count("tags"), len(server.asked)) == (2, 3)
    assert {facts.name for facts in first.values()} == {"llama3:latest", "copy:latest"}
    assert all(first[key] is second[key] for key in first)


async def test_a_new_digest_is_shown_again():
    """A pull that moves a tag is noticed."""
    server = FakeServer(LLAMA)
    reader = CatalogReader(server)
    (old,) = (await reader.refresh()).values()
    server.rows = [LLAMA | {"digest": "d2"}]
    (new,) = (await reader.refresh()).values()
    assert (old.digest, new.digest) == ("d1", "d2")


async def test_a_model_whose_show_fails_does_not_hide_the_others():
    """It has the coarse facts of its row until a show succeeds."""
    broken = LLAMA | {"name": "broken:latest", "model": "broken:latest", "digest": "d9"}
    server = FakeServer(LLAMA, broken)
    server.failing = {"broken:latest"}
    reader = CatalogReader(server)
    catalog = await reader.refresh()
    key = "registry.ollama.ai/library/broken:latest"
    assert (len(catalog), catalog[key].tensors, catalog[key].weights) == (2, (), "manifest-d9")
    server.failing = set()
    assert (await reader.refresh())[key].weights == f"sha256-{'a' * 64}"


async def test_refreshes_share_one_reading():
    """A call during a reading waits for it, and cancelling one caller does not cancel the reading."""
    server = FakeServer(LLAMA)
    reader = CatalogReader(server)
    leaver, stayer = asyncio.create_task(reader.refresh()), asyncio.create_task(reader.refresh())
    await asyncio.sleep(0)
    leaver.cancel()
    assert len(await stayer) == 1
    assert server.asked.count("tags") == 1


async def test_a_refresh_fails_if_tags_cannot_be_read(client, server):
    """There is no catalog without the list."""
    server.get("/api/tags").mock(side_effect=httpx.ConnectError("refused"))
    with pytest.raises(UpstreamError, match="refused"):
        await CatalogReader(client).refresh()
