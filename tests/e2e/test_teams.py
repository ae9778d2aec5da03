"""Real clients of two teams: each sees its own models, gets its own variant, and is refused in its own terms."""

from __future__ import annotations

import gc
import shutil
import subprocess

import pytest

from router.core.teams.keys import digest_of, make_key
from tests.e2e.conftest import CHAIN, EMBEDDER, SERVED, TOO_BIG, VARIANTS
from tests.e2e.test_clients import imported

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SECRET = "0123456789abcdefghijABCDEFGHIJxy"
KEYS = {name: make_key(name, SECRET) for name in ("coding", "chat")}
SMALL, SHARED = "llama3.2:3b", "assistant"
MESSAGES = [{"role": "user", "content": "[[tokens=5]] hi"}]
SEEN = {
    "coding": {CHAIN, SERVED, SMALL, TOO_BIG, EMBEDDER, *VARIANTS, f"{SHARED}:latest"} - {VARIANTS[1]},
    "chat": {SMALL, f"{SHARED}:latest"},
}
VARIANT = {"coding": SERVED, "chat": SMALL}
FILES = {
    "coding": f'models: {{ deny: ["*q2*"] }}\nrights: [infer, read, manage]\nmanage_models: ["coding/*"]\n'
    f"chains: {{ {SHARED}: [{SERVED}] }}\n",
    "chat": f'models: {{ allow: ["{SMALL}"] }}\nchains: {{ {SHARED}: ["{SMALL}"] }}\n',
    "nobody": "rights: []\n",
}


def options_of(folder):
    for name, text in FILES.items():
        keys = ""
        if name in KEYS:
            keys = f"keys: [{{ id: ci, sha256: {digest_of(KEYS[name].encode()).hex()} }}]\n"
        (folder / f"{name}.yaml").write_text(f"team: {name}\n{keys}{text}")
    return {"teams": str(folder / "*.yaml"), "default_team": "nobody"}


@pytest.fixture(autouse=True, scope="module")
def _collected():
    """Collect what a client has left open here, and not during another test."""
    yield
    gc.collect()


def ollama_client(rig, team, way):
    """ollama-python with the key of a team: in a header, or in front of the path."""
    ollama = imported("ollama")
    if way == "path":
        return ollama, ollama.Client(host=f"{rig.url}/t/{KEYS[team]}")
    return ollama, ollama.Client(host=rig.address, headers={"Authorization": f"Bearer {KEYS[team]}"})


@pytest.mark.parametrize("way", ["header", "path"])
@pytest.mark.parametrize("team", KEYS)
def test_ollama_shows_a_team_its_models_and_serves_its_variant(rig, team, way):
    """The same name is another model for another team."""
    _, client = ollama_client(rig, team, way)
    with client:
        assert {model.model for model in client.list().models} == SEEN[team]
        answer = client.chat(SHARED, MESSAGES)
        assert answer.model == VARIANT[team]
        assert client.show(SHARED).details.parent_model == VARIANT[team]
        assert list(client.chat(SHARED, MESSAGES, stream=True))[-1].model == VARIANT[team]
        assert {row.model for row in client.ps().models} <= SEEN[team]


def test_ollama_is_refused_what_its_team_may_not(rig):
    """403 with the reason; nothing is pulled, deleted or copied."""
    ollama, client = ollama_client(rig, "chat", "header")
    with client:
        for act in (
            lambda: client.chat(SERVED, MESSAGES),
            lambda: client.show(SERVED),
            lambda: client.pull(SMALL),
            lambda: client.delete(SMALL),
            lambda: client.copy(SMALL, "x"),
        ):
            with pytest.raises(ollama.ResponseError, match="team chat may not") as refused:
                act()
            assert refused.value.status_code == 403
    _, client = ollama_client(rig, "coding", "path")
    with client:
        client.copy(SMALL, "coding/mine")
        assert client.show("coding/mine").details.family == "llama"
        client.delete("coding/mine")
        with pytest.raises(ollama.ResponseError, match="manage_models"):
            client.delete(SMALL)


def test_ollama_without_a_key_is_told_to_send_one(rig):
    """Also with the key that its documentation recommends for others."""
    ollama = imported("ollama")
    with ollama.Client(host=rig.address, headers={"Authorization": "Bearer ollama"}) as client:
        with pytest.raises(ollama.ResponseError, match="without a key") as refused:
            client.chat(SHARED, MESSAGES)
    assert refused.value.status_code == 403


@pytest.mark.parametrize("team", KEYS)
def test_openai_shows_a_team_its_models_and_serves_its_variant(rig, team):
    """By its own `api_key`."""
    openai = imported("openai")
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key=KEYS[team], max_retries=0) as client:
        assert {model.id for model in client.models.list()} == SEEN[team]
        assert client.chat.completions.create(model=SHARED, messages=MESSAGES).model == VARIANT[team]
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key=KEYS["chat"], max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError, match="team chat may not use the model"):
            client.chat.completions.create(model=SERVED, messages=MESSAGES)


@pytest.mark.parametrize("key", ["ollama", "sk-wrong", KEYS["chat"][:-1] + "-"])
def test_openai_without_a_right_key_raises_its_own_error(rig, key):
    """AuthenticationError, which it does not repeat."""
    openai = imported("openai")
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key=key) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(model=SHARED, messages=MESSAGES)
    assert refused.value.code == "invalid_api_key"
    assert key == "ollama" or key not in str(refused.value)


@pytest.mark.parametrize("team", KEYS)
def test_anthropic_serves_a_team_its_variant(rig, team):
    """By `x-api-key`, which is its `api_key`, and by a Bearer token."""
    anthropic = imported("anthropic")
    for auth in ({"api_key": KEYS[team]}, {"auth_token": KEYS[team]}):
        with anthropic.Anthropic(base_url=rig.url, max_retries=0, **auth) as client:
            answer = client.messages.create(model=SHARED, max_tokens=50, messages=MESSAGES)
            assert answer.model == VARIANT[team]


def test_anthropic_raises_its_own_errors(rig):
    """For a wrong key and for a model of others."""
    anthropic = imported("anthropic")
    for key, model, error in (
        ("sk-ant-wrong", SHARED, anthropic.AuthenticationError),
        (KEYS["chat"], SERVED, anthropic.PermissionDeniedError),
    ):
        with anthropic.Anthropic(base_url=rig.url, api_key=key, max_retries=0) as client:
            with pytest.raises(error) as refused:
                client.messages.create(model=model, max_tokens=50, messages=MESSAGES)
            assert refused.value.body["type"] == "error"


def test_langchain_sends_the_key_of_its_url(rig):
    """It turns user and password of a URL into Basic."""
    langchain = imported("langchain_ollama")
    url = rig.url.replace("http://", f"http://team:{KEYS['chat']}@")
    answer = langchain.ChatOllama(model=SHARED, base_url=url).invoke("[[tokens=5]] hi")
    assert answer.response_metadata["model"] == SMALL


def test_curl_sends_a_key_in_each_way(rig):
    """Bearer, Basic and path."""
    curl = shutil.which("curl") or pytest.skip("curl is not installed")
    for args in (
        ["-H", f"Authorization: Bearer {KEYS['chat']}", f"{rig.url}/api/tags"],
        ["-u", f"x:{KEYS['chat']}", f"{rig.url}/api/tags"],
        [f"{rig.url}/t/{KEYS['chat']}/api/tags"],
    ):
        done = subprocess.run([curl, "-s", "-w", "%{http_code}", *args], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("200")
        assert SMALL in done.stdout
        assert SERVED not in done.stdout
