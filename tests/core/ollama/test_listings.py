"""What is used of Ollama's lists, and errors that may only mean that a manifest vanished while it listed them."""

import pytest

from router.core.ollama.listings import may_be_failed_listing, used_of_row


@pytest.mark.parametrize(
    ("status", "text", "may_be"),
    [
        (404, b"model 'x' not found", True),
        (400, b"model is required", True),
        (400, b"stat /m/registry.ollama.ai/library/x/y: no such file or directory", True),
        (500, b"stat /m/registry.ollama.ai/library/x/y: no such file or directory", True),
        (500, b"CreateFile C:\\m\\x: The system cannot find the file specified.", True),
        (500, b"model is required", False),
        (500, b"llama runner process has terminated", False),
        (400, b'"x" does not support chat', False),
        (503, b"no such file or directory", False),
        (200, b"no such file or directory", False),
    ],
)
def test_status_and_text_say_whether_to_ask_again(status, text, may_be):
    """A request that was refused for another reason is not repeated."""
    assert may_be_failed_listing(status, text) is may_be


@pytest.mark.parametrize(
    ("row", "used"),
    [
        ({"name": "a", "size": 5, "modified_at": "x"}, {"name": "a", "size": 5}),
        ({"name": "a", "details": {"family": "llama", "families": ["llama"], "note": "x" * 2000}}, None),
        ({"name": "a", "details": "llama"}, {"name": "a"}),
        ({"name": "a", "digest": "x" * 2000, "capabilities": ["tools", "x" * 2000]}, {"name": "a"}),
        (5, 5),
    ],
)
def test_of_a_row_only_what_is_used_is_kept(row, used):
    """Neither other fields nor texts that are longer than anybody's; what is no object is left to who reads it."""
    assert used_of_row(row) == ({"name": "a", "details": {"family": "llama"}} if used is None else used)
