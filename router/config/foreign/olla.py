"""Olla's config.yaml: its model aliases become chains, and its Ollama of the highest priority the backend."""

from __future__ import annotations

from typing import Any

from router.config.foreign.draft import Draft, Rung, mapping, texts

_DEFAULT_PRIORITY = 100


def read_olla(data: dict[str, Any]) -> Draft:
    """Return the draft of an Olla configuration."""
    draft = Draft("Olla")
    for alias, names in mapping(data.get("model_aliases")).items():
        _read_alias(alias, texts(names), draft)
    _read_endpoints(mapping(mapping(data.get("discovery")).get("static")).get("endpoints"), draft)
    if "translators" in data:
        draft.note("translators: not needed, because Ollama itself answers on /v1/messages")
    rest = sorted(set(data) - {"discovery", "model_aliases", "translators"})
    if rest:
        draft.note(f"{', '.join(rest)}: settings of Olla itself")
    return draft


def _read_alias(alias: str, names: list[str], draft: Draft) -> None:
    """Add a chain of the names that are Ollama's: an alias lists what each kind of server calls the same model."""
    tagged = [name for name in names if ":" in name and not _is_path(name)]
    chosen = tagged or [name for name in names if not _is_path(name)]
    for name in names:
        if name not in chosen:
            draft.note(f"{alias}: {name} looks like a name of another kind of server")
    if chosen:
        draft.add_chain(alias, [Rung(name) for name in chosen])


def _is_path(name: str) -> bool:
    return name.lower().endswith((".gguf", ".safetensors", ".bin"))


def _read_endpoints(endpoints: object, draft: Draft) -> None:
    found = [mapping(one) for one in endpoints] if isinstance(endpoints, list) else []
    for endpoint in sorted(found, key=_priority, reverse=True):
        name = str(endpoint.get("name") or "an endpoint")
        kind = str(endpoint.get("type") or "auto").lower()
        if kind not in ("ollama", "auto"):
            draft.note(f"{name}: a server of the type {kind}")
        elif endpoint.get("url"):
            draft.add_url(endpoint["url"], name)
        rest = sorted({"model_filter", "auth", "headers"} & set(endpoint))
        if rest:
            draft.note(f"{name}: {', '.join(rest)}")


def _priority(endpoint: dict[str, Any]) -> int:
    value = endpoint.get("priority")
    return value if isinstance(value, int) else _DEFAULT_PRIORITY
