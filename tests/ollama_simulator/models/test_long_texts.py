"""Texts as long as a context of a million tokens."""

from ollama_simulator.models.tokens import Vocabulary

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", *BYTES, "a", "b", "ab", "abab"]
INFO = {
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0] * 257 + [-4.0, -4.0, -2.0, -1.0],
    "tokenizer.ggml.token_type": [2, *[6] * 256, 1, 1, 1, 1],
}


def test_a_long_text_is_merged_as_a_short_one():
    """In time that grows with its length, not with the square of it: the square would take hours."""
    words = Vocabulary(INFO)
    assert words.encode("ababab") == [PIECES.index("abab"), PIECES.index("ab")]
    assert words.encode("abab" * 100_000) == [PIECES.index("abab")] * 100_000


def test_of_equal_merges_the_left_one_goes_first():
    """As in llama.cpp."""
    info = {**INFO, "tokenizer.ggml.tokens": ["<unk>", *BYTES, "a", "b", "aa", "aab"]}
    names = Vocabulary(info)
    assert [names.pieces[number] for number in names.encode("aaab")] == ["aa", "a", "b"]
