"""Detects whose configuration a file is, and reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from router.config.foreign.draft import Draft
from router.config.foreign.litellm import read_litellm
from router.config.foreign.llama_swap import read_llama_swap
from router.config.foreign.olla import read_olla
from router.config.root import Config
from router.config.source import read_file
from router.errors import ConfigError, RouterError

Data = dict[str, Any]
_KNOWN = "LiteLLM (model_list), llama-swap (models with cmd), Olla (discovery, model_aliases)"


def read(path: Path) -> Draft:
    """Return what can be carried over from `path`. Raise RouterError, in one line, if it is none of the known files."""
    try:
        data = read_file(path).data
    except ConfigError as exc:
        raise RouterError(exc.message.splitlines()[0]) from None
    reader = _reader(data)
    if reader is None:
        is_own = bool(data) and set(data) <= set(Config.model_fields)
        found = "a configuration of this router" if is_own else "no configuration that is known here"
        raise RouterError(f"{path}: found {found}; allowed: {_KNOWN}")
    draft = reader(data)
    if draft.is_empty:
        raise RouterError(f"{path}: found a configuration of {draft.kind} without a model or address of an Ollama")
    return draft


def _reader(data: Data) -> Callable[[Data], Draft] | None:
    if isinstance(data.get("model_list"), list):
        return read_litellm
    models = data.get("models")
    if isinstance(models, dict) and any(isinstance(one, dict) and "cmd" in one for one in models.values()):
        return read_llama_swap
    if isinstance(data.get("model_aliases"), dict) or isinstance(data.get("discovery"), dict):
        return read_olla
    return None
