"""What is said of the models that a configuration names."""

import difflib

from router.core.advice.chains import MAX_NOTES, MOST_CHARS, MOST_COMPARED, Named, notes_on
from router.core.ollama.names import key_of
from tests.core.facts import facts_of

CATALOG = {
    key_of(facts.name): facts
    for facts in (
        facts_of("qwen3:14b", context_length=40960),
        facts_of("qwen3:8b"),
        facts_of("Odd/Name:latest", context_length=0),
    )
}


def texts(*named):
    return [note.text for note in notes_on(named, CATALOG)]


def test_a_misspelt_model_comes_with_the_name_that_was_meant():
    """In any case of letters; without one, with the command that gets it."""
    assert texts(Named("chain team", "qwen3:14bb")) == [
        "chain team: qwen3:14bb is not installed (did you mean qwen3:14b?)"
    ]
    assert texts(Named("defaults.keep", "odd/nam")) == [
        "defaults.keep: odd/nam is not installed (did you mean Odd/Name:latest?)"
    ]
    assert texts(Named("chain x", "gemma3:4b")) == ["chain x: gemma3:4b is not installed (ollama pull gemma3:4b)"]


def test_a_context_above_the_maximum_is_noted_and_no_error():
    """The model's own, where it is known."""
    notes = notes_on([Named("chain team", "qwen3:14b", 262144), Named("c", "odd/name", 262144)], CATALOG)
    assert [(note.text, note.is_missing) for note in notes] == [
        ("chain team: num_ctx 262144 of qwen3:14b is cut to its maximum, 40960", False)
    ]


def test_what_is_installed_is_not_noted_in_any_spelling():
    """Nor a context that it can have."""
    assert texts(Named("a", "QWEN3:14B", 40960), Named("b", "library/qwen3:8b", "max"), Named("c", "odd/name")) == []


def test_the_notes_are_bounded():
    """A configuration may name any number of models."""
    assert len(texts(*(Named("a", f"m:{number}b") for number in range(3 * MAX_NOTES)))) == MAX_NOTES


def test_a_suggestion_compares_with_few_of_thousands_of_names(monkeypatch):
    """And with none that is longer than anybody's: the list is another server's, and a comparison takes its time."""
    compared = []
    real = difflib.get_close_matches

    def recorded(word, possibilities, **more):
        compared.extend(possibilities)
        return real(word, list(possibilities), **more)

    monkeypatch.setattr(difflib, "get_close_matches", recorded)
    names = ["q" + "x" * MOST_CHARS, "qwen3:14b", *(f"q{number}:1b" for number in range(10_000))]
    catalog = {key_of(name): facts_of(name) for name in names}
    (note,) = notes_on([Named("chain team", "qwen3:14bb")], catalog)
    assert note.text == "chain team: qwen3:14bb is not installed (did you mean qwen3:14b?)"
    assert len(compared) == MOST_COMPARED
    assert max(map(len, compared)) <= MOST_CHARS
