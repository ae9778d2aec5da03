"""Texts quoted like Go quotes them."""

from router.core.go.quoting import go_quoted


def test_text_is_quoted_like_gos_verb_for_quotes():
    """Error texts must equal Ollama's."""
    assert go_quoted('a"b\\\n\x01é\u2028\U000e0001\ud800') == '"a\\"b\\\\\\n\\x01é\\u2028\\U000e0001\ufffd"'
