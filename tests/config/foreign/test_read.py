"""Files that are none of the known ones, and hostile ones, end in one line."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.foreign import read, write
from router.config.foreign.litellm import read_litellm
from router.config.foreign.llama_swap import read_llama_swap
from router.config.foreign.olla import read_olla
from router.errors import RouterError
from tests.config.foreign.carried import carried

WRONG = {
    "nothing": "",
    "a list": "- a\n",
    "text": "hello",
    "another program's": "services: {web: {image: x}}",
    "the router's own": "chains: {a: [b]}",
    "models of no llama-swap": "models: {a: {path: x}}",
    "no Ollama in it": "model_list: [{model_name: a, litellm_params: {model: openai/x}}]",
    "no Ollama in Olla": "discovery: {static: {endpoints: [{url: 'http://x:1', type: vllm}]}}",
    "not YAML": "a: [",
    "a key twice": "model_list: []\nmodel_list: []\n",
    "a tag": "model_list: !!python/name:os.system x",
    "aliases that multiply": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{n}: &{n} [{','.join(['*' + o] * 9)}]\n" for o, n in zip("abcdefgh", "bcdefghi", strict=True))
    + "model_list: *i\n",
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_file_that_cannot_be_carried_over_is_refused_in_one_line(case, tmp_path):
    """With the reason."""
    file = tmp_path / "other.yaml"
    file.write_text(WRONG[case])
    with pytest.raises(RouterError) as refused:
        read(file)
    assert len(refused.value.message.splitlines()) == 1
    assert refused.value.message.startswith(str(file))


def test_a_pipe_is_refused_at_once(tmp_path):
    """Nobody writes to it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RouterError, match="pipe or device"):
        read(tmp_path / "pipe")


def test_text_of_the_file_stays_in_its_comment(tmp_path):
    """A name cannot add keys of its own."""
    text = 'model_list: [{model_name: "x\\nadmin: 0.0.0.0:1", litellm_params: {model: "ollama/m"}},'
    text += '{model_name: ok, litellm_params: {model: "ollama/m", "a\\nhosts: [evil]": 1}}]'
    config, comments = carried(tmp_path, text)
    assert (config.admin.host, config.hosts, list(config.chains)) == ("127.0.0.1", (), ["ok"])
    assert "hosts: [evil]" in comments


KEYS = ["a", "b", "model_name", "litellm_params", "model", "api_base", "num_ctx", "order", "fallbacks", "preload", "*"]
KEYS += ["default_fallbacks", "model_group_alias", "cmd", "aliases", "macros", "members", "static", "endpoints", "url"]
KEYS += ["type", "priority", "persistent", "on_startup"]
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8),
              st.sampled_from(["a:8b", "ollama/m", "http://h:11434", "*", "llama-server -m x.gguf -c 9"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KEYS),
            inner, max_size=4),
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["litellm", "llama-swap", "olla"]), plain, plain, plain)
def test_no_shape_of_a_file_breaks_a_reader(kind, one, two, three):
    """Whatever stands where something else is expected."""
    if kind == "litellm":
        draft = read_litellm(
            {"model_list": one if isinstance(one, list) else [one], "router_settings": two, "litellm_settings": three}
        )
    elif kind == "llama-swap":
        draft = read_llama_swap(
            {"models": {"m": one, "n": {"cmd": two}}, "groups": three, "hooks": two, "globalTTL": one, "macros": three}
        )
    else:
        draft = read_olla({"discovery": {"static": {"endpoints": one}}, "model_aliases": two, "x": three})
    assert write(draft, "other.yaml").startswith("# The equivalent")
