"""OpenAI's `/v1/responses` as Ollama implements it: one object, or typed events with sorted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_simulator.api.chat import answer_chat
from ollama_simulator.api.dialect import Rejected, body, early_headers, fail, reject, send
from ollama_simulator.api.exchange import ApiError, Exchange
from ollama_simulator.api.openai_dialect import failed, tool_calls
from ollama_simulator.api.responses_requests import RESPONSES, chat_request
from ollama_simulator.gojson import dump


class ResponsesDialect:
    """The state of one response."""

    starts_early = True

    def __init__(self, exchange: Exchange, request: Mapping[str, Any]) -> None:
        rng = exchange.host.rng
        self._rng = rng
        self._exchange = exchange
        self._request = request
        self.id = f"resp_{rng.randrange(999999)}"
        self._item_id = f"msg_{rng.randrange(999999)}"
        self._reasoning_id = ""
        self._thought = ""
        self._text = ""
        self._is_open = self._has_text = self._has_called = False
        self._index = self._number = 0
        self._done: list[dict[str, Any]] = []

    def failed(self, status: int, text: str) -> dict[str, Any]:
        return failed(status, text)

    def broken(self) -> list[bytes]:
        return []

    def whole(self, chunk: dict[str, Any]) -> dict[str, Any]:
        message = chunk["message"]
        output: list[dict[str, Any]] = []
        if message.get("thinking"):
            summary = [{"type": "summary_text", "text": message["thinking"]}]
            item = {"id": f"rs_{self.id}", "type": "reasoning", "summary": summary}
            output.append({**item, "encrypted_content": message["thinking"]})
        calls = tool_calls(message.get("tool_calls") or [])
        for number, call in enumerate(calls):
            output.append({"id": f"fc_{self.id}_{number}", **_call_fields(call, "completed")})
        if not calls:
            content = [{"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}]
            head = {"id": self._item_id, "type": "message", "status": "completed", "role": "assistant"}
            output.append({**head, "content": content})
        tools = [_tool(tool) for tool in self._request.get("tools") or ()]
        made = self._object("completed", output, _usage(chunk), tools=tools)
        if made["reasoning"]:  # a stream shows what is missing as null
            made["reasoning"] = {key: value for key, value in made["reasoning"].items() if value}
        return made

    def events(self, chunk: dict[str, Any]) -> list[bytes]:
        message = chunk["message"]
        found: list[bytes] = []
        if not self._is_open:
            self._is_open = True
            begun = self._object("in_progress", [], None)
            found += [self._event(name, response=begun) for name in ("response.created", "response.in_progress")]
        if message.get("thinking"):
            found += self._thinking(message["thinking"])
        calls = tool_calls(message.get("tool_calls") or [])
        if calls:
            found += self._end_thinking() + self._calls(calls)
            self._has_called = True
        elif message["content"] and not self._has_called:
            found += self._content(message["content"])
        return found + (self._completion(chunk) if chunk["done"] else [])

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {**fields, "type": kind, "sequence_number": self._number}
        self._number += 1
        return f"event: {kind}\n".encode() + b"data: " + dump(_sorted(data)) + b"\n\n"

    def _object(
        self, status: str, output: list[Any], usage: dict[str, Any] | None, *, tools: list[Any] | None = None
    ) -> dict[str, Any]:
        request = self._request
        now = int(self._exchange.host.now().timestamp())
        shown = tools if tools is not None else [_tool(tool) for tool in request.get("tools") or ()]
        reasoning = request.get("reasoning") or {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": now,
            "completed_at": now if status == "completed" else None,
            "status": status,
            "incomplete_details": None,
            "model": request.get("model") or "",
            "previous_response_id": None,
            "instructions": request.get("instructions") or None,
            "output": output,
            "error": None,
            "tools": shown,
            "tool_choice": "auto",
            "truncation": request.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": _format(request)},
            "top_p": _number(request.get("top_p")),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": _number(request.get("temperature")),
            "reasoning": _reasoning(reasoning),
            "usage": usage,
            "max_output_tokens": request.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": bool(request.get("background")),
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def _thinking(self, text: str) -> list[bytes]:
        found = []
        if not self._reasoning_id:
            self._reasoning_id = f"rs_{self._rng.randrange(999999)}"
            item = {"id": self._reasoning_id, "type": "reasoning", "summary": []}
            found.append(self._event("response.output_item.added", output_index=self._index, item=item))
        self._thought += text
        where = {"item_id": self._reasoning_id, "output_index": self._index, "summary_index": 0}
        return [*found, self._event("response.reasoning_summary_text.delta", **where, delta=text)]

    def _end_thinking(self) -> list[bytes]:
        if not self._reasoning_id:
            return []
        thought, name, index = self._thought, self._reasoning_id, self._index
        summary = [{"type": "summary_text", "text": thought}]
        item = {"id": name, "type": "reasoning", "summary": summary, "encrypted_content": thought}
        self._done.append(item)
        self._thought, self._reasoning_id = "", ""
        self._index += 1
        where = {"item_id": name, "output_index": index, "summary_index": 0}
        return [
            self._event("response.reasoning_summary_text.done", **where, text=thought),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _calls(self, calls: list[dict[str, Any]]) -> list[bytes]:
        found = []
        for number, call in enumerate(calls):
            index, name = self._index + number, f"fc_{self._rng.randrange(999999)}_{number}"
            item = {"id": name, **_call_fields(call, "completed")}
            self._done.append(item)
            arguments = call["function"]["arguments"]
            where = {"item_id": name, "output_index": index}
            started = {**item, "status": "in_progress", "arguments": ""}
            found += [
                self._event("response.output_item.added", output_index=index, item=started),
                self._event("response.function_call_arguments.delta", **where, delta=arguments),
                self._event("response.function_call_arguments.done", **where, arguments=arguments),
                self._event("response.output_item.done", output_index=index, item=item),
            ]
        self._index += len(calls)
        return found

    def _content(self, text: str) -> list[bytes]:
        found = self._end_thinking()
        where = {"item_id": self._item_id, "output_index": self._index, "content_index": 0}
        if not self._has_text:
            self._has_text = True
            item = {**self._message("in_progress"), "content": []}
            found.append(self._event("response.output_item.added", output_index=self._index, item=item))
            found.append(self._event("response.content_part.added", **where, part=_part("")))
        self._text += text
        return [*found, self._event("response.output_text.delta", **where, delta=text, logprobs=[])]

    def _message(self, status: str) -> dict[str, Any]:
        head = {"id": self._item_id, "type": "message", "status": status, "role": "assistant"}
        return {**head, "content": [_part(self._text)]}

    def _completion(self, chunk: dict[str, Any]) -> list[bytes]:
        found = self._end_thinking()
        if self._has_text and not self._has_called:
            where = {"item_id": self._item_id, "output_index": self._index, "content_index": 0}
            found += [
                self._event("response.output_text.done", **where, text=self._text, logprobs=[]),
                self._event("response.content_part.done", **where, part=_part(self._text)),
                self._event("response.output_item.done", output_index=self._index, item=self._message("completed")),
            ]
        output = [*self._done, *([self._message("completed")] if self._has_text else [])]
        response = self._object("completed", output or None, _usage(chunk))  # type: ignore[arg-type]
        return [*found, self._event("response.completed", response=response)]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_fields(call: Mapping[str, Any], status: str) -> dict[str, Any]:
    head = {"type": "function_call", "status": status, "call_id": call["id"]}
    named = {"name": call["function"]["name"]} if call["function"]["name"] else {}
    return {**head, **named, "arguments": call["function"]["arguments"]}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    head = {"type": tool.get("type") or "", "name": tool.get("name") or ""}
    return {
        **head,
        "description": tool.get("description"),
        "strict": tool.get("strict"),
        "parameters": _sorted(tool.get("parameters")),
    }


def _format(request: Mapping[str, Any]) -> dict[str, Any]:
    wanted = (request.get("text") or {}).get("format")
    if wanted is None:
        return {"type": "text"}
    kept = {key: wanted[key] for key in ("name", "schema", "strict") if wanted.get(key) is not None}
    if "schema" in kept:
        value = kept["schema"].value
        kept["schema"] = _AsSent(value) if isinstance(value, dict) else value
    return {"type": wanted.get("type") or "", **kept}


def _reasoning(reasoning: Mapping[str, Any]) -> dict[str, Any] | None:
    found = {key: reasoning.get(key) or None for key in ("effort", "summary")}
    return found if any(found.values()) else None


def _number(value: float | None) -> float:
    value = 1.0 if value is None else value
    return int(value) if float(value).is_integer() else value


def _usage(chunk: Mapping[str, Any]) -> dict[str, Any]:
    asked, said = chunk.get("prompt_eval_count", 0), chunk.get("eval_count", 0)
    return {
        "input_tokens": asked,
        "output_tokens": said,
        "total_tokens": asked + said,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


class _AsSent(dict[str, Any]):
    """A schema, whose members stay in the client's order."""


def _sorted(value: Any) -> Any:
    if isinstance(value, dict) and not isinstance(value, _AsSent):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


async def v1_responses(exchange: Exchange) -> None:
    """POST /v1/responses."""
    dialect = ResponsesDialect(exchange, {})
    try:
        request = await body(exchange, RESPONSES)
        asked = chat_request(request)
    except Rejected as error:
        await reject(exchange, dialect, error)
        return
    dialect = ResponsesDialect(exchange, request)
    stream = bool(request.get("stream"))
    if stream:
        early_headers(exchange)
    try:
        await send(exchange, dialect, await answer_chat(exchange, asked), stream=stream)
    except ApiError as error:
        await fail(exchange, dialect, error)
