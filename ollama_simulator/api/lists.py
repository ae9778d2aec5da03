"""Routes that only read: root, version, status, tags, ps, show; the account and cloud routes of an offline server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ollama_simulator.api.exchange import ApiError, Exchange, go_time
from ollama_simulator.api.schemas import SHOW
from ollama_simulator.models.installed import Installed
from ollama_simulator.models.modelfile import modelfile, parameters
from ollama_simulator.models.weights import Weights
from router.core.memory.fit_target import version_of
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

_SINCE = {"context_length": (0, 9, 7), "capabilities": (0, 6, 4), "tensors": (0, 6, 2)}
"""The versions of Ollama that brought fields of ps and show."""
FOREVER = timedelta(microseconds=((1 << 63) - 1) // 1000)


async def root(exchange: Exchange) -> None:
    """GET, HEAD /."""
    exchange.response.set("Content-Type", "text/plain; charset=utf-8")
    await exchange.response.write(b"Ollama is running")


async def version(exchange: Exchange) -> None:
    """GET, HEAD /api/version."""
    await exchange.json({"version": exchange.host.version})


async def status(exchange: Exchange) -> None:
    """GET /api/status."""
    disabled = exchange.host.cloud_disabled
    await exchange.json({"cloud": {"disabled": disabled, "source": "env" if disabled else "none"}})


def _tag(model: Installed) -> dict[str, Any]:
    return {
        "name": model.show_name,
        "model": model.show_name,
        **(model.remote.fields if model.remote is not None else {}),
        "modified_at": go_time(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": model.details(with_lengths=True),
        **({"capabilities": found} if (found := _tag_capabilities(model)) else {}),
    }


def _tag_capabilities(model: Installed) -> list[str]:
    """Unlike show, tags lists vision only for a model with a projector, and lists it first."""
    if not model.weights.has_metadata and model.remote is None:
        return [name for name in model.capabilities if name not in ("completion", "vision", "embedding")]
    others = [name for name in model.capabilities if name != "vision"]
    return ["vision", *others] if "vision" in model.capabilities and model.weights.has_projector else others


def _as_of(version: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that Ollama of that version has."""
    known = version_of(version)
    return {key: value for key, value in fields.items() if known >= _SINCE.get(key, known)}


async def tags(exchange: Exchange) -> None:
    """GET, HEAD /api/tags."""
    await exchange.json({"models": [_tag(model) for model in exchange.host.library.newest_first()]})


async def ps(exchange: Exchange) -> None:
    """GET /api/ps: the loaded models, each under the name that loaded it."""
    now, now_s = exchange.host.now(), asyncio.get_running_loop().time()
    rows = []
    engine = exchange.host.engine
    for row in engine.ps():
        facts = row.model.facts
        left_s = row.expires_at_s - now_s
        expires = now + (FOREVER if left_s > 1e10 else timedelta(seconds=left_s))
        details = {
            "parent_model": "",
            "format": "gguf",
            "family": facts.family,
            "families": [facts.family],
            "parameter_size": facts.parameter_size,
            "quantization_level": facts.quantization,
        }
        rows.append(
            {
                "name": facts.name,
                "model": facts.name,
                "size": row.size_bytes,
                "digest": facts.digest,
                "details": details,
                "expires_at": go_time(expires),
                "size_vram": row.size_vram_bytes,
                "context_length": row.context_length,
            }
        )
    await exchange.json({"models": [_as_of(exchange.host.version, row) for row in rows]})


async def show(exchange: Exchange) -> None:
    """POST /api/show."""
    request = await exchange.bind(SHOW)
    asked = request.get("model") or request.get("name") or ""
    await exchange.json(answer_show(exchange, asked, request))


def answer_show(exchange: Exchange, asked: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """ShowHandler. Raises ApiError."""
    name = exchange.name(asked, unnamed=(400, "model is required"))
    if name.source is Source.CLOUD:
        raise ApiError(*exchange.cloud_refusal("remote model details are unavailable"))
    model = exchange.host.library.readable(name)
    if model is not None and model.remote is not None:
        if exchange.host.cloud_disabled:
            raise ApiError(*exchange.cloud_refusal("remote model details are unavailable"))
        if name.source is Source.LOCAL:
            raise ApiError(404, f"model '{asked}' not found")
    elif model is None or model.weights.is_gone:
        raise ApiError(404, f"model '{name.short}' not found")
    if model.weights.damage:
        raise ApiError(500, model.weights.damage)
    shown = _shown(exchange, model, request)
    if exchange.request.header("User-Agent").startswith("GitHubCopilotChat/"):
        shown["model_info"]["general.basename"] = asked
        shown["model_info"] = dict(sorted(shown["model_info"].items()))
    return shown


def _shown(exchange: Exchange, model: Installed, request: Mapping[str, Any]) -> dict[str, Any]:
    system = request.get("system") or model.system
    options = {**model.parameters, **(request.get("options") or {})}
    shown: dict[str, Any] = {
        "license": "\n".join(model.licenses),
        "modelfile": modelfile(model, system, options, exchange.host.models_dir),
        "parameters": parameters(model.parameters),
        "template": model.template,
        "system": system,
        "details": model.details(),
        "messages": [{"role": m.get("role", ""), "content": m.get("content", "")} for m in model.messages],
        **(model.remote.fields if model.remote is not None else {}),
        "model_info": model.remote.model_info
        if model.remote is not None
        else model_info(model.weights, verbose=bool(request.get("verbose"))),
        "tensors": [{"name": t.name, "type": t.type, "shape": list(t.shape)} for t in model.weights.tensors],
        "capabilities": list(model.capabilities),
        "modified_at": go_time(model.modified_at),
    }
    shown = {key: value for key, value in shown.items() if value or key in ("details", "model_info", "modified_at")}
    return _as_of(exchange.host.version, shown)


def model_info(weights: Weights, *, verbose: bool) -> dict[str, Any]:
    """Metadata sorted by key; without `verbose` every array is null."""
    return {
        key: go_number(value) if verbose or not isinstance(value, list) else None
        for key, value in sorted(weights.info.items())
        if key not in ("general.name", "tokenizer.chat_template")
    }


def go_number(value: Any) -> Any:
    """Floats with integral values print without a fraction in Go."""
    if isinstance(value, list):
        return [go_number(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    return value


# account and cloud


async def me(exchange: Exchange) -> None:
    """POST /api/me: nobody is signed in and there is no network."""
    await exchange.error(503, "account unavailable")


async def signout(exchange: Exchange) -> None:
    """POST /api/signout and DELETE /api/user/keys/:k."""
    await exchange.error(500, "there was an error signing out")


async def web_search(exchange: Exchange) -> None:
    """POST /api/experimental/web_search."""
    raise ApiError(*exchange.cloud_refusal("web search is unavailable", "/api/web_search"))


async def web_fetch(exchange: Exchange) -> None:
    """POST /api/experimental/web_fetch."""
    raise ApiError(*exchange.cloud_refusal("web fetch is unavailable", "/api/web_fetch"))


async def recommendations(exchange: Exchange) -> None:
    """GET /api/experimental/model-recommendations: the built-in list."""
    await exchange.json({"recommendations": list(RECOMMENDATIONS)})


def _cloud(model: str, description: str, context: int, output: int) -> dict[str, Any]:
    head = {"model": f"{model}:cloud", "description": description}
    return {**head, "context_length": context, "max_output_tokens": output}


def _local(model: str, description: str, gigabytes: int) -> dict[str, Any]:
    return {"model": model, "description": description, "vram_bytes": gigabytes * 10**9}


RECOMMENDATIONS: tuple[dict[str, Any], ...] = (
    _cloud(
        "kimi-k2.6",
        "State-of-the-art coding, long-horizon execution, and multimodal agent swarm capability",
        262144,
        262144,
    ),
    _cloud("glm-5.1", "Reasoning and code generation", 202752, 131072),
    _cloud("qwen3.5", "Reasoning, coding, and agentic tool use with vision", 262144, 32768),
    _cloud("minimax-m2.7", "Fast, efficient coding and real-world productivity", 204800, 128000),
    _local("gemma4", "Reasoning and code generation locally", 12),
    _local("qwen3.5", "Reasoning, coding, and visual understanding locally", 14),
)


def parsed_or_none(text: str) -> ModelName | None:
    """Return the parsed name, or None if it is invalid."""
    try:
        return ModelName.parse(text)
    except BadRequest:
        return None
