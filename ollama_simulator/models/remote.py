"""Stubs for models that another server runs: a manifest without weights, whose config names server and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from posixpath import normpath
from typing import Any
from urllib.parse import urlsplit

from ollama_simulator.gojson import dump
from ollama_simulator.models.installed import CONFIG_MEDIA, Installed, Layer, Remote, digest_of, installed
from ollama_simulator.models.weights import Weights
from router.core.ollama.names import ModelName

CLOUD = "https://ollama.com:443"
_THINKERS = ("gptoss", "gpt-oss")
NO_WEIGHTS = Weights("", 0, "", "", "", (), {}, (), is_gone=True)


def remote_url(text: str) -> str:
    """Return the address of a remote server as Ollama writes it. Raises ValueError."""
    if text.startswith("/"):
        return f"http://localhost:11434{normpath(text)}"
    text = text if "://" in text else f"http://{text}"
    if text in ("ollama.com", "http://ollama.com"):
        return CLOUD
    parts = urlsplit(text)
    if not parts.scheme:
        raise ValueError("missing protocol scheme")
    host = parts.netloc or "localhost"
    _, colon, port = host.rpartition(":")
    host = host if colon and "]" not in port else f"{host}:11434"
    path = normpath(parts.path) if parts.path else ""
    return f"{parts.scheme}://{host}{'' if path in ('/', '//') else path}"


def remote_of(model: str, host: str, info: Mapping[str, Any]) -> Remote:
    """Return what a create request says of a remote model; values of other types in `info` are ignored."""

    def text(key: str) -> str:
        return info[key] if isinstance(info.get(key), str) else ""

    def number(key: str) -> int:
        value = info.get(key)
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0

    named = info.get("capabilities")
    capabilities = tuple(item for item in named if isinstance(item, str)) if isinstance(named, list) else ()
    return Remote(
        model,
        host,
        family=text("model_family"),
        base_name=text("base_name"),
        size_label=text("parameter_size"),
        quantization=text("quantization_level"),
        capabilities=capabilities,
        context_length=number("context_length"),
        embedding_length=number("embedding_length"),
    )


def remote_model(name: ModelName, remote: Remote | None, layers: Iterable[Layer], at: datetime) -> Installed:
    """Return the tag `name` for a remote model; None: what create makes of one, which is a tag without any weights."""
    config = _config(remote)
    families = (remote.family,) if remote is not None and remote.family else ()
    weights = NO_WEIGHTS
    if remote is not None:
        weights = replace(
            NO_WEIGHTS,
            family=remote.family,
            families=families,
            size_label=remote.size_label,
            quantization=remote.quantization,
        )
    made = installed(name, weights, layers, at, config=config)
    found = remote.capabilities if remote is not None else ()
    if families and families[0] in _THINKERS and "thinking" not in found:
        found = (*found, "thinking")
    return replace(made, remote=remote, has_weights=False, capabilities=found)


def _config(remote: Remote | None) -> Layer:
    """Return the config blob, byte for byte as Ollama writes it."""
    found: dict[str, Any] = {"model_format": "", "model_family": "", "model_families": None, "model_type": ""}
    found["file_type"] = ""
    if remote is not None:
        found |= {"model_family": remote.family, "model_families": [remote.family] if remote.family else None}
        found |= {"model_type": remote.size_label, "file_type": remote.quantization}
        found |= {"remote_host": remote.host, "remote_model": remote.model}
        more = {
            "capabilities": list(remote.capabilities),
            "context_length": remote.context_length,
            "embedding_length": remote.embedding_length,
            "base_name": remote.base_name,
        }
        found |= {key: value for key, value in more.items() if value}
    data = dump({**found, "architecture": "amd64", "os": "linux"}) + b"\n"
    return Layer(CONFIG_MEDIA, digest_of(data), len(data), data)
