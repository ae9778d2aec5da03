"""Ollama's own inference routes: generate and chat (NDJSON or one object), embed, embeddings."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ollama_simulator.api.chat import Chunks, Single, answer_chat, answer_generate, load
from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.api.options import merged
from ollama_simulator.api.schemas import CHAT, EMBED, EMBEDDING, GENERATE
from ollama_simulator.models import tokens
from ollama_simulator.models.installed import Installed

SPECIAL_TOKENS = 2
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"


async def generate(exchange: Exchange) -> None:
    """POST /api/generate."""
    request = await exchange.bind(GENERATE)
    await _write(exchange, request, await answer_generate(exchange, request), "response")


async def chat(exchange: Exchange) -> None:
    """POST /api/chat."""
    request = await exchange.bind(CHAT)
    await _write(exchange, request, await answer_chat(exchange, request), "message")


async def _write(exchange: Exchange, request: dict[str, Any], answer: Single | Chunks, field: str) -> None:
    if isinstance(answer, Single):
        await exchange.json(answer.value)
    elif request.get("stream") is False:
        await exchange.json(await gathered(answer, field))
    else:
        async with aclosing(answer.stream) as chunks:  # type: ignore[type-var]
            await exchange.lines(chunks)


async def gathered(answer: Chunks, field: str) -> dict[str, Any]:
    """All chunks as one object: texts and logprobs joined, counts and durations of the last. Raises ApiError."""
    contents, thoughts = "", ""
    logprobs: list[Any] = []
    calls: list[Any] = []
    last: dict[str, Any] = {}
    nothing: Any = {"role": "", "content": ""} if field == "message" else ""
    async with aclosing(answer.stream) as chunks:  # type: ignore[type-var]
        async for last in chunks:
            part = last["message"] if field == "message" else {"content": last["response"], **last}
            contents += part["content"]
            thoughts += part.get("thinking") or ""
            calls += part.get("tool_calls") or []
            logprobs += last.get("logprobs") or []
    if not last:
        return {"model": "", "created_at": "0001-01-01T00:00:00Z", field: nothing, "done": False}
    return _joined(last, field, contents, thoughts, calls, logprobs)


def _joined(
    last: dict[str, Any], field: str, contents: str, thoughts: str, calls: list[Any], logprobs: list[Any]
) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for key, value in last.items():
        if key == "total_duration" and field == "message" and logprobs:
            whole["logprobs"] = logprobs
        if key == "message":
            value = {"role": "assistant", "content": contents}
            if thoughts:
                value["thinking"] = thoughts
            if calls:
                value["tool_calls"] = calls
        elif key == "response":
            value = contents
        elif key in ("thinking", "logprobs"):
            continue
        whole[key] = value
        if key == "response" and thoughts:
            whole["thinking"] = thoughts
    if field == "response" and logprobs:
        whole["logprobs"] = logprobs
    return whole


async def embed(exchange: Exchange) -> None:
    """POST /api/embed."""
    request = await exchange.bind(EMBED)
    await exchange.json(await answer_embed(exchange, request))


async def answer_embed(exchange: Exchange, request: dict[str, Any]) -> dict[str, Any]:
    """EmbedHandler. Raises ApiError."""
    name = request.get("model") or ""
    unnamed = (404, f"model '{name}' not found")
    exchange.name(name, unnamed=unnamed)
    texts = _inputs(request.get("input"))
    missing = f'model "{name}" not found, try pulling it first'
    model = exchange.installed(name, missing=missing, unnamed=unnamed)
    if model.weights.is_gone:
        raise ApiError(404, missing)
    lease = await load(exchange, request, model)
    try:
        if not texts:
            return {"model": name, "embeddings": []}
        loaded_s = asyncio.get_running_loop().time()
        vectors, count, room = [], 0, _room(model, request, lease.num_ctx)
        for text in texts:
            found, used = await _embedding(model, text, room, request.get("truncate") is not False)
            dimensions = request.get("dimensions") or 0
            vectors.append(normalized(found[:dimensions]) if 0 < dimensions < len(found) else found)
            count += used
        await asyncio.sleep(count / lease.prompt_tokens_per_s)
    finally:
        lease.release()
    now_s = asyncio.get_running_loop().time()
    return {
        "model": name,
        "embeddings": vectors,
        "total_duration": max(1, int((now_s - exchange.started_s) * 1e9)),
        "load_duration": max(1, int((loaded_s - exchange.started_s) * 1e9)),
        "prompt_eval_count": count,
    }


def _inputs(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ApiError(400, "invalid input type")


async def embeddings(exchange: Exchange) -> None:
    """POST /api/embeddings (the older route: not normalised)."""
    request = await exchange.bind(EMBEDDING)
    name = request.get("model") or ""
    missing = f'model "{name}" not found, try pulling it first'
    model = exchange.installed(name, missing=missing, unnamed=(400, "model is required"))
    if model.weights.is_gone:
        raise ApiError(404, missing)
    lease = await load(exchange, request, model)
    try:
        if not request.get("prompt"):
            await exchange.json({"embedding": []})
            return
        try:
            if "embedding" not in model.capabilities:
                raise ApiError(500, NO_EMBEDDINGS)
            vector, _ = await _embedding(model, request["prompt"], _room(model, request, lease.num_ctx), False)
        except ApiError as error:
            raise ApiError(500, error.text) from None
    finally:
        lease.release()
    await exchange.json({"embedding": [round(value * 3.7, 6) for value in vector]})


@dataclass(frozen=True, slots=True)
class _Room:
    """Tokens of an input with its two special ones: the context as the request states it, and the batch, which a whole
    input must fit into."""

    context: int
    batch: int


def _room(model: Installed, request: dict[str, Any], num_ctx: int) -> _Room:
    values = merged(model.parameters, request.get("options"))
    asked, batch = values.get("num_ctx"), values.get("num_batch")
    context = min(asked if asked and asked > 0 else num_ctx, int(model.weights.value("context_length") or num_ctx))
    return _Room(context, batch if batch and batch > 0 else context)


async def _embedding(model: Installed, text: str, room: _Room, truncate: bool) -> tuple[list[float], int]:
    """Return a made-up unit vector that depends only on the text, and the number of tokens read."""
    count = tokens.count_words(model.weights, text) + SPECIAL_TOKENS
    limit = min(room.context, room.batch)
    if room.context <= SPECIAL_TOKENS or (count > room.batch and truncate and limit <= SPECIAL_TOKENS):
        raise ApiError(400, "input after truncation exceeds maximum context length")
    if count > limit:
        if not truncate:
            raise ApiError(400, "the input length exceeds the context length")
        count = limit
    if "embedding" not in model.capabilities:
        raise ApiError(501, NO_EMBEDDINGS)
    size = int(model.weights.value("embedding_length") or 8)
    rng = random.Random(f"{model.weights.digest} {text}")
    return normalized([rng.gauss(0, 1) for _ in range(size)]), count


def normalized(vector: list[float]) -> list[float]:
    """Return the vector scaled to length 1, with the precision of a float32."""
    norm = math.sqrt(sum(value * value for value in vector)) or 1e-12
    return [float(f"{value / norm:.8g}") for value in vector]
