"""Which chain a model name has."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import ChainRule, ChainRules, load_config
from router.core.decision.chain import Variant
from router.errors import BadRequest

TEXT = """
chains:
  llama3.3:70b:
    - llama3.3:70b-instruct-q4_K_M
    - { model: llama3.1:8b, num_ctx: max }
  "qwen3:*": quantizations
  "qwen3:8b*": { variants: auto, nothing_fits: wait }
  "team/*": { variants: [team/small, { model: team/small, num_ctx: 4096 }], upgrade: never }
  chat: { variants: [qwen3:14b], preload: true }
defaults: { auto_chains: "off", nothing_fits: passthrough }
"""


def rules_of(folder: Path, text: str) -> ChainRules:
    file = folder / "router.yaml"
    file.write_text(text)
    config = load_config(file, env={})
    return ChainRules(config.chains, config.defaults)


@pytest.fixture
def rules(tmp_path: Path) -> ChainRules:
    return rules_of(tmp_path, TEXT)


def test_chain_of_a_name_lists_its_variants(rules: ChainRules) -> None:
    """Short forms become core variants; what the chain leaves out comes from the defaults."""
    variants = (Variant("llama3.3:70b-instruct-q4_K_M"), Variant("llama3.1:8b", "max"))
    expected = ChainRule("llama3.3:70b", variants, "auto", "passthrough", "on_request", "balanced", 60.0, None)
    assert rules.rule_for("llama3.3:70b") == expected


@pytest.mark.parametrize(
    "spelling", ["LLAMA3.3:70B", "library/llama3.3:70b", "registry.ollama.ai/library/llama3.3:70b"]
)
def test_every_spelling_of_a_name_has_its_chain(spelling: str, rules: ChainRules) -> None:
    """Names are compared as Ollama does."""
    assert rules.rule_for(spelling).name == "llama3.3:70b"


@pytest.mark.parametrize(
    ("model", "rule", "auto"),
    [
        ("qwen3:4b", "qwen3:*", "quantizations"),
        ("qwen3", "qwen3:*", "quantizations"),
        ("library/qwen3:8b-q4_K_M", "qwen3:8b*", "auto"),
        ("Team/Big", "team/*", "auto"),
        ("other/big", "", "off"),
        ("qwen35:4b", "", "off"),
    ],
)
def test_most_specific_pattern_wins_else_the_default(model: str, rule: str, auto: str, rules: ChainRules) -> None:
    """More literal characters beat fewer; a name without chain has the default."""
    found = rules.rule_for(model)
    assert (found.name, found.auto) == (rule, auto)


def test_chain_overrides_the_defaults_it_names(rules: ChainRules) -> None:
    """A chain's own settings win, the rest is inherited."""
    waiting, never = rules.rule_for("qwen3:8b"), rules.rule_for("team/x")
    assert (waiting.nothing_fits, waiting.upgrade) == ("wait", "on_request")
    assert (never.nothing_fits, never.upgrade) == ("passthrough", "never")
    assert never.variants == (Variant("team/small"), Variant("team/small", 4096))


def test_named_chains_are_those_with_a_name_and_variants(rules: ChainRules) -> None:
    """Patterns and derived chains are not models of their own."""
    assert [name for name, _ in rules.named] == ["llama3.3:70b", "chat"]
    assert rules.rule_for("chat").preload


def test_rule_is_cached(rules: ChainRules) -> None:
    """The same name gives the same object, so that a request costs one look-up."""
    assert rules.rule_for("qwen3:4b") is rules.rule_for("qwen3:4b")


def test_cache_of_names_is_bounded(rules: ChainRules) -> None:
    """Ten thousand invented names do not fill the memory."""
    for number in range(10_000):
        rules.rule_for(f"m{number}")
    assert len(rules._cache) <= 4096


def test_an_invalid_model_name_is_a_bad_request(rules: ChainRules) -> None:
    """What Ollama refuses as a name is refused here."""
    with pytest.raises(BadRequest):
        rules.rule_for("a b")


def test_chain_may_list_its_own_name(tmp_path: Path) -> None:
    """A chain that lists itself means the installed model of that name, even where two chains name each other."""
    text = "chains: { 'a:8b': ['a:8b', 'b:8b'], 'b:8b': ['b:8b', 'a:8b'] }\n"
    assert len(rules_of(tmp_path, text).named) == 2
