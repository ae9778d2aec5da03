"""The series of a model's name."""

from __future__ import annotations

import pytest

from router.core.ollama.series import series


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.3:70b-instruct-q4_K_M", ("/llama", frozenset())),
        ("llama3.1:8b", ("/llama", frozenset())),
        ("llama3.2-vision:11b", ("/llama-vision", frozenset())),
        ("qwen2.5-coder:14b-base-q8_0", ("/qwen-coder", frozenset({"base"}))),
        ("deepseek-coder-v2:16b-lite-instruct-q4_0", ("/deepseek-coder", frozenset({"lite"}))),
        ("hf.co/unsloth/Llama-3.1-8B-Instruct-GGUF:UD-IQ3_XXS", ("hf.co/unsloth/llama-b-instruct-gguf", frozenset())),
        ("gemma3:4b-it-qat", ("/gemma", frozenset())),
        ("mixtral:8x7b-fp16", ("/mixtral", frozenset())),
    ],
)
def test_series_ignores_version_size_and_quantization(name: str, expected: tuple[str, frozenset[str]]) -> None:
    """Series and flavour are the rest of the name."""
    assert series(name) == expected
