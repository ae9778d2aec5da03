"""The model that a misspelt name probably means."""

import pytest

from router.core.advice.nearest import nearest

INSTALLED = ("llama3.2:3b", "qwen3:8b", "Mistral:latest", "gemma3:27b-it-q4_K_M")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lama3.2:3b", "llama3.2:3b"),
        ("llama3.2:3B", "llama3.2:3b"),
        ("llama3,2:3b", "llama3.2:3b"),
        ("qwen3:8", "qwen3:8b"),
        ("mistrall", "Mistral:latest"),
        ("gemma3:27b-it-q4_k_s", "gemma3:27b-it-q4_K_M"),
        ("phi4", ""),
        ("", ""),
        ("l" * 500, ""),
    ],
)
def test_a_misspelt_name_means_the_installed_one_that_is_like_it(name, meant):
    """Letters of either case are the same; a name that is like none means none."""
    assert nearest(name, INSTALLED) == meant


def test_only_some_of_very_many_names_are_compared():
    """It runs between requests."""
    seen = []

    def names():
        for number in range(100_000):
            seen.append(number)
            yield f"model{number}"

    nearest("modle1", names())
    assert len(seen) < 200
