"""Ollama's texts that mention a derived tag, in each form in which Ollama prints names."""

import time

import pytest

from router.core.ollama.mentions import MOST_MENTIONS, display_base, without_derived

TAG = "ollama-router-derived/mistral:7b-d0d3a5429-o5f0c1e-c32768-b512-gx"
PATH = TAG.replace(":", "/")
FULL = "registry.ollama.ai/library/mistral:7b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f'"{TAG}" does not support thinking', '"mistral:7b" does not support thinking'),
        (f"model '{TAG}' not found", "model 'mistral:7b' not found"),
        (f"registry.ollama.ai/{TAG} does not support insert", f"{FULL} does not support insert"),
        (
            f"REGISTRY.ollama.ai/{TAG.upper()} and {TAG.title()}.",
            "registry.ollama.ai/library/MISTRAL:7B and mistral:7b.",
        ),
        (
            f"stat /m/manifests/registry.ollama.ai/{PATH}: no such file",
            "stat /m/manifests/registry.ollama.ai/library/mistral/7b: no such file",
        ),
        (
            "CreateFile C:\\\\m\\\\registry.ollama.ai\\\\" + PATH.replace("/", "\\\\") + ": gone",
            "CreateFile C:\\\\m\\\\registry.ollama.ai\\\\library\\\\mistral\\\\7b: gone",
        ),
        (
            f'Get "https://registry.ollama.ai/v2/{TAG.replace(":", "/manifests/")}"',
            'Get "https://registry.ollama.ai/v2/library/mistral/manifests/7b"',
        ),
        (f"a\\/{TAG.replace('/', '%2F').replace(':', '%3A')}", "a\\/mistral:7b"),
        (f"{TAG}, {TAG}", "mistral:7b, mistral:7b"),
        ("no name at all", "no name at all"),
    ],
)
def test_a_mention_becomes_the_clients_name_in_the_same_form(text, shown):
    """Nothing else of the text changes."""
    assert without_derived(text.encode(), "mistral:7b").decode() == shown


def test_a_name_in_full_is_spelled_as_ollama_spells_an_installed_model():
    """Elsewhere as the client has spelled it."""
    text = f"{TAG} registry.ollama.ai/{TAG}".encode()
    assert without_derived(text, "Mistral:7B").decode() == f"Mistral:7B {FULL}"
    assert without_derived(text, "team").decode() == "team registry.ollama.ai/library/team:latest"
    assert without_derived(text, "hf.co/a/b").decode() == "hf.co/a/b hf.co/a/b:latest"


def test_without_a_name_to_show_it_is_the_one_that_the_tag_begins_with():
    """Tags of any version, and what is none of ours in the namespace."""
    assert display_base(TAG) == display_base(TAG.replace("-o5f0c1e", "")) == "mistral:7b"
    assert display_base("ollama-router-derived/x:y") == "x:y"
    assert display_base("mistral:7b") == "mistral:7b"


def test_names_that_a_client_may_have_sent_are_kept_where_only_paths_are_to_go():
    """A client may name a tag itself."""
    text = f"'{TAG}' stat /m/registry.ollama.ai/{PATH}: gone".encode()
    shown = without_derived(text, has_names=False).decode()
    assert shown == f"'{TAG}' stat /m/registry.ollama.ai/library/mistral/7b: gone"


@pytest.mark.parametrize(
    "text", ["ollama-router-derived", "ollama-router-derived/", "ollama-router-derived/" + "x" * 999]
)
def test_odd_mentions_do_no_harm(text):
    """A text is a text."""
    assert b"ollama-router-derived/x" not in without_derived(text.encode(), "m")


@pytest.mark.parametrize("word", ["a", "a.", ".-", "9", "a:1", "\\\\"])
@pytest.mark.parametrize("before", ["", "ollama-router-derived/a", "ollama-router-derived/a:b"])
def test_a_long_text_is_read_once_f8(word, before):
    """Ollama repeats a client's text in some errors; reading a word at each of its letters took minutes."""
    text = f"{before}{word * 100_000} ollama-router-derived/x:y".encode()
    started_s = time.process_time()
    assert without_derived(text, "m").endswith(b" m")
    assert time.process_time() - started_s < 5


def test_of_very_many_mentions_the_first_are_replaced_f8():
    """No text of Ollama's own has so many; the rest is what the client wrote."""
    text = b"ollama-router-derived/x:y " * (MOST_MENTIONS + 1)
    assert without_derived(text, "m") == b"m " * MOST_MENTIONS + b"ollama-router-derived/x:y "
