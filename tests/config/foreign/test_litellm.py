"""A LiteLLM configuration becomes chains."""

import pytest

from router.config.foreign.litellm import MAX_FOLLOWED
from tests.config.foreign.carried import carried, chain_of

LISTS = """
model_list:
  - model_name: claude-3-5-sonnet-20241022
    litellm_params: { model: ollama_chat/qwen3:30b-a3b-q8_0, api_base: "http://gpu:11434/", num_ctx: 262144 }
  - model_name: medium
    litellm_params: { model: ollama/qwen3:14b, api_base: "http://gpu:11434", num_ctx: "40960" }
  - model_name: small
    litellm_params: { model: ollama/qwen3:8b, api_base: "http://gpu:11434", temperature: 0.3, api_key: sk-secret }
"""


@pytest.mark.parametrize("section", ["router_settings", "litellm_settings"])
def test_a_chain_is_a_model_and_what_it_falls_back_to(section, tmp_path):
    """Also what that falls back to; a circle ends."""
    rules = "{ fallbacks: [{claude-3-5-sonnet-20241022: [medium]}, {medium: [small]}, {small: [medium]}] }"
    config, _ = carried(tmp_path, f"{LISTS}{section}: {rules}\n")
    assert chain_of(config, "claude-3-5-sonnet-20241022") == [
        ("qwen3:30b-a3b-q8_0", 262144),
        ("qwen3:14b", 40960),
        ("qwen3:8b", None),
    ]
    assert chain_of(config, "small") == [("qwen3:8b", None), ("qwen3:14b", 40960)]
    assert config.backends["local"].url == "http://gpu:11434"


@pytest.mark.parametrize(
    "rules", ["default_fallbacks: [small]", 'fallbacks: [{"*": [small]}]', "fallbacks: {medium: small}"]
)
def test_default_fallbacks_follow_every_model_without_its_own(rules, tmp_path):
    """In each way in which they are written."""
    config, _ = carried(tmp_path, f"{LISTS}litellm_settings: {{ {rules} }}\n")
    assert chain_of(config, "medium") == [("qwen3:14b", 40960), ("qwen3:8b", None)]


def test_an_alias_has_the_chain_of_its_model(tmp_path):
    """Written as a name, or as a mapping."""
    rules = "router_settings: { model_group_alias: { gpt-4o: medium, o1: { model: small, hidden: true } } }"
    config, _ = carried(tmp_path, f"{LISTS}{rules}\n")
    assert chain_of(config, "gpt-4o") == [("qwen3:14b", 40960)]
    assert chain_of(config, "o1") == [("qwen3:8b", None)]


def test_models_of_one_name_are_variants_in_their_order(tmp_path):
    """The same model on a second server is no second variant."""
    entries = [("a:70b", "http://one:11434", 2), ("b:8b", "http://one:11434", 1), ("a:70b", "http://two:11434/v1", 3)]
    text = "model_list:\n" + "".join(
        f"  - {{model_name: x, litellm_params: {{model: ollama/{model}, api_base: '{url}', order: {order}}}}}\n"
        for model, url, order in entries
    )
    config, comments = carried(tmp_path, text)
    assert chain_of(config, "x") == [("b:8b", None), ("a:70b", None)]
    assert "http://two:11434: another server" in comments


@pytest.mark.parametrize(
    "params",
    [
        "{model: openai/m:8b, api_base: 'http://h:11434/v1'}",
        "{model: 'm:8b', custom_llm_provider: ollama}",
        "{model: 'ollama/m:8b', custom_llm_provider: ollama_chat}",
    ],
)
def test_ollama_is_recognized_behind_other_spellings(params, tmp_path):
    """By its provider, or by its port."""
    config, _ = carried(tmp_path, f"model_list: [{{model_name: x, litellm_params: {params}}}]")
    assert chain_of(config, "x") == [("m:8b", None)]


@pytest.mark.parametrize(
    "where",
    [
        "num_ctx: 8192",
        "options: {num_ctx: 8192}",
        "extra_body: {num_ctx: 8192}",
        "extra_body: {options: {num_ctx: '8192'}}",
    ],
)
def test_a_context_is_found_where_litellm_takes_it(where, tmp_path):
    """As a parameter, an option, or in the body."""
    config, _ = carried(tmp_path, f"model_list: [{{model_name: x, litellm_params: {{model: ollama/m:8b, {where}}}}}]")
    assert chain_of(config, "x") == [("m:8b", 8192)]


def test_what_has_no_equivalent_is_named_without_its_values(tmp_path):
    """They may be secrets."""
    others = """
  - {model_name: gpt-4o, litellm_params: {model: openai/gpt-4o, api_key: sk-other}}
  - {model_name: ollama/*, litellm_params: {model: ollama/*}}
  - {model_name: "a b", litellm_params: {model: ollama/m}}
  - {model_name: far, litellm_params: {model: ollama/m, api_base: "http://user:hidden@h:1"}}
router_settings: { fallbacks: [{medium: [gpt-4o]}], num_retries: 2, context_window_fallbacks: [{a: [b]}] }
general_settings: { master_key: sk-master }
"""
    config, comments = carried(tmp_path, LISTS + others)
    told = ("gpt-4o: openai/gpt-4o is not served", "ollama/*: not needed", "a b: not a model name", "far: its address")
    told += ("medium: falls back to gpt-4o", "small: temperature", "general_settings, num_retries", "context_window")
    assert [text for text in told if text not in comments] == []
    assert not [secret for secret in ("sk-", "hidden", "user:") if secret in comments]
    assert list(config.chains) == ["claude-3-5-sonnet-20241022", "medium", "small", "far"]


def test_chains_that_only_name_each_other_are_left_out(tmp_path):
    """The router would not start with them."""
    text = "model_list:\n" + "".join(
        f"  - {{model_name: {name}, litellm_params: {{model: ollama/{model}}}}}\n"
        for name, model in [("a", "b"), ("b", "a"), ("c", "d")]
    )
    config, comments = carried(tmp_path, text)
    assert "c" in config.chains
    assert "its models refer back to it" in comments


def test_a_long_list_makes_chains_of_a_bounded_length(tmp_path):
    """Each falls back to all others."""
    names = [f"m{number}" for number in range(200)]
    entries = "".join(f"  - {{model_name: {name}, litellm_params: {{model: ollama/{name}}}}}\n" for name in names)
    config, _ = carried(
        tmp_path, f"model_list:\n{entries}litellm_settings: {{default_fallbacks: [{', '.join(names)}]}}\n"
    )
    assert len(config.chains) == 200
    assert {len(chain.variants) for chain in config.chains.values()} == {MAX_FOLLOWED}
