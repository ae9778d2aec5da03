"""Tool calls in a stream, found as Ollama's `tools` package does: by a tool's name and the next object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ollama_simulator.api.parsers import overlap


class ToolParser:
    """Finds calls of known tools behind a tag. Text in front of the tag is content, text after it is held back."""

    def __init__(self, tag: str, tools: Sequence[Mapping[str, Any] | None]) -> None:
        self.tag = tag
        self.names = [((tool or {}).get("function") or {}).get("name") or "" for tool in tools]
        self.held = ""
        self.state = "looking"
        self.count = 0

    def add(self, text: str) -> tuple[list[dict[str, Any]], str]:
        """Return (calls without ids, content) that can be sent now."""
        if self.state == "done":
            return [], text
        self.held += text
        content = ""
        if self.state == "looking":
            at, is_found = self._tag()
            content, self.held = self.held[:at], self.held[at:]
            if self.tag in ("{", "[") and content.strip():
                self.state = "done"
                content, self.held = content + self.held, ""
                return [], content
            if not is_found:
                return [], content
            self.state = "calling"
        calls = self._calls()
        if self._is_done():
            self.state = "done"
            content, self.held = self.held, ""
        return calls, content

    def rest(self) -> str:
        """Return the text held back, which turned out not to be a call."""
        return "" if self.count or self.tag not in ("{", "[") else self.held

    def _tag(self) -> tuple[int, bool]:
        """Where the tag or what may be its start begins, and whether it is the whole tag."""
        at = self.held.find(self.tag)
        return (at, True) if at >= 0 else (len(self.held) - overlap(self.held, self.tag), False)

    def _is_done(self) -> bool:
        """Whether the brackets that started with the tag are closed again (only if the tag is one of them)."""
        pair = {"{": "{}", "[": "[]"}.get(self.tag, "")
        depth = 0
        for _, step in _brackets(self.held, pair) if pair else ():
            depth += step
            if step < 0 and depth == 0:
                return True
        return False

    def _calls(self) -> list[dict[str, Any]]:
        calls = []
        while (call := self._next()) is not None:
            calls.append({"index": self.count, **call})
            self.count += 1
        return calls

    def _next(self) -> dict[str, Any] | None:
        found = self._tool()
        arguments = _arguments(found[0], self.held) if found else None
        if found is None or arguments is None:
            return None
        self.held = self.held[max(found[1], arguments[1]) :]
        return {"name": found[0], "arguments": dict(sorted(arguments[0].items()))}

    def _tool(self) -> tuple[str, int] | None:
        """Return the tool named first (the longest of several) and the end of its name; None while one may begin."""
        if not self.held:
            return None
        longest = max(map(len, self.names), default=0)
        tails = [self.held[-size:] for size in range(1, min(len(self.held), longest) + 1)]
        if any(name != tail and name.startswith(tail) for tail in tails for name in self.names):
            return None
        places = [(self.held.find(name), -len(name), name) for name in self.names if name in self.held]
        if not places:
            return None
        at, _, name = min(places)
        return name, at + len(name)


def _brackets(text: str, pair: str) -> Iterator[tuple[int, int]]:
    """Yield (position, +1 or -1) of each opening and closing bracket outside of JSON strings."""
    is_text = is_escaped = False
    for at, char in enumerate(text):
        if is_escaped or char == "\\":
            is_escaped = not is_escaped
            continue
        is_text ^= char == '"'
        if not is_text and char in pair:
            yield at, 1 if char == pair[0] else -1


def _arguments(name: str, text: str) -> tuple[dict[str, Any], int] | None:
    """Return the first whole object as a tool's arguments, or what it holds as such, and its last position."""
    start, depth = -1, 0
    for at, step in _brackets(text, "{}"):
        start = at if step > 0 and depth == 0 else start
        depth += step
        if step < 0 and depth == 0 and start >= 0:
            value = _object(text[start : at + 1])
            if value is not None:
                found, is_found = _find(name, value)
                arguments = found if is_found else value
                return None if arguments is None else (arguments, at)
            start = -1
        depth = max(depth, 0)
    return None


def _object(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _map(key: str, value: Mapping[str, Any]) -> dict[str, Any] | None:
    held = value.get(key)
    return held if isinstance(held, dict) else _object(held) if isinstance(held, str) else None


def _find(name: str, value: Mapping[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """(arguments, whether this object or one inside it is a call): one with a name is a call even without arguments."""
    if "name" in value:
        found = _map("arguments", value)
        return (found if found is not None else _map("parameters", value)), True
    direct = _map(name, value)
    if direct is not None:
        return direct, True
    for child in value.values():
        for item in child if isinstance(child, list) else [child]:
            inner, is_found = _find(name, item) if isinstance(item, dict) else (None, False)
            if is_found:
                return inner, True
    return None, False
