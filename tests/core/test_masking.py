"""Secrets in texts for people."""

import pytest

from router.core.masking import masked, masked_lines, may_hold_secret

SECRETS = [
    ("http://user:s3cret@host:9400/metrics", "http://***@host:9400/metrics"),
    ("cannot reach https://s3cret@host: refused", "cannot reach https://***@host: refused"),
    ("GET http://host/metrics?token=s3cret&x=1 failed", "GET http://host/metrics?token=***&x=1 failed"),
    ("http://host/?api_key=s3cret", "http://host/?api_key=***"),
    ("http://host/?X-Amz-Signature=s3cret#x", "http://host/?X-Amz-Signature=***"),
    ("curl -H 'Authorization: Bearer s3cret'", "curl -H 'Authorization: Bearer ***'"),
    ("Authorization: Basic czNjcmV0Cg==, x", "Authorization: Basic ***, x"),
    (f"/t/or_a_{'s' * 32}_abcdef/api/chat", "/t/***/api/chat"),
    ("GET /t/s3cret?x=1", "GET /t/***?x=1"),
    (f"model or_my-team_{'s' * 32}_abcdef not found", "model *** not found"),
    ('{"url":"http://a:s3cret@b","more":"http://c:s3cret@d"}', '{"url":"http://***@b","more":"http://***@d"}'),
]
HARMLESS = [
    "0a1b2c3d-1f",
    "bearer-of-good-news",
    "model llama3.1:8b@sha256 is not one",
    "add it to the key hosts of the router's configuration",
    "/api/t/ or_ error_text for_a_model",
    "hf.co/t/model:Q4_K_M",
    "a = b, basic facts about bearers",
    "https://ollama.com/library/llama3?x=1",
]


@pytest.mark.parametrize(("text", "shown"), SECRETS)
def test_secrets_of_urls_are_masked(text, shown):
    """In any text and in lines of the log."""
    assert masked(text) == shown
    assert masked_lines(text.encode()) == shown.encode()
    assert may_hold_secret(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_are_unchanged(text):
    """Words that only resemble secrets too."""
    assert masked(text) == text
    assert masked_lines(text.encode()) == text.encode()


def test_a_value_that_is_named_as_a_secret_is_masked():
    """In configurations."""
    assert masked("password: s3cret, next") == "password: ***, next"
