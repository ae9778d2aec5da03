"""Configurations of other proxies (LiteLLM, llama-swap, Olla), read and written as this router's own.

`read` detects the format and collects what has an equivalent in a `Draft`; `write` renders it as YAML, with comments
for the rest. Values that may be secrets are never repeated.
"""

from router.config.foreign.draft import Draft
from router.config.foreign.read import read
from router.config.foreign.write import write

__all__ = ["Draft", "read", "write"]
