"""Parsers of thinking and tool calls in a stream, after Ollama's `thinking` and `tools` packages."""

from __future__ import annotations

import re


def overlap(text: str, tag: str) -> int:
    """Return the number of characters at the end of `text` that may be the start of `tag`."""
    return next((size for size in range(min(len(text), len(tag)), 0, -1) if text.endswith(tag[:size])), 0)


def thinking_tags(template: str) -> tuple[str, str]:
    """Return the tags around `.Thinking` in a template; ("", "") if it has none."""
    match = re.search(r"\}\}([^{}]*)\{\{-?\s*\.Thinking\s*-?\}\}([^{}]*)\{\{", template)
    return (match[1].strip(), match[2].strip()) if match else ("", "")


def tool_tag(template: str) -> str:
    """Return the text in front of a tool call in the template; "{" if there is none."""
    match = re.search(r"range[^{}]*\.ToolCalls\s*-?\}\}\s*([^\s{}]+)", template)
    return match[1] if match else "{"


class ThinkingParser:
    """Splits a stream into thinking and content; holds back what may be the start of a tag."""

    def __init__(self, opening: str, closing: str) -> None:
        self.opening, self.closing = opening, closing
        self.state = "looking"
        self.held = ""

    def add(self, text: str) -> tuple[str, str]:
        """(thinking, content) that can be sent now."""
        self.held += text
        thinking, content, again = "", "", True
        while again:
            more, rest, again = self._step()
            thinking += more
            content += rest
        return thinking, content

    def _step(self) -> tuple[str, str, bool]:
        held = self.held
        if self.state == "looking":
            return self._look(held)
        if self.state in ("started", "ended"):
            self.held = held.lstrip()
            if not self.held:
                return "", "", False
            self.state = "thinking" if self.state == "started" else "done"
            return "", "", True
        if self.state == "thinking":
            return self._think(held)
        self.held = ""
        return "", held, False

    def _look(self, held: str) -> tuple[str, str, bool]:
        trimmed = held.lstrip()
        if trimmed.startswith(self.opening):
            self.held = trimmed[len(self.opening) :].lstrip()
            self.state = "thinking" if self.held else "started"
            return "", "", True
        if self.opening.startswith(trimmed):
            return "", "", False
        self.state, self.held = "done", ""
        return "", held, False

    def _think(self, held: str) -> tuple[str, str, bool]:
        if self.closing in held:
            thinking, _, rest = held.partition(self.closing)
            rest = rest.lstrip()
            self.held, self.state = "", "done" if rest else "ended"
            return thinking, rest, False
        size = overlap(held, self.closing)
        self.held = held[len(held) - size :]
        return held[: len(held) - size], "", False
