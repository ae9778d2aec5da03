"""The names of OpenTelemetry's conventions that traces and metrics use; those for generative AI are not stable yet."""

from __future__ import annotations

from typing import Final

GEN_AI: Final = "gen-ai-0.1.0"
"""The state of the conventions for generative AI whose names these are."""

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ERROR_TYPE: Final = "error.type"
METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"

OWN: Final = "ollama_router."
"""The prefix of the router's own names."""

OPERATIONS: Final = {
    "generate": "text_completion",
    "v1_completions": "text_completion",
    "embed": "embeddings",
    "embeddings": "embeddings",
    "v1_embeddings": "embeddings",
}
"""OpenTelemetry's operation names of the routes' kinds; all others are "chat"."""


def operation_of(kind: str) -> str:
    """Return OpenTelemetry's name of what a route of `kind` does."""
    return OPERATIONS.get(kind, "chat")
