"""Files given to `/api/create`: what Ollama takes them for, and why it refuses those that are no model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.gojson import parse
from ollama_simulator.models.installed import MEDIA, Layer
from ollama_simulator.models.weights import Weights
from router.errors import BadRequest

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


def blob_path(exchange: Exchange, digest: str) -> str:
    """Return the path of a blob on the server's disk."""
    return f"{exchange.host.models_dir}/blobs/{digest.replace(':', '-')}"


def conversion(exchange: Exchange, files: Mapping[str, str]) -> list[str]:
    """Return the status lines with which the conversion of these files begins."""
    return {"gguf": ["parsing GGUF"], "safetensors": ["converting model"]}.get(_format(exchange, files), [])


def from_files(exchange: Exchange, files: Mapping[str, str]) -> tuple[Weights, list[Layer]]:
    """Return the weights in the files, and their layer. Raises ApiError."""
    kind = _format(exchange, files)
    if kind == "safetensors":
        _check_config(exchange, files, "config.json", 500)
    if kind != "gguf":
        raise ApiError(400, "unknown type")
    found = [(_weights(exchange, digest, 500), digest) for _, digest in sorted(files.items())]
    weights, digest = found[0]
    return weights, [Layer(MEDIA + "model", digest, weights.size_bytes)]


def refuse_adapters(exchange: Exchange, files: Mapping[str, str]) -> None:
    """Raise ApiError for the files of an adapter: there is none here that could be one."""
    kind = _format(exchange, files)
    if kind == "safetensors":
        _check_config(exchange, files, "adapter_config.json", 400)
    if kind == "gguf" and len(files) > 1:
        raise ApiError(400, "only one adapter is currently supported")
    for digest in files.values() if kind == "gguf" else ():
        _weights(exchange, digest, 400)
    raise ApiError(400, "unknown type")


def _format(exchange: Exchange, files: Mapping[str, str]) -> str:
    """Return what the first telling file says: by the end of its name, or by what is in its blob."""
    for path, digest in files.items():
        if path.endswith((".safetensors", ".gguf")):
            return path.rpartition(".")[2]
        if not _DIGEST.fullmatch(digest) or not _is_there(exchange, digest):
            return ""
        if _known(exchange, digest) is not None:
            return "gguf"
    return ""


def _is_there(exchange: Exchange, digest: str) -> bool:
    return digest.replace("-", ":", 1) in exchange.host.library.blobs or _known(exchange, digest) is not None


def _known(exchange: Exchange, digest: str) -> Weights | None:
    digest = digest.replace("-", ":", 1)
    models = exchange.host.library.models.values()
    installed_here = next((model.weights for model in models if model.weights.digest == digest), None)
    return installed_here or exchange.host.spare_weights.get(digest)


def _weights(exchange: Exchange, digest: str, bad_digest: int) -> Weights:
    if not _DIGEST.fullmatch(digest):
        raise ApiError(bad_digest, "invalid digest format")
    known = _known(exchange, digest)
    if known is not None:
        return known
    if not _is_there(exchange, digest):
        raise ApiError(500, f"open {blob_path(exchange, digest)}: no such file or directory")
    raise ApiError(400, "supplied file was not in GGUF format")


def _check_config(exchange: Exchange, files: Mapping[str, str], name: str, status: int) -> None:
    """Raise ApiError if a model in safetensors has no readable config."""
    digest = files.get(name)
    if digest is None:
        raise ApiError(status, f"open {name}: no such file or directory")
    try:
        parse(exchange.host.library.blobs.get(digest) or b"")
    except BadRequest as error:
        raise ApiError(status, f"parse {name}: {error.message}") from None
