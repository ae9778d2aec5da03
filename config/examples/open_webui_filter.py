"""
title: Which model has answered
description: Shows in a status line above the answer which variant ollama-router has chosen, and why.
version: 1.0
required_open_webui_version: 0.5.17
"""

# For Open WebUI: Admin Panel, Functions, Import; then switch it on for all models, or for those of ollama-router.
#
# The name is in every answer (`defaults.response_model: served`, the default of ollama-router). The reason is read from
# the router's admin address if one is set below, or taken from the line of `defaults.announce`, which is then removed
# from the answer: titles and tags are asked for in the same way as answers are, so prefer the admin address.

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, Field

Emitter = Callable[[dict[str, Any]], Awaitable[None]]

BEGIN, END = "[answered by ", "]\n\n"
MOST_MESSAGES = 1000
DECISIONS_BYTES = 4 << 20


class Filter:
    """A filter of Open WebUI: `stream` is called for each event of an answer."""

    class Valves(BaseModel):
        """What an administrator can set in Open WebUI."""

        priority: int = Field(default=0, description="Order among filters.")
        only_if_other: bool = Field(default=True, description="Say nothing if the model that was asked for answers.")
        admin_url: str = Field(default="", description="Admin address of ollama-router, as http://127.0.0.1:11436.")
        admin_key: str = Field(default="", description="Admin key, if the address needs one.")
        timeout_s: float = Field(default=1.0, description="How long the reason may take; the answer goes on meanwhile.")

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._said: dict[str, None] = {}  # the messages that have their line
        self._tasks: set[asyncio.Task[None]] = set()

    async def stream(
        self,
        event: dict[str, Any],
        __event_emitter__: Emitter | None = None,
        __metadata__: dict[str, Any] | None = None,
        __model__: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return an event of the answer; with the first that names a model, show the status line."""
        line = _taken_line(event)
        served = event.get("model") or ""
        message = str((__metadata__ or {}).get("message_id") or event.get("id") or "")
        if not __event_emitter__ or not served or not _choices(event) or (message in self._said and not line):
            return event
        self._remember(message)
        asked = _asked(__model__)
        if line:
            await __event_emitter__(_status(line))
        elif not (self.valves.only_if_other and asked and _same(asked, served)):
            await __event_emitter__(_status(_text(served, asked)))
            if self.valves.admin_url:  # beside the answer, which does not wait for the reason
                task = asyncio.create_task(self._explain(served, asked, __event_emitter__))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return event

    def _remember(self, message: str) -> None:
        self._said[message] = None
        if len(self._said) > MOST_MESSAGES:
            del self._said[next(iter(self._said))]

    async def _explain(self, served: str, asked: str, emit: Emitter) -> None:
        """Replace the status line by one with the reason, if the router tells it in time."""
        try:
            rows = await asyncio.wait_for(asyncio.to_thread(self._decisions), self.valves.timeout_s)
            reason = next((str(row["reason"]) for row in rows if _is_for(row, served, asked)), "")
        except (OSError, ValueError, KeyError, TypeError, TimeoutError):
            return
        if reason:
            await emit(_status(f"{_text(served, asked)}: {reason.removeprefix('fallback: ')}"))

    def _decisions(self) -> list[dict[str, Any]]:
        """Return the router's newest decisions, newest first."""
        request = urllib.request.Request(f"{self.valves.admin_url.rstrip('/')}/router/decisions")
        if self.valves.admin_key:
            request.add_header("Authorization", f"Bearer {self.valves.admin_key}")
        with urllib.request.urlopen(request, timeout=self.valves.timeout_s) as answer:
            found = json.loads(answer.read(DECISIONS_BYTES))["decisions"]
        return found if isinstance(found, list) else []


def _is_for(row: dict[str, Any], served: str, asked: str) -> bool:
    is_same = row.get("chosen") == served and (not asked or _same(str(row.get("requested")), asked))
    return row.get("kind") == "request" and is_same


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    choices = event.get("choices")
    return [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []


def _taken_line(event: dict[str, Any]) -> str:
    """Remove the router's own line from an event, and return it without brackets; "" if it has none."""
    for choice in _choices(event):
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text.startswith(BEGIN) and END in text:
            line, _, rest = text.partition(END)
            delta["content"] = rest
            return line[1:]
    return ""


def _asked(model: dict[str, Any] | None) -> str:
    """Return the name of the model that was asked for: a model of Open WebUI's own is made from one."""
    about = model or {}
    base = (about.get("info") or {}).get("base_model_id")
    return str(base or about.get("id") or "")


def _same(one: str, other: str) -> bool:
    return one.removesuffix(":latest").lower() == other.removesuffix(":latest").lower()


def _text(served: str, asked: str) -> str:
    return f"answered by {served} instead of {asked}" if asked and not _same(asked, served) else f"answered by {served}"


def _status(text: str) -> dict[str, Any]:
    return {"type": "status", "data": {"description": text, "done": True, "hidden": False}}
