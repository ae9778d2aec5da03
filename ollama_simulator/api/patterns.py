"""What llama.cpp says about the pattern of a schema, whose regular expression becomes a grammar."""

from __future__ import annotations

_QUANTIFIERS = "*+?"
_SPECIAL = "|.()[]{}*+?"
_LITERAL_ESCAPES = 'xuUtrn\\"[]'
UNANCHORED = "Pattern must start with '^' and end with '$'"


class Pattern:
    """The conversion of one pattern, of which only the errors are kept.

    `errors` are those of the conversion, `is_refused` tells that the parser of grammars refuses its result, and
    `is_fatal` that the runner dies of it.
    """

    def __init__(self, text: str) -> None:
        self.errors: list[str] = []
        self.is_refused = self.is_fatal = False
        if not (text.startswith("^") and text.endswith("$")):
            self.errors.append(UNANCHORED)
            return
        self._text, self._at = text[1:-1], 0
        self._group()

    def _group(self) -> None:
        """Read up to the end of a group; at the outermost level, a closing parenthesis ends the pattern."""
        text, last = self._text, ""
        while self._at < len(text):
            letter = text[self._at]
            if letter == ")":
                self._at += 1
                return
            if letter in _QUANTIFIERS:
                self._quantify(last)
                self._at += 1
                last = "quantifier"
            elif letter == "{":
                if not self._count():
                    return
                last = "count"
            else:
                last = self._piece(letter) or last

    def _quantify(self, last: str) -> None:
        self.is_fatal |= not last
        self.is_refused |= last in ("quantifier", "bar")

    def _piece(self, letter: str) -> str:
        """Read something that a quantifier may follow, and return its kind; "" if it is left out of the grammar."""
        if letter == "(":
            return self._parenthesis()
        if letter == "[":
            return self._brackets()
        if letter in "|.":
            self._at += 1
            return "bar" if letter == "|" else "piece"
        self._literal()
        return "piece"

    def _parenthesis(self) -> str:
        self._at += 1
        if self._text.startswith("?", self._at) and not self._text.startswith("?:", self._at):
            self._skip()
            return ""
        self._at += 2 * self._text.startswith("?:", self._at)
        self._group()
        return "piece"

    def _skip(self) -> None:
        """Leave out a group that is not supported, such as a look-ahead."""
        depth = 1
        while self._at < len(self._text) and depth:
            letter = self._text[self._at]
            depth += (letter == "(") - (letter == ")")
            self._at += 2 if letter == "\\" else 1

    def _brackets(self) -> str:
        text = self._text
        self._at += 1
        while self._at < len(text) and text[self._at] != "]":
            if text[self._at] == "\\":
                self.is_refused |= text[self._at + 1 : self._at + 2] not in tuple(_LITERAL_ESCAPES)
                self._at += 1
            self._at += 1
        if self._at >= len(text):
            self.errors.append("Unbalanced square brackets")
        self._at += 1
        return "piece"

    def _count(self) -> bool:
        """Read `{…}`. False: its numbers are invalid, with which the conversion ends."""
        end = self._text.find("}", self._at)
        if end < 0:
            self.errors.append("Unbalanced curly brackets")
        inner = self._text[self._at + 1 : end if end >= 0 else len(self._text)]
        self._at = end + 1 if end >= 0 else len(self._text)
        numbers = inner.split(",")
        if len(numbers) > 2:
            self.errors.append("Wrong number of values in curly brackets")
        elif any(not number.strip()[:1].isdigit() for number in numbers if number or len(numbers) == 1):
            self.errors.append("Invalid number in curly brackets")
            return False
        return True

    def _literal(self) -> None:
        text, begun = self._text, self._at
        while self._at < len(text):
            letter, after = text[self._at], text[self._at + 1 : self._at + 2]
            if letter == "\\" and after:
                self.is_refused |= after not in _SPECIAL and after not in _LITERAL_ESCAPES
                self._at += 2
            elif letter == "\\":
                self.is_refused, self._at = True, self._at + 1
            elif letter not in _SPECIAL and (not after or self._at == begun or after == "." or after not in _SPECIAL):
                self._at += 1
            else:
                return
