"""Two names have one key exactly if Ollama takes them for the same model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.ollama import names
from router.core.ollama.names import ModelName, Source, is_cloud, is_name, key_of, may_be_name
from router.errors import BadRequest

LLAMA3 = "registry.ollama.ai/library/llama3:latest"


@pytest.mark.parametrize(
    "text",
    [
        "llama3",
        "LLAMA3",
        " llama3 ",
        "\u00a0llama3\u3000\n",
        "llama3:latest",
        "llama3:Latest",
        "library/llama3",
        "registry.ollama.ai/library/llama3:latest",
        "Registry.Ollama.AI/Library/Llama3",
        "https://registry.ollama.ai/library/llama3",
        "http://registry.ollama.ai/library/llama3:latest",
        "llama3:local",
        "llama3:LOCAL",
        "llama3: local ",
        "llama3:latest:local",
    ],
)
def test_spellings_of_one_model_have_one_key_f4(text):
    """Case, outer spaces, defaults, a scheme and `:local` do not make another model."""
    assert key_of(text) == LLAMA3


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("llama3", LLAMA3, "llama3:latest"),
        ("Tiny-Mixed:Q4", "registry.ollama.ai/library/Tiny-Mixed:Q4", "Tiny-Mixed:Q4"),
        ("team/foo:v1", "registry.ollama.ai/team/foo:v1", "team/foo:v1"),
        ("hf.co/bart/M-GGUF:Q4_K_M", "hf.co/bart/M-GGUF:Q4_K_M", "hf.co/bart/M-GGUF:Q4_K_M"),
        ("h:5000/library/m", "h:5000/library/m:latest", "h:5000/library/m:latest"),
        ("_x", "registry.ollama.ai/library/_x:latest", "_x:latest"),
        ("x:1.5b", "registry.ollama.ai/library/x:1.5b", "x:1.5b"),
        ("a" * 80, f"registry.ollama.ai/library/{'a' * 80}:latest", f"{'a' * 80}:latest"),
        (f"{'h' * 350}/n/m", f"{'h' * 350}/n/m:latest", f"{'h' * 350}/n/m:latest"),
        ("/x", None, None),
        ("x/", None, None),
        ("x:", None, None),
        (":x", None, None),
        ("x/:y", None, None),
        ("//", None, None),
        ("a/b/c/d", None, None),
        ("https://registry.ollama.ai/llama3", None, None),
        ("name.space/x", None, None),
        ("-x", None, None),
        (".x", None, None),
        ("x:-y", None, None),
        ("x@sha256:abc", None, None),
        ("lläma", None, None),
        ("x y", None, None),
        ("x\x1c", None, None),
        ("x\n", "registry.ollama.ai/library/x:latest", "x:latest"),
        ("x:y\n:z", None, None),
        ("a" * 81, None, None),
        ("x:" + "a" * 81, None, None),
        (f"{'h' * 351}/n/m", None, None),
        (f"{'n' * 81}/m", None, None),
        ("!MISSING!", None, None),
        ("://n/m", None, None),
        ("x:-cloud", None, None),
    ],
)
def test_a_name_outside_the_grammar_is_refused(text, full, short):
    """Each part has its alphabet and its length, and a separator needs a part on both sides."""
    if full is None:
        with pytest.raises(BadRequest, match=r"^invalid model name$"):
            ModelName.parse(text)
    else:
        name = ModelName.parse(text)
        assert (name.full, name.short, name.key) == (full, short, full.lower())


@pytest.mark.parametrize(
    ("text", "source", "key"),
    [
        ("llama3", Source.UNSPECIFIED, "llama3:latest"),
        ("llama3:local", Source.LOCAL, "llama3:latest"),
        ("llama3:8b:Local", Source.LOCAL, "llama3:8b"),
        ("llama3:cloud", Source.CLOUD, "llama3:cloud"),
        ("llama3:8b:cloud", Source.CLOUD, "llama3:8b-cloud"),
        ("llama3:8b-Cloud", Source.CLOUD, "llama3:8b-cloud"),
        ("llama3-cloud", Source.UNSPECIFIED, "llama3-cloud:latest"),
        ("h:1/n-cloud/m", Source.UNSPECIFIED, None),
    ],
)
def test_local_and_cloud_endings_select_the_model_f4(text, source, key):
    """`:local` names the plain model; both ways to write a cloud model share a key that no local model has."""
    name = ModelName.parse(text)
    assert name.source is source
    assert name.key == (f"registry.ollama.ai/library/{key}" if key else "h:1/n-cloud/m:latest")


@pytest.mark.parametrize("text", ["x:cloud:local", "x:local:cloud", "x:8b-cloud:local", "x:8b-cloud-cloud"])
def test_both_endings_are_refused(text):
    """A name that asks for both places is refused with Ollama's text."""
    with pytest.raises(BadRequest, match=r"^use either :local or :cloud, not both: "):
        ModelName.parse(text)


@pytest.mark.parametrize("text", ["", "  ", "\u2003\t"])
def test_an_empty_name_is_missing_and_not_invalid(text):
    """Ollama has a text of its own for it."""
    with pytest.raises(BadRequest, match=r"^model is required$"):
        ModelName.parse(text)


PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_a_bad_request(text):
    """No text crashes the parser, and what it accepts it accepts again in the long, short and canonical form."""
    try:
        name = ModelName.parse(text)
    except BadRequest:
        return
    assert {ModelName.parse(form).key for form in (name.full, name.short, name.key)} == {name.key}


@given(PART, PART, PART)
def test_every_form_of_a_name_has_the_same_key(namespace, model, tag):
    """The short form also keeps the ending."""
    name = ModelName.parse(f"{namespace}/{model}:{tag}")
    assert ModelName.parse(name.short).source is name.source
    assert ModelName.parse(name.full).key == name.key == ModelName.parse(name.short.upper()).key


@pytest.mark.parametrize("text", ["a" * 641, " " * 640 + "m", "a\x00", "a\x1bb", "a\x7f", "a\x9b"])
def test_what_is_no_name_for_sure_is_told_without_parsing(text):
    """Too long, or with a control character; nothing of it is remembered."""
    assert not may_be_name(text)
    with pytest.raises(BadRequest, match="invalid model name"):
        key_of(text)
    assert not is_name(text)
    assert not is_cloud(text)


@pytest.mark.parametrize("text", ["", "m", "\tm\n", "ü", f"https://{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}:cloud"])
def test_what_may_be_a_name_is_left_to_the_grammar(text):
    """Outer white space does not count."""
    assert may_be_name(text)


def test_names_of_any_length_take_bounded_memory():
    """The caches are bounded in entries, and a long text is no entry."""
    before = names._parsed_short.cache_info().currsize, names._keyed.cache_info().currsize
    for number in range(10):
        assert not is_name(f"{number}" * 1000)
        assert not is_cloud(f"{number}" * 1000)
        with pytest.raises(BadRequest):
            key_of(f"{number}" * 1000)
    assert (names._parsed_short.cache_info().currsize, names._keyed.cache_info().currsize) == before
