"""The text that models generate: scripted ones by their transition table, all others random words.

A speaker yields token texts one by one, without regard to time; `inference.py` paces them.
"""

from __future__ import annotations

import codecs
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_simulator.gojson import dump, json_text
from ollama_simulator.models import tokens
from ollama_simulator.models.specimen import specimen
from ollama_simulator.models.weights import Weights

WORDS = [
    "the",
    "model",
    "answers",
    "from",
    "a",
    "virtual",
    "card",
    "so",
    "that",
    "every",
    "token",
    "takes",
    "the",
    "time",
    "that",
    "its",
    "speed",
    "says",
    "and",
    "nothing",
    "more",
    "is",
    "meant",
    "by",
    "it",
]


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything that an answer depends on. `length`: tokens, unless `[[tokens=N]]` or num_predict sets them."""

    prompt: str
    prompt_ids: Sequence[int]
    seed: int = 0
    thinks: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    format: Any = None
    is_tool_result: bool = False
    length: int = 16


@dataclass(frozen=True, slots=True)
class Controls:
    """Commands to the simulator in a prompt: `[[tokens=N]]`, `[[crash]]`, `[[oom]]`."""

    length: int | None = None
    crashes: bool = False
    runs_out_of_memory: bool = False


def controls(prompt: str) -> Controls:
    """Return the commands in a prompt; of several lengths the last one counts."""
    lengths = re.findall(r"\[\[tokens=(\d+)\]\]", prompt)
    return Controls(int(lengths[-1]) if lengths else None, "[[crash]]" in prompt, "[[oom]]" in prompt)


def speak(weights: Weights, ask: Ask) -> Iterator[str]:
    """Yield the answer's token texts, without the end token."""
    known = tokens.vocabulary(weights)
    if weights.script and known is not None:
        return _scripted(weights, known, ask) if ask.format is None else _spelt(known, ask.format)
    return _words(ask)


def _spelt(known: tokens.Vocabulary, schema: Any) -> Iterator[str]:
    """Yield a value of the schema in tokens of the vocabulary, since a grammar leaves a scripted model no other way."""
    left = codecs.getincrementaldecoder("utf-8")("replace")
    for number in known.encode(json_text(specimen(schema))):
        yield left.decode(known.raw(number))


def _scripted(weights: Weights, known: tokens.Vocabulary, ask: Ask) -> Iterator[str]:
    """Yield each token's one successor in `weights.script` (lines of pieces, of which the first starts the line)."""
    following: dict[str, str] = {}
    for line in weights.script.split("\n\n\n"):
        pieces = line.split("\t")
        following.update(itertools.pairwise(pieces))
    piece = known.pieces[ask.prompt_ids[-1]] if ask.prompt_ids else ""
    piece = following.get(piece, following.get("*", ""))
    while piece:
        yield piece.replace("▁", " ")
        piece = following.get(piece, "")


def _words(ask: Ask) -> Iterator[str]:
    if ask.thinks:
        yield from ("<think>", "Let", " me", " see", ".", "</think>", "\n\n")
    if ask.tools and not ask.is_tool_result:
        yield from _pieces(_tool_call(ask.tools[0]))
        return
    if ask.format is not None:
        yield from _pieces(json_text(specimen(ask.format)))
        return
    wanted = controls(ask.prompt).length
    start = random.Random(f"{ask.seed} {ask.prompt}").randrange(len(WORDS))
    for number in range(ask.length if wanted is None else wanted):
        word = WORDS[(start + number) % len(WORDS)]
        yield word.capitalize() if number == 0 else f" {word}"


def _tool_call(tool: Mapping[str, Any]) -> str:
    function = tool.get("function") or {}
    call = {"name": function.get("name", ""), "arguments": specimen(function.get("parameters") or {})}
    return f"<tool_call>\n{dump(call).decode()}\n</tool_call>"


def _pieces(text: str) -> list[str]:
    return re.findall(r"</?\w+>|\w+|[^\w]+?", text)
