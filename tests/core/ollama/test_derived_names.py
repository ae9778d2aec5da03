"""Names of derived tags: what they say, whose they are, and which of them a model still stands behind."""

import pytest

from router.core.ollama.derived_names import (
    MOST_ALIKE,
    by_piece,
    derived_name,
    is_derived,
    made_from,
    origin_of,
    owner_in,
    usable,
)
from router.core.ollama.names import ModelName
from router.core.ollama.runner import LoadOptions

OPTIONS = LoadOptions(num_ctx=8192, num_batch=512, main_gpu=1)
DIGEST = "sha256:0d3a542912ab"


def test_a_name_says_from_what_it_was_made_for_whom_and_with_which_options():
    """All of it can be read back."""
    name = derived_name("mistral:7b", DIGEST, OPTIONS, "5f0c1e")
    assert name == "ollama-router-derived/mistral:7b-d0d3a5429-o5f0c1e-c8192-b512-g1"
    assert origin_of(name) == ("0d3a5429", "5f0c1e", OPTIONS)
    assert is_derived(name.upper())
    assert owner_in(name.upper()) == "5f0c1e"


@pytest.mark.parametrize("name", ["mistral:7b", "ollama-router-derived/x:y", "x:7b-d0d3a5429-c8192-b512-gx"])
def test_other_names_have_no_origin(name):
    """Also in the namespace: somebody else has made them."""
    assert (origin_of(name), owner_in(name)) == (None, "")


@pytest.mark.parametrize("owner", ["", "5f0c1e"])
@pytest.mark.parametrize(
    "model", ["mistral:7b", "Mistral", "user/model:tag", "hf.co/a/b-GGUF:Q4_K_M", f"m:{'t' * 80}", f"{'m' * 80}:t"]
)
def test_a_tag_is_usable_while_its_model_has_the_same_manifest(model, owner):
    """However long its name is; any router's tag, in any case."""
    name = derived_name(model, DIGEST, OPTIONS, owner)
    assert ModelName.parse(name).model
    for tag in (name, name.upper()):
        assert usable([tag], by_piece({"other:1b": "0d3a5429ff", model: DIGEST})) == {tag}
        assert usable([tag], by_piece({model: "sha256:ffff", "other:1b": DIGEST})) == set()
        assert usable([tag], {}) == set()


def test_of_models_whose_digests_begin_alike_few_are_compared():
    """They are one model's names; thousands with one digest are another server's doing, and each takes its time."""
    tag = derived_name("last:1b", DIGEST, OPTIONS)
    few = {f"m{number}:1b": DIGEST for number in range(MOST_ALIKE - 1)}
    assert made_from(tag, by_piece(few | {"last:1b": DIGEST})) == "last:1b"
    assert made_from(tag, by_piece(few | {"one:1b": DIGEST, "last:1b": DIGEST})) == ""
    assert made_from("last:1b", by_piece(few)) == ""


@pytest.mark.parametrize("digest", ["sha256:0d3a-5429:12ab", "0d3a542912ab", "sha256-0d3a542912ab", ":0d3a542912ab"])
def test_the_piece_of_a_digest_is_its_first_letters_and_digits(digest):
    """Whatever stands between them."""
    assert "-d0d3a5429-" in derived_name("m:1b", digest, OPTIONS)
