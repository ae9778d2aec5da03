"""Real client libraries through a real router. They request a 70B model; an 8B model serves."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from tests.e2e.conftest import CHAIN, EMBEDDER, SERVED, TOO_BIG, VARIANTS

# Clients emit warnings, and leave connections to the garbage collector; these are not errors of this project.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROMPT = "[[tokens=5]] why is the sky blue?"
TOKENS = 6
"""Including the token that ends the answer."""
MESSAGES = [{"role": "user", "content": PROMPT}]
CRASH = [{"role": "user", "content": "[[tokens=30]] [[crash]] go on"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
LISTED = {CHAIN, *VARIANTS, TOO_BIG, EMBEDDER}


def imported(name):
    """Return a client's module; skip the test if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[test]'")


def assert_explained(headers, asked=CHAIN):
    """Check the headers that report the serving model and the reason."""
    assert headers["x-router-model"] == SERVED
    assert headers["x-router-requested-model"] == asked
    assert headers["x-router-reason"].startswith(("resident", "fallback", "fits"))


@pytest.fixture(autouse=True, scope="module")
def _collected():
    """Collect what a client has left open here, and not during another test."""
    yield
    gc.collect()


@pytest.fixture
def ollama_client(rig):
    """Provide ollama-python, with the headers of its answers."""
    ollama = imported("ollama")
    seen = []
    with ollama.Client(host=rig.address, event_hooks={"response": [seen.append]}) as client:
        yield ollama, client, seen


def test_ollama_lists_shows_chats_and_streams(rig, ollama_client):
    """The chain is listed and shown like a model; answers name the serving model."""
    _, client, seen = ollama_client
    assert {model.model for model in client.list().models} == LISTED
    assert client.show(CHAIN).details.family == "llama"
    answer = client.chat(CHAIN, MESSAGES)
    assert (answer.model, answer.done_reason, answer.eval_count) == (SERVED, "stop", TOKENS)
    assert_explained(seen[-1].headers)
    parts = list(client.chat(CHAIN, MESSAGES, stream=True))
    assert (len(parts), parts[-1].done, {part.model for part in parts}) == (6, True, {SERVED})
    assert client.generate(CHAIN, PROMPT).model == SERVED
    assert [row.model for row in client.ps().models] == [SERVED]
    assert rig.loads in ([], [SERVED])


def test_ollama_embeds_beside_the_chat_model_and_calls_tools(rig, ollama_client):
    """The embedder does not evict the chat model; a tool call is returned as one."""
    _, client, seen = ollama_client
    assert len(client.embed(EMBEDDER, ["one", "two"]).embeddings) == 2
    assert seen[-1].headers["x-router-model"] == EMBEDDER
    call = client.chat(CHAIN, MESSAGES, tools=[WEATHER]).message.tool_calls[0].function
    assert (call.name, dict(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert sorted(rig.residents()) == sorted([SERVED, EMBEDDER])


def test_ollama_raises_its_own_errors(ollama_client):
    """Nothing fits, unknown model, crashed runner: each is a ResponseError with the reason."""
    ollama, client, _ = ollama_client
    with pytest.raises(ollama.ResponseError, match=f"{TOO_BIG}.*too big \\(needs .* GiB") as refused:
        client.chat(TOO_BIG, MESSAGES)
    assert refused.value.status_code == 503
    with pytest.raises(ollama.ResponseError, match="model 'nobody:1b' not found") as unknown:
        client.chat("nobody:1b", MESSAGES)
    assert unknown.value.status_code == 404
    with pytest.raises(ollama.ResponseError):
        list(client.chat(CHAIN, CRASH, stream=True))
    assert client.chat(CHAIN, MESSAGES).model == SERVED


def test_async_ollama_clients_share_one_load(rig):
    """Ten concurrent ones cause no further load, and one that leaves in mid-stream does not affect the others."""
    ollama = imported("ollama")

    async def one(client):
        return [part async for part in await client.chat(CHAIN, MESSAGES, stream=True)][-1]

    async def leave(client):
        async for _ in await client.chat(CHAIN, [{"role": "user", "content": "[[tokens=400]] hi"}], stream=True):
            return

    async def crowd():
        async with ollama.AsyncClient(host=rig.address) as client:
            assert {model.model for model in (await client.list()).models} == LISTED
            *last, _ = await asyncio.gather(*(one(client) for _ in range(10)), leave(client))
            return last

    assert {(part.model, part.done) for part in asyncio.run(crowd())} == {(SERVED, True)}
    assert rig.loads in ([], [SERVED])


@pytest.fixture
def openai_client(rig):
    """Provide openai-python with the key that Ollama's documentation recommends, and without retries."""
    openai = imported("openai")
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="ollama", max_retries=0) as client:
        yield openai, client


def test_openai_lists_chats_and_streams(openai_client):
    """The chosen context is applied through a derived tag, whose name is in no answer."""
    _, client = openai_client
    assert {model.id for model in client.models.list()} == LISTED
    assert client.models.retrieve(CHAIN).id == CHAIN
    raw = client.chat.completions.with_raw_response.create(model=CHAIN, messages=MESSAGES)
    assert_explained(raw.headers)
    assert raw.parse().model == SERVED
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=CHAIN, messages=MESSAGES, stream=True, stream_options=options))
    assert {chunk.model for chunk in chunks} == {SERVED}
    assert chunks[-1].usage.completion_tokens == TOKENS
    assert client.completions.create(model=CHAIN, prompt=PROMPT).model == SERVED
    assert client.responses.create(model=CHAIN, input=PROMPT).status == "completed"
    assert len(client.embeddings.create(model=EMBEDDER, input=["one", "two"]).data) == 2
    tools = (
        client.chat.completions.create(model=CHAIN, messages=MESSAGES, tools=[WEATHER]).choices[0].message.tool_calls
    )
    assert tools[0].function.name == "get_weather"


def test_openai_raises_its_own_errors(openai_client):
    """Of the matching classes, with the reason in the text; a stream that breaks off raises, too."""
    openai, client = openai_client
    with pytest.raises(openai.InternalServerError, match=r"too big \(needs .* GiB") as refused:
        client.chat.completions.create(model=TOO_BIG, messages=MESSAGES)
    assert refused.value.status_code == 503
    with pytest.raises(openai.NotFoundError, match="nobody:1b"):
        client.chat.completions.create(model="nobody:1b", messages=MESSAGES)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=CHAIN, messages=CRASH, stream=True))
    assert client.chat.completions.create(model=CHAIN, messages=MESSAGES).model == SERVED


def test_native_and_v1_requests_in_turn_cause_one_load_and_show_no_derived_tag(rig, ollama_client, openai_client):
    """Both dialects use the same runner."""
    native, v1 = ollama_client[1], openai_client[1]
    rig.unload()
    rig.loads.clear()
    for _ in range(3):
        assert native.chat(CHAIN, MESSAGES).model == SERVED
        assert v1.chat.completions.create(model=CHAIN, messages=MESSAGES).model == SERVED
    assert len(rig.loads) == 1
    assert {model.model for model in native.list().models} == {model.id for model in v1.models.list()} == LISTED
    assert SERVED in [row.model for row in native.ps().models]
    assert not [row.model for row in native.ps().models if row.model not in LISTED]


@pytest.fixture
def anthropic_client(rig):
    """Provide anthropic-python as `ollama launch claude` configures it."""
    anthropic = imported("anthropic")
    with anthropic.Anthropic(base_url=rig.url, auth_token="ollama", max_retries=0) as client:
        yield anthropic, client


def test_anthropic_lists_chats_and_streams(anthropic_client):
    """Messages, as one answer and as events."""
    _, client = anthropic_client
    assert {model.id for model in client.models.list()} == LISTED
    raw = client.messages.with_raw_response.create(model=CHAIN, messages=MESSAGES, max_tokens=50)
    assert_explained(raw.headers)
    assert (raw.parse().model, raw.parse().stop_reason) == (SERVED, "end_turn")
    with client.messages.stream(model=CHAIN, messages=MESSAGES, max_tokens=50) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert (len(texts), final.model, final.usage.output_tokens) == (5, SERVED, TOKENS)


def test_anthropic_raises_its_own_errors(anthropic_client):
    """Of the matching classes, in mid-stream too."""
    anthropic, client = anthropic_client
    with pytest.raises(anthropic.InternalServerError, match=r"too big \(needs .* GiB"):
        client.messages.create(model=TOO_BIG, messages=MESSAGES, max_tokens=50)
    with pytest.raises(anthropic.NotFoundError, match="nobody:1b"):
        client.messages.create(model="nobody:1b", messages=MESSAGES, max_tokens=50)
    with pytest.raises(anthropic.APIError):
        with client.messages.stream(model=CHAIN, messages=CRASH, max_tokens=50) as stream:
            list(stream.text_stream)


def test_langchain_finds_the_chain_chats_streams_embeds_and_calls_tools(rig):
    """Its check of the model's name accepts a chain."""
    langchain = imported("langchain_ollama")
    seen = []
    hooks = {"event_hooks": {"response": [seen.append]}}
    model = langchain.ChatOllama(model=CHAIN, base_url=rig.url, validate_model_on_init=True, sync_client_kwargs=hooks)
    answer = model.invoke(PROMPT)
    assert answer.response_metadata["model"] == SERVED
    assert_explained(seen[-1].headers)
    assert "".join(part.text for part in model.stream(PROMPT))
    assert model.bind_tools([WEATHER]).invoke("weather in Paris?").tool_calls[0]["args"] == {"city": "Paris"}
    embedder = langchain.OllamaEmbeddings(model=EMBEDDER, base_url=rig.url)
    assert len(embedder.embed_documents(["one", "two"])) == 2
    with pytest.raises(imported("ollama").ResponseError, match="too big"):
        langchain.ChatOllama(model=TOO_BIG, base_url=rig.url).invoke(PROMPT)


def test_litellm_lists_chats_and_streams_in_both_dialects(rig, monkeypatch):
    """ollama_chat/ and openai/ alike."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it sends a request to the internet at import
    litellm = imported("litellm")
    info = imported("litellm.llms.ollama.common_utils").OllamaModelInfo()
    assert set(info.get_models(api_base=rig.url)) == {f"ollama/{name}" for name in LISTED}
    for model, base in ((f"ollama_chat/{CHAIN}", rig.url), (f"openai/{CHAIN}", f"{rig.url}/v1")):
        ask = {"model": model, "messages": MESSAGES, "api_base": base, "api_key": "ollama", "num_retries": 0}
        answer = litellm.completion(**ask)
        assert answer.usage.completion_tokens == TOKENS
        assert "".join(part.choices[0].delta.content or "" for part in litellm.completion(**ask, stream=True))
        with pytest.raises(litellm.ServiceUnavailableError, match="too big"):
            litellm.completion(**{**ask, "model": model.replace(CHAIN, TOO_BIG)})
    assert rig.loads in ([], [SERVED])
    assert litellm.embedding(f"ollama/{EMBEDDER}", ["one", "two"], api_base=rig.url).data
    assert set(rig.loads) <= {SERVED, EMBEDDER}
    litellm.in_memory_llm_clients_cache.flush_cache()
