"""The automatic chain of a model."""

from __future__ import annotations

import pytest

from router.core.decision.chain import auto_chain, series
from tests.core.facts import bare_model


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


def test_auto_chain_takes_quantizations_before_smaller_members() -> None:
    """The asked model comes first, then its smaller quantizations, then smaller members, each group biggest first."""
    asked = bare_model("llama3.3:70b-instruct-q4_K_M", 70.6, 42.5)
    installed = [
        bare_model("llama3.2:3b", 3.2, 2.0),
        bare_model("llama3.1:8b", 8.0, 4.9),
        bare_model("llama3.1:8b-instruct-q8_0", 8.0, 8.5),
        bare_model("llama3.3:70b-instruct-q2_K", 70.6, 26.4),
        asked,
        bare_model("llama3.3:70b-instruct-q3_K_L", 70.6, 37.1),
        bare_model("llama3.3:70b-instruct-q8_0", 70.6, 75.0),
    ]
    names = [variant.model for variant in auto_chain(asked, installed).variants]
    assert names == [
        "llama3.3:70b-instruct-q4_K_M",
        "llama3.3:70b-instruct-q3_K_L",
        "llama3.3:70b-instruct-q2_K",
        "llama3.1:8b-instruct-q8_0",
        "llama3.1:8b",
        "llama3.2:3b",
    ]
    short = auto_chain(asked, installed, "quantizations")
    assert [variant.model for variant in short.variants] == names[:3]


def test_auto_chain_leaves_out_models_that_cannot_replace_it() -> None:
    """Another family, another flavour, a missing capability, the same weights, an unknown size."""
    asked = bare_model("llama3.1:8b", 8.0, 4.9)
    installed = [
        bare_model("llama3.1:8b-instruct-q4_K_M", 8.0, 4.9, weights=asked.weights),
        bare_model("llama3.2:1b-text", 1.2, 1.3),
        bare_model("llama3.2-vision:1b", 1.2, 1.3),
        bare_model("llama3.2:3b-plain", 3.2, 2.0),
        bare_model("llama3.2:3b", 3.2, 2.0, capabilities=frozenset({"completion"})),
        bare_model("llama2:3b", 3.2, 2.0, family="other"),
        bare_model("llama4:1b", 0, 2.0, parameter_size=""),
    ]
    assert [variant.model for variant in auto_chain(asked, installed).variants] == ["llama3.1:8b"]


def test_an_embedding_model_stands_alone() -> None:
    """Vectors of two models do not compare; its own quantizations follow only when asked for."""
    embeds = frozenset({"embedding"})
    asked = bare_model("embed:335m-fp16", 0.335, 0.7, capabilities=embeds)
    installed = [
        bare_model("embed:335m-q8_0", 0.335, 0.4, capabilities=embeds),
        bare_model("embed:22m", 0.022, 0.1, capabilities=embeds),
    ]
    assert len(auto_chain(asked, installed).variants) == 1
    assert [v.model for v in auto_chain(asked, installed, "quantizations").variants][1:] == ["embed:335m-q8_0"]
