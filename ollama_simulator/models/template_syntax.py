"""What Go's text/template finds wrong with a template while it parses it, in Go's words."""

from __future__ import annotations

import re

_LEXEME = re.compile(
    r'(?P<space>\s+)|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<char>\'(?:[^\'\\\n]|\\.)*\')'
    r"|(?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?|\.\d+))|(?P<field>\.\w+)|(?P<variable>\$\w*)|(?P<word>\w+)"
    r"|(?P<sign>:=|[=|(),.])"
)
_KEYWORDS = ("true", "false", "nil")
_OPENERS = ("if", "range", "with", "block", "define")
_BUILTIN = (
    *("and", "call", "currentDate", "eq", "ge", "gt", "html", "index", "js", "json", "le", "len", "lt", "ne", "not"),
    *("or", "print", "printf", "println", "slice", "urlquery", "yesterdayDate"),
)


class TemplateError(Exception):
    """The template cannot be parsed or run; the text is Go's where known."""


def fail(line: int, text: str) -> TemplateError:
    """Return the error at a line."""
    return TemplateError(f"template: :{line}: {text}")


class Checker:
    """Follows the actions of a template in order: blocks, variables, and the words of each action."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._scopes: list[set[str]] = [{"$"}]

    def action(self, text: str, line: int) -> None:
        """Take the next action. Raises TemplateError."""
        if text.startswith("/*"):
            return
        tokens = lexemes(text, line)
        word = tokens[0] if tokens else ""
        if word in ("end", "else"):
            self._close(word, tokens[1:], line)
        elif word in _OPENERS:
            self._open(word, tokens[1:], line)
        elif word in ("break", "continue"):
            if "range" not in self._blocks:
                raise fail(line, f"{{{{{word}}}}} outside {{{{range}}}}")
        elif word != "template":
            self._pipe(tokens, line, "command")

    def end(self, line: int) -> None:
        """Take the end of the template. Raises TemplateError."""
        if self._blocks:
            raise fail(line, "unexpected EOF")

    def _open(self, word: str, tokens: list[str], line: int) -> None:
        self._blocks.append(word)
        self._scopes.append(set())
        if word not in ("block", "define"):
            self._pipe(tokens, line, word)

    def _close(self, word: str, rest: list[str], line: int) -> None:
        if not self._blocks:
            raise fail(line, f"unexpected {{{{{word}}}}}")
        if word == "end":
            self._blocks.pop()
            self._scopes.pop()
            return
        if self._blocks[-1] == "else":
            raise fail(line, "expected end; found {{else}}")
        self._scopes[-1] = set()
        self._blocks[-1] = rest[0] if rest else "else"
        if rest:
            self._pipe(rest[1:], line, rest[0])

    def _pipe(self, tokens: list[str], line: int, context: str) -> None:
        declared, tokens = _declared(tokens)
        if not tokens:
            raise fail(line, f"missing value for {context}")
        _check_words(tokens, line)
        for token in tokens:
            if token.startswith("$") and not any(token.split(".")[0] in scope for scope in self._scopes):
                raise fail(line, f'undefined variable "{token.split(".")[0]}"')
        self._scopes[-1].update(declared)


def _declared(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Return the variables that a pipeline declares, and the pipeline without them."""
    if ":=" in tokens[1:4:2] and tokens[0].startswith("$"):
        at = tokens.index(":=")
        return [token for token in tokens[:at] if token != ","], tokens[at + 1 :]
    if tokens[1:2] == ["="] and tokens[0].startswith("$"):
        return [], tokens[2:]
    return [], tokens


def _check_words(tokens: list[str], line: int) -> None:
    depth = 0
    for at, token in enumerate(tokens):
        before = tokens[at - 1] if at else ""
        depth += (token == "(") - (token == ")")
        if depth < 0:
            raise fail(line, "unexpected right paren")
        if token in (":=", "=") or (token == "|" and before in ("", "|", "(")):
            raise fail(line, f'unexpected "{token}" in {"operand" if at and token != "|" else "command"}')
        if re.match(r"[A-Za-z_]", token) and token not in _BUILTIN and token not in _KEYWORDS:
            raise fail(line, f'function "{token}" not defined')
    if depth:
        raise fail(line, "unclosed left paren")


def lexemes(text: str, line: int) -> list[str]:
    """Return the words of an action; fields and the dots behind variables are joined. Raises TemplateError."""
    found: list[str] = []
    at, is_apart = 0, True
    while at < len(text):
        match = _LEXEME.match(text, at)
        if match is None:
            raise fail(line, _unread(text[at:], bool(found)))
        if match.lastgroup == "char" and len(re.sub(r"\\.", "c", match[0])) != 3:
            raise fail(line, f"malformed character constant: {match[0]}")
        if match.lastgroup == "field" and not is_apart:
            found[-1] += match[0]
        elif match.lastgroup != "space":
            found.append(match[0])
        is_apart = match.lastgroup not in ("field", "variable")
        at = match.end()
    return found


def _unread(rest: str, is_operand: bool) -> str:
    if rest[0] in "\"`'":
        kind = {'"': "quoted string", "`": "raw quoted string", "'": "character constant"}[rest[0]]
        return f"unterminated {kind}"
    return f'unexpected "{rest[0]}" in {"operand" if is_operand else "command"}'
