"""Contexts: what a request needs at least, and what it may get."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.decision.chain import Variant
from router.core.decision.context import IMAGE_TOKENS, Automatic, ContextNeed, ContextRules, context_need, needed_tokens
from router.core.payload.read import InferenceRequest
from tests.core.facts import facts_of

RULES = ContextRules()
MODEL = facts_of("m:8b", 5, context_length=131072)


@pytest.mark.parametrize(
    ("num_predict", "tokens"),
    [(None, 2048), (-1, 2048), (-2, 2048), (0, 0), (100, 100), (2048, 2048), (32000, 2048), (128000, 2048)],
)
def test_the_ceiling_of_an_answer_counts_up_to_answer_tokens(num_predict: int | None, tokens: int) -> None:
    """Claude Code sends max_tokens 32000, Codex 128000, and Ollama reserves nothing for either."""
    assert needed_tokens(InferenceRequest("m", num_predict=num_predict), 2048) == tokens
    assert needed_tokens(InferenceRequest("m", num_predict=num_predict, prompt_bytes=300), 2048) == tokens + 100


def test_images_count_as_tokens_too() -> None:
    """Their bytes do not: what a tower makes of an image depends on the model."""
    request = InferenceRequest("m", prompt_bytes=300, needs=frozenset({"completion", "vision"}))
    assert needed_tokens(request, 2048) == 100 + IMAGE_TOKENS + 2048


@pytest.mark.parametrize("num_predict", [None, 1000, 32000, 128000])
def test_a_short_prompt_needs_the_same_context_whatever_its_ceiling(num_predict: int | None) -> None:
    """So a resident model serves all of them."""
    request = InferenceRequest("m", num_predict=num_predict, prompt_bytes=100)
    need = context_need(request, Variant("m:8b"), MODEL, 131072, Automatic(32768, 32768), RULES)
    assert (need.lower, need.upper, need.is_enough) == (8192, 32768, True)


def test_a_long_prompt_needs_its_tokens_and_an_answer() -> None:
    """Padded as llama.cpp pads it."""
    request = InferenceRequest("m", num_predict=128000, prompt_bytes=3 * 20000)
    need = context_need(request, Variant("m:8b"), MODEL, 131072, Automatic(32768, 32768), RULES)
    assert need.lower == 22272


@pytest.mark.parametrize(
    ("named", "bounds"),
    [(16500, (16640, 18432)), (18432, (18432, 18432)), (4, (256, 2048)), (131000, (131072, 131072))],
)
def test_a_named_context_is_rounded_to_a_step_but_does_with_its_padding(named: int, bounds: tuple[int, int]) -> None:
    """A client that changes it on every turn causes no reload, and the rounding costs no variant."""
    need = context_need(
        InferenceRequest("m", num_ctx=named), Variant("m:8b"), MODEL, 131072, Automatic(32768, 32768), RULES
    )
    assert ((need.lower, need.upper), need.is_enough) == (bounds, True)


def test_a_chain_entry_that_asks_for_the_largest_context_overrules_the_modelfile() -> None:
    """A number of the chain overrules it too; a client's number overrules both."""
    facts = replace(MODEL, parameters={"num_ctx": 4096})
    automatic = Automatic(32768, 32768)
    most = context_need(InferenceRequest("m"), Variant("m:8b", "max"), facts, 131072, automatic, RULES)
    assert (most.lower, most.upper) == (8192, 131072)
    named = context_need(InferenceRequest("m", num_ctx=6144), Variant("m:8b", "max"), facts, 131072, automatic, RULES)
    assert (named.lower, named.upper) == (6144, 6144)
    modelfile = context_need(InferenceRequest("m"), Variant("m:8b"), facts, 131072, automatic, RULES)
    assert (modelfile.lower, modelfile.upper) == (4096, 4096)


@pytest.mark.parametrize("in_modelfile", [False, True], ids=["chain", "Modelfile"])
@pytest.mark.parametrize("named", [262144, 131073, 1 << 30])
def test_a_context_of_the_operator_is_cut_to_the_models_maximum(named: int, in_modelfile: bool) -> None:
    """As Ollama does: a chain carried over from another proxy gives each of its models the same number."""
    facts = replace(MODEL, parameters={"num_ctx": named}) if in_modelfile else MODEL
    variant = Variant("m:8b") if in_modelfile else Variant("m:8b", named)
    need = context_need(InferenceRequest("m"), variant, facts, 262144, Automatic(32768, 32768), RULES)
    assert (need.lower, need.upper, need.is_enough) == (131072, 131072, True)


def test_a_context_of_a_client_is_a_demand() -> None:
    """A model that cannot give it is not enough, whatever the chain says."""
    request = InferenceRequest("m", num_ctx=262144)
    need = context_need(request, Variant("m:8b", 262144), MODEL, 262144, Automatic(32768, 32768), RULES)
    assert (need.lower, need.is_enough) == (131072, False)


def test_a_prompt_that_no_context_of_the_model_holds_is_not_cut() -> None:
    """If the model that the client named would have held it."""
    request = InferenceRequest("m", prompt_bytes=3 * 200000)
    need = context_need(request, Variant("m:8b", 262144), MODEL, 262144, Automatic(32768, 32768), RULES)
    assert not need.is_enough


def test_a_context_that_was_outgrown_is_followed_by_twice_what_is_needed():
    """Up to what a request without a context would get, and to what the model can."""
    facts, rules = facts_of("a:8b", 5), ContextRules(default_num_ctx=32768)
    need = ContextNeed(12288, 12288)
    assert need.with_headroom(8192, facts, rules).headroom == 24576
    assert need.with_headroom(8192, facts, ContextRules(default_num_ctx=16384)).headroom == 16384
    assert need.with_headroom(8192, facts, ContextRules(default_num_ctx=32768, max_num_ctx=14336)).headroom == 14336
    assert ContextNeed(40960, 40960).with_headroom(8192, facts, rules).headroom == 40960
    for loaded in (None, 12288, 32768):
        assert need.with_headroom(loaded, facts, rules) is need
