"""The automatic chain of a model."""

from __future__ import annotations

from router.core.decision.chain import MOST_KIN, MOST_VARIANTS, KinOf, auto_chain
from router.core.ollama.names import key_of
from tests.core.facts import bare_model, catalog_of


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


def test_of_very_many_substitutes_the_biggest_and_the_smallest_are_taken() -> None:
    """A decision looks at each variant, and whoever pulls models may give them any names."""
    asked = bare_model("llama3.1:900b", 900, 900)
    installed = [asked, *(bare_model(f"llama3.1:{size}b", size, size) for size in range(1, 500))]
    names = [variant.model for variant in auto_chain(asked, installed).variants]
    assert len(names) == MOST_VARIANTS
    assert names[:3] == ["llama3.1:900b", "llama3.1:499b", "llama3.1:498b"]
    assert names[-1] == "llama3.1:1b"
    few = [asked, *(bare_model(f"llama3.1:{size}b", size, size) for size in range(1, MOST_VARIANTS))]
    assert len(auto_chain(asked, few).variants) == MOST_VARIANTS


def test_models_are_found_by_family_and_series() -> None:
    """In the order of the catalog, the asked one among them."""
    big, small = bare_model("llama3.3:70b", 70, 40), bare_model("llama3.2:3b", 3, 2)
    others = [bare_model("llama3.2:3b-text", 3, 2), bare_model("llama2:3b", 3, 2, family="other")]
    kin = KinOf(catalog_of(big, small, *others))
    assert kin.facts(big) == [big, small]
    assert list(kin.keys(small)) == [key_of(big.name), key_of(small.name)]
    assert kin.facts(bare_model("gemma3:4b", 4, 3)) == []
    crowd = KinOf(catalog_of(*(bare_model(f"llama3:{size}b", size, size) for size in range(1, MOST_KIN + 10))))
    assert len(crowd.facts(big)) == MOST_KIN
