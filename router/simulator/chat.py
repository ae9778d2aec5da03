"""`/api/generate` and `/api/chat` as values: checks, prompt, and a stream of response objects in Ollama's form.

The dialects (`api_native.py`, `api_openai.py`, `api_anthropic.py`) ask here and write the answer in their own shape.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from router.simulator import tokens
from router.simulator.engine import EngineError, Lease, RunnerDied
from router.simulator.exchange import ApiError, Exchange, engine_error
from router.simulator.gojson import dump, quoted
from router.simulator.inference import Completion, Piece, complete, died
from router.simulator.library import Installed
from router.simulator.options import OptionError, merged, runner_options, sampling
from router.simulator.parsers import ThinkingParser, ToolParser, thinking_tags, tool_tag
from router.simulator.prompt import chat_prompt, generate_prompt
from router.simulator.template import TemplateError

MULTIMODAL = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests."'
    ',"type":"invalid_request_error"}}'
)


@dataclass(frozen=True, slots=True)
class Single:
    """One object and no stream: loads, unloads, rendered prompts."""

    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Response objects, the last one done. Raises ApiError, before the first or between any two."""

    stream: AsyncIterator[dict[str, Any]]


async def answer_chat(exchange: Exchange, request: dict[str, Any], *, relax_thinking: bool = False) -> Single | Chunks:
    """ChatHandler. Raises ApiError."""
    _check_logprobs(request)
    name = request.get("model") or ""
    model = exchange.installed(name, missing=f"model '{name}' not found", unnamed=(400, "model is required"))
    messages = request.get("messages") or []
    head = {"model": name}
    if not messages and request.get("keep_alive") == 0:
        return _unload(exchange, model, {**head, "created_at": "", "message": {"role": "assistant", "content": ""}})
    wants = ["completion", *(["tools"] if request.get("tools") else [])]
    think = _think(request, model, name, relax=relax_thinking)
    lease = await _load(exchange, request, model, wants, "chat")
    if not messages:
        lease.release()
        return _single(exchange, {**head, "created_at": "", "message": {"role": "assistant", "content": ""}}, "load")
    values = merged(model.parameters, request.get("options"))
    asked = _Asked(request, think, values)
    try:
        full = [*model.messages, *messages]
        if messages[0].get("role") != "system" and model.system:
            full.insert(0, {"role": "system", "content": model.system})
        prompt = chat_prompt(model, full, request.get("tools") or [], think, lease.num_ctx, asked.truncates)
    except TemplateError as error:
        lease.release()
        raise ApiError(500, str(error)) from None
    if request.get("_debug_render_only"):
        lease.release()
        empty = {**head, "created_at": exchange.host.stamp(), "message": {"role": "", "content": ""}, "done": False}
        return Single({**empty, "_debug_info": {"rendered_template": prompt}})
    last = messages[-1].get("role") == "tool"
    images = any(message.get("images") for message in messages)
    completion = asked.completion(exchange, model, prompt, lease, tools=request.get("tools") or [], is_tool_result=last)
    return Chunks(_chat_chunks(exchange, asked, completion, lease, has_images=images))


async def answer_generate(exchange: Exchange, request: dict[str, Any]) -> Single | Chunks:
    """GenerateHandler. Raises ApiError."""
    _check_logprobs(request)
    name = request.get("model") or ""
    missing = f"model '{name}' not found"
    model = exchange.installed(name, missing=missing, unnamed=(404, missing))
    head = {"model": name, "created_at": "", "response": ""}
    prompt = request.get("prompt") or ""
    if not prompt and request.get("keep_alive") == 0:
        return _unload(exchange, model, head)
    if request.get("raw") and (request.get("template") or request.get("system") or request.get("context")):
        raise ApiError(400, "raw mode does not support template, system, or context")
    wants = ["completion", *(["insert"] if request.get("suffix") else [])]
    think = _think(request, model, name, relax=False)
    lease = await _load(exchange, request, model, wants, "generate")
    if not prompt:
        lease.release()
        return _single(exchange, head, "load")
    asked = _Asked(request, think, merged(model.parameters, request.get("options")))
    try:
        rendered = generate_prompt(model, request, think, lease.num_ctx, asked.truncates)
    except TemplateError as error:
        lease.release()
        raise ApiError(500, str(error)) from None
    if request.get("_debug_render_only"):
        lease.release()
        empty = {**head, "created_at": exchange.host.stamp(), "done": False}
        return Single({**empty, "_debug_info": {"rendered_template": rendered}})
    completion = asked.completion(exchange, model, rendered, lease)
    return Chunks(_generate_chunks(exchange, asked, completion, lease, has_images=bool(request.get("images"))))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request after its checks. `think`: True, False, a level, or None where nothing is said."""

    request: Mapping[str, Any]
    think: bool | str | None
    values: Mapping[str, Any]

    @property
    def truncates(self) -> bool:
        return self.request.get("truncate") is not False

    def completion(self, exchange: Exchange, model: Installed, prompt: str, lease: Lease, **more: Any) -> Completion:
        return Completion(
            model=model,
            prompt=prompt,
            sampling=sampling(self.values),
            num_ctx=lease.num_ctx,
            truncate=self.truncates,
            shift=self.request.get("shift") is not False,
            thinks=bool(self.think) and "thinking" in model.capabilities,
            format=self.request.get("format"),
            reply_tokens=exchange.host.engine.cards.machine.reply_tokens,
            **more,
        )

    def parser(self, model: Installed, prompt: str) -> ThinkingParser | None:
        opening, closing = thinking_tags(model.template)
        if not (self.think and opening and closing):
            return None
        parser = ThinkingParser(opening, closing)
        if prompt.strip().endswith(opening):
            parser.add(opening)
        return parser


def _check_logprobs(request: Mapping[str, Any]) -> None:
    if not 0 <= (request.get("top_logprobs") or 0) <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")


def _think(request: Mapping[str, Any], model: Installed, name: str, *, relax: bool) -> bool | str | None:
    think: bool | str | None = request.get("think")
    if "thinking" in model.capabilities:
        return True if think is None else think
    if think and not relax:
        raise ApiError(400, f"{quoted(name)} does not support thinking")
    return None if think else think


def _unload(exchange: Exchange, model: Installed, head: dict[str, Any]) -> Single:
    assert model.sim is not None
    exchange.host.engine.expire(model.sim)
    return _single(exchange, head, "unload")


def _single(exchange: Exchange, head: dict[str, Any], reason: str) -> Single:
    head["created_at"] = exchange.host.stamp()
    return Single({**head, "done": True, "done_reason": reason})


async def load(exchange: Exchange, request: Mapping[str, Any], model: Installed, shift: bool | None = None) -> Lease:
    """The model, resident with the request's options. Raises ApiError."""
    assert model.sim is not None
    try:
        options = runner_options(merged(model.parameters, request.get("options")), shift)
    except OptionError as error:
        raise ApiError(500, str(error)) from None
    keep = request.get("keep_alive")
    try:
        return await exchange.host.engine.acquire(
            model.sim,
            options,
            keep_alive_s=None if keep is None else max(0.0, keep),
        )
    except EngineError as error:
        raise engine_error(error) from None


async def _load(exchange: Exchange, request: Mapping[str, Any], model: Installed, wants: list[str], verb: str) -> Lease:
    lacking = [want for want in wants if want not in model.capabilities]
    if "completion" in lacking:
        raise ApiError(400, f"{quoted(request.get('model') or '')} does not support {verb}")
    if lacking:
        raise ApiError(400, f"{model.name.full} does not support {chr(10).join(lacking)}")
    return await load(exchange, request, model, request.get("shift"))


def check_format(value: Any) -> None:
    """`format` must be "json" or a schema. Raises ApiError 500 with Ollama's text."""
    if value in (None, "", "json") or isinstance(value, dict):
        return
    raise ApiError(
        500, f'invalid format: {quoted(dump(value).decode())}; expected "json" or a valid JSON Schema object'
    )


async def _pieces(completion: Completion, lease: Lease, *, has_images: bool) -> AsyncIterator[Piece]:
    """The completion's pieces, with the runner's failures as ApiError; the lease ends with them."""
    try:
        check_format(completion.format)
        if has_images and not any(tensor.name.startswith("v.") for tensor in completion.model.weights.tensors):
            raise ApiError(400, MULTIMODAL)
        async with aclosing(complete(lease, completion)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece
    except RunnerDied as error:
        raise ApiError(500, died(error)) from None
    finally:
        lease.release()


async def _chat_chunks(
    exchange: Exchange, asked: _Asked, completion: Completion, lease: Lease, *, has_images: bool
) -> AsyncIterator[dict[str, Any]]:
    thoughts = asked.parser(completion.model, completion.prompt)
    tools = list(completion.tools)
    calls = ToolParser(tool_tag(completion.model.template), [dict(tool) for tool in tools]) if tools else None
    loaded_s = asyncio.get_running_loop().time()
    async with aclosing(_pieces(completion, lease, has_images=has_images)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            message: dict[str, Any] = {"role": "assistant", "content": piece.text}
            if thoughts is not None:
                thinking, message["content"] = thoughts.add(piece.text)
                if not thinking and not message["content"] and not piece.done:
                    continue
                if thinking:
                    message["thinking"] = thinking
            if calls is not None and not _tool_step(exchange, calls, message, piece):
                continue
            yield _chunk(exchange, asked, completion, piece, loaded_s, {"message": message})


def _tool_step(exchange: Exchange, calls: ToolParser, message: dict[str, Any], piece: Piece) -> bool:
    """Put calls into `message`; False when there is nothing to send yet."""
    found, content = calls.add(message["content"])
    if content:
        message["content"] = content
    elif found:
        message["content"] = ""
        ids = [f"call_{_base36(exchange)}" for _ in found]
        message["tool_calls"] = [{"id": number, "function": call} for number, call in zip(ids, found, strict=True)]
    elif not message.get("thinking"):
        message["content"] = calls.rest() if piece.done else ""
        return bool(piece.done)
    else:
        message["content"] = ""
    return True


def _base36(exchange: Exchange) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(exchange.host.rng.choice(letters) for _ in range(8))


async def _generate_chunks(
    exchange: Exchange, asked: _Asked, completion: Completion, lease: Lease, *, has_images: bool
) -> AsyncIterator[dict[str, Any]]:
    thoughts = asked.parser(completion.model, completion.prompt)
    loaded_s = asyncio.get_running_loop().time()
    said = ""
    async with aclosing(_pieces(completion, lease, has_images=has_images)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            said += piece.text
            body: dict[str, Any] = {"response": piece.text}
            if thoughts is not None:
                thinking, body["response"] = thoughts.add(piece.text)
                if thinking:
                    body["thinking"] = thinking
            chunk = _chunk(exchange, asked, completion, piece, loaded_s, body)
            if piece.done and not asked.request.get("raw"):
                chunk = _with_context(chunk, tokens.encode(completion.model.weights, completion.prompt + said))
            if "logprobs" in chunk:
                chunk["logprobs"] = chunk.pop("logprobs")
            yield chunk


def _with_context(chunk: dict[str, Any], context: list[int]) -> dict[str, Any]:
    """`context` stands before the figures."""
    made: dict[str, Any] = {}
    for key, value in chunk.items():
        if key == "total_duration":
            made["context"] = context
        made[key] = value
    return made


def _chunk(
    exchange: Exchange, asked: _Asked, completion: Completion, piece: Piece, loaded_s: float, body: dict[str, Any]
) -> dict[str, Any]:
    chunk: dict[str, Any] = {"model": asked.request.get("model") or "", "created_at": exchange.host.stamp(), **body}
    chunk["done"] = bool(piece.done)
    if piece.done:
        chunk["done_reason"] = piece.done
    if asked.request.get("logprobs") and piece.new_tokens:
        top = asked.request.get("top_logprobs") or 0
        chunk["logprobs"] = [_logprob(text, top) for text in piece.new_tokens]
    if piece.done:
        now_s = asyncio.get_running_loop().time()
        chunk["total_duration"] = max(1, int((now_s - exchange.started_s) * 1e9))
        chunk["load_duration"] = max(1, int((loaded_s - exchange.started_s) * 1e9))
        chunk["prompt_eval_count"] = piece.prompt_count
        chunk["prompt_eval_duration"] = max(1000, int(piece.prompt_s * 1e9))
        chunk["eval_count"] = piece.count
        chunk["eval_duration"] = int(piece.duration_s * 1e9)
    return chunk


def _logprob(text: str, top: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"token": text, "logprob": 0, "bytes": list(text.encode())}
    if top:
        others = [
            {"token": chr(97 + number), "logprob": -40 - number, "bytes": [97 + number]} for number in range(top - 1)
        ]
        entry["top_logprobs"] = [dict(entry), *others]
    return entry


def json_text(value: Any) -> str:
    """Compact JSON for texts inside answers."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
