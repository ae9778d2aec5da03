"""The part of Go's text/template that chat templates use: fields, variables, if, range, with, and common functions.

`Template.parse` raises TemplateError with Go's text. `render` works on plain dicts and lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_simulator.gojson import dump
from ollama_simulator.models.template_functions import FUNCTIONS, is_true, printed
from ollama_simulator.models.template_syntax import Checker, TemplateError, fail

_TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?|\.\d+))|(?P<field>(?:\$\w*)?(?:\.\w+)+)|(?P<dot>\.)'
    r"|(?P<variable>\$\w*)|(?P<word>\w+)|(?P<sign>:=|=|\||\(|\)|,))"
)


class Json(dict[str, Any]):
    """An object that prints as JSON, as api.Tool and its parts do in Ollama."""

    def __str__(self) -> str:
        return dump(self).decode()


@dataclass
class _Node:
    kind: str
    text: str = ""
    pipe: list[str] = field(default_factory=list)
    body: list[_Node] = field(default_factory=list)
    other: list[_Node] = field(default_factory=list)


class Template:
    """A parsed template; `text` is its source."""

    def __init__(self, text: str, nodes: list[_Node]) -> None:
        self.text = text
        self._nodes = nodes

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse `text`. Raises TemplateError."""
        nodes, _ = _block(_pieces(text))
        return cls(text, nodes)

    def uses(self, name: str) -> bool:
        """Whether the template contains a field of that name."""
        return re.search(rf"\{{\{{[^}}]*\.{name}\b", self.text) is not None

    def render(self, data: Mapping[str, Any], *, until: str = "") -> str:
        """Render `data`. With `until`, stop at the first use of that field."""
        out: list[str] = []
        try:
            _run(self._nodes, data, {"$": data}, out, until)
        except _Cut:
            pass
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise TemplateError(f"template: :1: executing: {error}") from None
        return "".join(out)


class _Break(Exception):
    """``{{ break }}``."""


class _Continue(Exception):
    """``{{ continue }}``."""


class _Cut(Exception):
    """Rendering reached the field named by `until`."""


def _pieces(text: str) -> list[tuple[str, str]]:
    """("text", …) and ("action", …) in turn, trim markers applied."""
    pieces: list[tuple[str, str]] = []
    at, trim_next, checker = 0, False, Checker()
    while (start := text.find("{{", at)) >= 0:
        literal = text[at:start]
        end = text.find("}}", start)
        line = text.count("\n", 0, start) + 1
        if end < 0:
            raise fail(line, "unclosed action")
        action = text[start + 2 : end]
        literal = literal.lstrip() if trim_next else literal
        if re.match(r"-\s", action):
            literal, action = literal.rstrip(), action[2:]
        if re.match(r"\s+/\*", action):  # a comment has to begin at once
            raise fail(line, 'unexpected "/" in command')
        trim_next = re.search(r"\s-$", action) is not None
        pieces.append(("text", literal))
        action = (action[:-1] if trim_next else action).strip()
        checker.action(action, line)
        pieces.append(("action", action))
        at = end + 2
    checker.end(text.count("\n") + 1)
    pieces.append(("text", text[at:].lstrip() if trim_next else text[at:]))
    return [piece for piece in pieces if piece[0] == "action" or piece[1]]


def _block(pieces: list[tuple[str, str]]) -> tuple[list[_Node], str]:
    nodes: list[_Node] = []
    while pieces:
        kind, content = pieces.pop(0)
        if kind == "text":
            nodes.append(_Node("text", content))
            continue
        word = content.split(None, 1)[0] if content else ""
        if word in ("end", "else"):
            return nodes, content
        if word in ("if", "range", "with"):
            nodes.append(_control(word, content[len(word) :].strip(), pieces))
        elif not word.startswith("/*"):
            nodes.append(_Node("action", content, _tokens(content)))
    return nodes, ""


def _control(word: str, pipe: str, pieces: list[tuple[str, str]]) -> _Node:
    node = _Node(word, pipe, _tokens(pipe))
    node.body, end = _block(pieces)
    if end.startswith("else"):
        rest = end[4:].strip()
        if rest:
            inner, _, inner_pipe = rest.partition(" ")
            node.other = [_control(inner, inner_pipe.strip(), pieces)]
        else:
            node.other, _ = _block(pieces)
    return node


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:  # not reached: the syntax is checked
            raise fail(1, f'unexpected "{text[at:].strip()[:1]}" in command')
        tokens.append(match[0].strip())
        at = match.end()
    return tokens


def _run(nodes: list[_Node], dot: Any, scope: dict[str, Any], out: list[str], until: str) -> None:
    for node in nodes:
        if until and any(re.search(rf"\.{until}$", token) for token in node.pipe) and node.kind == "action":
            raise _Cut
        if node.kind == "text":
            out.append(node.text)
        elif node.pipe in (["break"], ["continue"]):
            raise _Break if node.pipe == ["break"] else _Continue
        elif node.kind == "action":
            is_set, value = _assign(node.pipe, dot, scope)
            if not is_set:
                out.append(printed(value))
        elif node.kind == "range":
            _range(node, dot, scope, out, until)
        else:
            inner = dict(scope) if ":=" in node.pipe else scope
            _, value = _assign(node.pipe, dot, inner)
            branch = node.body if is_true(value) else node.other
            _run(branch, value if node.kind == "with" and is_true(value) else dot, inner, out, until)


def _range(node: _Node, dot: Any, scope: dict[str, Any], out: list[str], until: str) -> None:
    names: list[str] = []
    pipe = node.pipe
    if ":=" in pipe:
        names = [token for token in pipe[: pipe.index(":=")] if token != ","]
        pipe = pipe[pipe.index(":=") + 1 :]
    value = _evaluate(pipe, dot, scope)
    items = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value or ()))
    for key, item in items:
        values = (item,) if len(names) == 1 else (key, item)
        inner = _Scope(scope, dict(zip(names, values, strict=False)))
        try:
            _run(node.body, item, inner, out, until)
        except _Continue:
            continue
        except _Break:
            break
    if not items:
        _run(node.other, dot, scope, out, until)


class _Scope(dict[str, Any]):
    """Variables of a block: `=` reaches the block that declared the name."""

    def __init__(self, outer: dict[str, Any], own: dict[str, Any]) -> None:
        super().__init__(own)
        self.outer = outer

    def __missing__(self, name: str) -> Any:
        return self.outer[name]


def _assign(pipe: list[str], dot: Any, scope: dict[str, Any]) -> tuple[bool, Any]:
    if len(pipe) > 2 and pipe[1] in (":=", "="):
        value = _evaluate(pipe[2:], dot, scope)
        target = scope
        while pipe[1] == "=" and pipe[0] not in target and isinstance(target, _Scope):
            target = target.outer
        target[pipe[0]] = value
        return True, value
    return False, _evaluate(pipe, dot, scope)


def _evaluate(tokens: list[str], dot: Any, scope: dict[str, Any]) -> Any:
    """Parse a pipeline: commands joined by `|`, the value of each the last argument of the next."""
    commands: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            commands.append([])
        else:
            commands[-1].append(token)
    piped: list[Any] = []
    for command in filter(None, commands):
        arguments = _arguments(command, dot, scope)
        head, rest = arguments[0], [*arguments[1:], *piped]
        value = head(*rest) if callable(head) else head
        piped = [value]
    return piped[0]


def _arguments(command: list[str], dot: Any, scope: dict[str, Any]) -> list[Any]:
    values: list[Any] = []
    at = 0
    while at < len(command):
        token = command[at]
        if token == "(":
            depth, end = 1, at + 1
            while depth:
                depth += (command[end] == "(") - (command[end] == ")")
                end += 1
            values.append(_evaluate(command[at + 1 : end - 1], dot, scope))
            at = end
            continue
        values.append(_operand(token, dot, scope))
        at += 1
    return values


def _operand(token: str, dot: Any, scope: dict[str, Any]) -> Any:
    if token[0] in '"`':
        return token[1:-1].encode().decode("unicode_escape") if token[0] == '"' else token[1:-1]
    if token == ".":
        return dot
    if token[0] in "$.":
        name, *path = token.split(".")
        value = scope[name] if name else dot
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else ""
        return value
    if token in FUNCTIONS:
        return FUNCTIONS[token]
    if token in ("true", "false", "nil"):
        return {"true": True, "false": False, "nil": None}[token]
    try:
        return float(token) if "." in token else int(token, 0)
    except ValueError:
        raise TemplateError(f'template: :1: function "{token}" not defined') from None
