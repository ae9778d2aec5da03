"""Go templates, tokens, stop sequences, and the parsers of answers."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_simulator.api.inference import _Stream
from ollama_simulator.api.parsers import ThinkingParser, thinking_tags, tool_tag
from ollama_simulator.api.prompt import chat_prompt, collate
from ollama_simulator.api.tool_calls import ToolParser
from ollama_simulator.models import tokens
from ollama_simulator.models.library import tiny_library
from ollama_simulator.models.template import Template
from ollama_simulator.models.template_syntax import TemplateError

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("a{{ .X }}b", {"X": 1}, "a1b"),
    ("a {{- .X -}} b", {"X": "x"}, "axb"),
    ("{{ if .A }}1{{ else if .B }}2{{ else }}3{{ end }}", {"A": "", "B": True}, "2"),
    ("{{ range .L }}[{{ . }}]{{ else }}none{{ end }}", {"L": [1, 2]}, "[1][2]"),
    ("{{ range $i, $m := .L }}{{ $i }}{{ $m }}{{ end }}", {"L": ["a", "b"]}, "0a1b"),
    ('{{ $last := "" }}{{ range .L }}{{ $last = . }}{{ end }}{{ $last }}', {"L": ["a", "b"]}, "b"),
    ("{{ if and .A (not .B) }}yes{{ end }}", {"A": 1, "B": 0}, "yes"),
    ('{{ if eq .R "tool" "user" }}yes{{ end }}', {"R": "user"}, "yes"),
    ("{{ with .A }}{{ .B }}{{ end }}", {"A": {"B": "x"}}, "x"),
    ("{{ len .L }} {{ index .L 1 }} {{ slice .L 1 }}", {"L": ["a", "b"]}, "2 b [b]"),
    ("{{ json .A }}{{/* nothing */}}", {"A": {"x": [1]}}, '{"x":[1]}'),
    ("{{ range .L }}{{ $.X }}{{ .Y }}{{ end }}", {"L": [{"Y": 1}], "X": "x"}, "x1"),
]


@pytest.mark.parametrize(("text", "values", "shown"), CASES)
def test_a_template_renders_as_go_does(text: str, values: dict[str, Any], shown: str) -> None:
    """Actions that chat templates use."""
    assert Template.parse(text).render(values) == shown


def test_an_open_action_fails_with_go_s_words() -> None:
    """The text is that of `/api/generate` with a broken `template`."""
    with pytest.raises(TemplateError, match="template: :1: unclosed action"):
        Template.parse("{{ .Broken")


def test_adjacent_messages_of_one_role_are_merged() -> None:
    """Tool results stay separate."""
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert [message["content"] for message in collate([*messages, *results])[1]] == ["a\n\nb", "1", "2"]


def test_the_oldest_messages_are_dropped_first_and_system_messages_stay() -> None:
    """A history longer than the context keeps its system text and its end."""
    model = tiny_library().find("tiny-plain")
    assert model is not None
    history = [{"role": "system", "content": "S"}, {"role": "user", "content": "x" * 200}]
    history += [{"role": "assistant", "content": "y"}, {"role": "user", "content": "hi"}]
    prompt = chat_prompt(model, history, (), None, 64, True)
    assert "x" not in prompt
    assert prompt.endswith("<|system|>S<|end|><|assistant|>y<|end|><|user|>hi<|end|><|assistant|>")


def test_the_scripted_vocabulary_counts_as_llama_cpp_does() -> None:
    """Special pieces, merges and bytes: the ids are those that a real server returned as `context`."""
    model = tiny_library().find("tiny-plain")
    assert model is not None
    ids = tokens.encode(model.weights, "<|user|>Why?<|end|><|assistant|>Hello! I am é")
    assert ids == [355, 314, 331, 348, 290, 357, 356, 299, 328, 335, 335, 338, 260, 259, 300, 365, 259, 198, 172]
    assert tokens.decode(model.weights, ids[1:5]) == "Why?"


def test_a_stop_sequence_is_cut_and_its_start_is_held_back() -> None:
    """No part of it is sent."""
    stream = _Stream(["stop now"])
    assert [stream.add(text) for text in ("a st", "op n", "o", "x")] == ["a ", "", "", "stop nox"]
    assert not stream.is_stopped
    assert [stream.add(text) for text in ("b stop", " now c")] == ["b ", ""]
    assert stream.is_stopped


def test_thoughts_are_split_from_the_answer() -> None:
    """Tags may arrive in pieces; blanks around them are removed."""
    template = "{{ range .Messages }}{{ if .Thinking }}\n<think>\n{{ .Thinking }}\n</think>\n{{ end }}{{ end }}"
    parser = ThinkingParser(*thinking_tags(template))
    parts = [parser.add(text) for text in ("<thi", "nk>", " hm", "m</th", "ink>", "\n\nyes")]
    assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == ("hmm", "yes")


def test_calls_of_known_tools_are_found() -> None:
    """Text before the tag is content."""
    template = "{{ range .ToolCalls }}<tool_call>\n{{ .Function.Name }}</tool_call>{{ end }}"
    parser = ToolParser(tool_tag(template), [{"function": {"name": "f"}}])
    found = [parser.add(text) for text in ("hi <tool", '_call>{"name":"f",', '"arguments":{"a":1}}', "</tool_call>")]
    assert "".join(content for _, content in found) == "hi "
    assert [call for calls, _ in found for call in calls] == [{"index": 0, "name": "f", "arguments": {"a": 1}}]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{{ if }}x", ":1: missing value for if"),
        ("a\n{{}}", ":2: missing value for command"),
        ("{{ end }}", ":1: unexpected {{end}}"),
        ("{{ if .A }}{{ else }}{{ else }}{{ end }}", ":1: expected end; found {{else}}"),
        ("{{ range .L }}", ":1: unexpected EOF"),
        ("\n\n{{ .A | nofunc }}", ':3: function "nofunc" not defined'),
        ("{{ if .A }}{{ $x := 1 }}{{ end }}{{ $x }}", ':1: undefined variable "$x"'),
        ("{{ ( .A }}", ":1: unclosed left paren"),
        ('{{ "abc }}', ":1: unterminated quoted string"),
        ("{{ break }}", ":1: {{break}} outside {{range}}"),
        ("{{ /* late */ }}", ':1: unexpected "/" in command'),
    ],
)
def test_a_template_is_refused_in_go_s_words_when_it_is_parsed(text: str, error: str) -> None:
    """With the number of the line, ahead of any rendering."""
    with pytest.raises(TemplateError) as caught:
        Template.parse(text)
    assert str(caught.value) == f"template: {error}"
