"""Tokens: by a model's sentence-piece vocabulary if it has one, else estimated at four bytes per token.

The scripted models have a real vocabulary of 408 pieces; their counts are those of llama.cpp.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

from ollama_simulator.gojson import dump

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6


class UnknownToken(Exception):
    """A token id that the vocabulary does not have; its text is Ollama's."""

    def __init__(self, number: int, size: int) -> None:
        asked = number % (1 << 64)
        text = f"vector::_M_range_check: __n (which is {asked}) >= this->size() (which is {size})"
        error = {"error": {"code": 500, "message": text, "type": "server_error"}}
        super().__init__(f"detokenize error: {dump(error).decode()}".replace("\\u003e", ">"))


class Vocabulary:
    """A `llama` (sentence-piece) vocabulary of a GGUF file: pieces, scores, kinds."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.pieces: list[str] = info["tokenizer.ggml.tokens"]
        scores: list[float] = info["tokenizer.ggml.scores"]
        kinds: list[int] = info["tokenizer.ggml.token_type"]
        self.kinds = kinds
        self.eos: int = info.get("tokenizer.ggml.eos_token_id", 2)
        self._ids = {piece: number for number, piece in enumerate(self.pieces) if kinds[number] != BYTE}
        self._scores = dict(enumerate(scores))
        special = sorted(
            (piece for piece, number in self._ids.items() if kinds[number] in (UNKNOWN, CONTROL, USER_DEFINED)),
            key=len,
            reverse=True,
        )
        plain = [re.escape(piece.replace("▁", " ")) for piece in special]
        self._special = re.compile("|".join(plain)) if plain else None
        self._special_ids = {piece.replace("▁", " "): self._ids[piece] for piece in special}
        self._bytes = {int(piece[3:5], 16): number for number, piece in enumerate(self.pieces) if kinds[number] == BYTE}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text: special pieces recognised, no BOS."""
        ids: list[int] = []
        at = 0
        for match in self._special.finditer(text) if self._special else ():
            ids += self._plain(text[at : match.start()])
            ids.append(self._special_ids[match[0]])
            at = match.end()
        return ids + self._plain(text[at:])

    def text(self, number: int) -> str:
        """Return the text of a token; "" for control tokens."""
        if self.kinds[number] == BYTE:
            return bytes([int(self.pieces[number][3:5], 16)]).decode("utf-8", "ignore")
        return "" if self.kinds[number] in (UNKNOWN, CONTROL) else self.pieces[number].replace("▁", " ")

    def decode(self, numbers: list[int]) -> str:
        """Return the text of some tokens, including special ones."""
        return b"".join(map(self.raw, numbers)).decode("utf-8", "replace")

    def raw(self, number: int) -> bytes:
        """Return the bytes of a token; those of a special one are its name."""
        piece = self.pieces[number]
        return bytes([int(piece[3:5], 16)]) if self.kinds[number] == BYTE else piece.replace("▁", " ").encode()

    def _plain(self, text: str) -> list[int]:
        """Merge bigrams greedily by score, the left one first if they are equal, as llama.cpp's SPM tokenizer does."""
        symbols: list[str] = list(text.replace(" ", "▁"))  # "" once it is part of the symbol to its left
        following = [*range(1, len(symbols)), -1] if symbols else []
        preceding = list(range(-1, len(symbols) - 1))
        heap: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            merged = symbols[left] + symbols[right]
            if left >= 0 <= right and (number := self._ids.get(merged)) is not None:
                heappush(heap, (-self._scores[number], left, right, merged))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, merged = heappop(heap)
            if following[left] != right or symbols[left] + symbols[right] != merged:
                continue  # one of the two has been merged otherwise meanwhile
            symbols[left], symbols[right] = merged, ""
            after = following[left] = following[right]
            following[right] = -1
            if after >= 0:
                preceding[after] = left
                offer(left, after)
            offer(preceding[left], left)
        return [number for symbol in symbols if symbol for number in self._numbers(symbol)]

    def _numbers(self, symbol: str) -> list[int]:
        number = self._ids.get(symbol)
        return [number] if number is not None else [self._bytes[byte] for byte in symbol.encode()]


@lru_cache(maxsize=64)
def _vocabulary(_key: int, holder: Any) -> Vocabulary | None:
    info = holder.info
    if info.get("tokenizer.ggml.model") == "llama" and info.get("tokenizer.ggml.tokens"):
        return Vocabulary(info)
    return None


def vocabulary(weights: Any) -> Vocabulary | None:
    """Return the vocabulary of some weights, or None if unknown."""
    return _vocabulary(id(weights), weights)


def encode(weights: Any, text: str) -> list[int]:
    """Token ids of `text`; made up if the vocabulary is unknown, about one per four bytes."""
    known = vocabulary(weights)
    if known is not None:
        return known.encode(text)
    pieces = re.findall(r"<\|?[a-z_]+\|?>|\s?\w{1,6}|[^\w\s]|\s", text)
    return [1000 + sum(piece.encode()) % 100_000 for piece in pieces]


def decode(weights: Any, numbers: list[int]) -> str:
    """Return the text of some token ids; random words if the vocabulary is unknown."""
    known = vocabulary(weights)
    if known is not None:
        unknown = next((number for number in numbers if not 0 <= number < len(known.pieces)), None)
        if unknown is not None:
            raise UnknownToken(unknown, len(known.pieces))
        return known.decode(numbers)
    return " ".join(f"t{number}" for number in numbers)


_FEW_PIECES = 1000


def count_words(weights: Any, text: str) -> int:
    """Count the tokens of a text to embed, without special ones.

    A word-piece vocabulary too small for words takes each for one unknown token; of others six letters are counted per
    token, since their pieces are not known.
    """
    known = vocabulary(weights)
    if known is not None:
        return len(known.encode(text))
    lengths = _word_lengths(text)
    rows = next((tensor.shape[-1] for tensor in weights.tensors if tensor.name == "token_embd.weight"), 0)
    if 0 < rows < _FEW_PIECES:
        return len(lengths)
    return sum(-(-length // 6) for length in lengths)


def _word_lengths(text: str) -> list[int]:
    """Letters of each word as llama.cpp's word-piece tokenizer splits them: punctuation and CJK characters stand alone,
    control characters are dropped."""
    lengths = [0]
    for letter in text:
        kind = unicodedata.category(letter)
        if letter.isspace():
            lengths.append(0)
        elif kind.startswith("P") or (kind.startswith("S") and letter < "\x7f") or _is_cjk(letter):
            lengths += [1, 0]
        elif kind != "Cc" and letter != "\ufffd":
            lengths[-1] += 1
    return [length for length in lengths if length]


def _is_cjk(letter: str) -> bool:
    return "\u3400" <= letter <= "\u4dbf" or "\u4e00" <= letter <= "\u9fff" or "\uf900" <= letter <= "\ufaff"
