"""Patterns of model names hold for every spelling of a name."""

from __future__ import annotations

import pytest

from router.core.ollama.name_patterns import NamePatterns, is_cloud_pattern
from router.core.ollama.names import ModelName


def matches(pattern: str, name: str) -> bool:
    return NamePatterns([pattern]).match(ModelName.parse(name))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("llama3", "llama3"),
        ("llama3", "LLAMA3:latest"),
        ("llama3", "registry.ollama.ai/library/llama3:latest"),
        ("LIBRARY/Llama3:Latest", "llama3"),
        ("llama3:8b", "https://registry.ollama.ai/library/llama3:8B"),
        ("llama3:*", "library/llama3:8b"),
        ("llama3*", "llama3.3:70b"),
        ("library/*", "llama3"),
        ("registry.ollama.ai/*", "llama3"),
        ("coding/*", "registry.ollama.ai/coding/x:1"),
        ("hf.co/*", "HF.co/user/model:Q4"),
        ("*", "hf.co/user/model:Q4"),
        ("*", "x:cloud"),
        ("*:cloud", "x:cloud"),
        ("*:cloud", "x:8b-cloud"),
        ("*:cloud", "team/x:8b:Cloud"),
        ("gpt-oss:*", "gpt-oss:120b-cloud"),
        ("gpt-oss:120b-cloud", "gpt-oss:120B:cloud"),
        ("llama3:?b", "llama3:8b"),
        ("llama3:local", "llama3"),
    ],
)
def test_a_pattern_matches(pattern: str, name: str) -> None:
    """What Ollama takes for the same name, matches likewise."""
    assert matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("llama3", "llama3:8b"),
        ("llama3", "llama3:cloud"),
        ("llama3", "hf.co/library/llama3"),
        ("llama3:*", "llama3.3:70b"),
        ("llama.:8b", "llama3:8b"),
        ("coding/*", "hf.co/coding/x"),
        ("coding/*", "evil.example/coding/x"),
        ("coding/*", "uncoding/x"),
        ("*:cloud", "x:cloudy"),
        ("*:cloud", "cloud"),
        ("llama3:?b", "llama3:70b"),
        ("library/*", "hf.co/library/x"),
    ],
)
def test_another_model_is_not_matched(pattern: str, name: str) -> None:
    """A namespace belongs to its registry, and a dot is a dot."""
    assert not matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "is_one"),
    [("*:cloud", True), ("x:cloud", True), ("x:8b-cloud", True), ("x:*-cloud", True), ("*", False), ("x:*", False)],
)
def test_a_pattern_names_the_cloud_or_only_matches_it(pattern: str, is_one: bool) -> None:
    """Everything includes the cloud only if that is written."""
    assert is_cloud_pattern(pattern) is is_one


def test_no_patterns_match_nothing() -> None:
    """And are false."""
    assert not NamePatterns(())
    assert not NamePatterns(()).match(ModelName.parse("x"))
