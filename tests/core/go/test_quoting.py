"""Texts quoted as Go quotes them."""

from router.core.go.quoting import go_quoted


def test_go_quoting():
    """Error texts quote as Go does."""
    assert go_quoted('a"b\\\n\x01é\u2028\U000e0001\ud800') == '"a\\"b\\\\\\n\\x01é\\u2028\\U000e0001\ufffd"'
