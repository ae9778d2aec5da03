"""How far the estimated size of a prompt is from the text that the model reads, by dialect.

The estimate counts JSON text as written: quotes and line ends of code are escaped there, so it is too large by up to a
quarter, and never too small. Tokens follow at 3 bytes each.
"""

import json
from pathlib import Path

import pytest

from router.core.payload.read import read_request

CODE = Path(__file__).read_text()
PROSE = "The quick brown fox jumps over the lazy dog, and nobody minds at all. " * 40
ARGUMENTS = {"path": "a/b.py", "content": CODE[:1500]}
RESULT = CODE[:1200]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string", "description": PROSE[:200]}}}
FUNCTION = {"name": "write_file", "description": PROSE[:300], "parameters": SCHEMA}
CALL = {"name": "write_file", "arguments": ARGUMENTS}
OPENAI_CALL = {"id": "c", "type": "function", "function": CALL | {"arguments": json.dumps(ARGUMENTS)}}
ANTHROPIC_TURN = [
    {"type": "thinking", "thinking": PROSE[:400]},
    {"type": "tool_use", "id": "c", "name": "write_file", "input": ARGUMENTS},
]
TEXTS = {
    "plain": (PROSE, CODE),
    "tools": (PROSE, CODE, PROSE[:400], json.dumps(ARGUMENTS), RESULT, json.dumps(FUNCTION)),
}


def chat(assistant, result):
    """Return a conversation: a question, a tool call, its result."""
    return [{"role": "system", "content": PROSE}, {"role": "user", "content": CODE}, assistant, result]


PLAIN = [{"role": "system", "content": PROSE}, {"role": "user", "content": CODE}]
TOOLS = [{"type": "function", "function": FUNCTION}]
ANTHROPIC_TOOLS = [{"name": "write_file", "description": PROSE[:300], "input_schema": SCHEMA}]
BODIES = {
    ("generate", "plain"): {"prompt": CODE, "system": PROSE},
    ("chat", "plain"): {"messages": PLAIN},
    ("chat", "tools"): {
        "messages": chat(
            {"role": "assistant", "content": "", "thinking": PROSE[:400], "tool_calls": [{"function": CALL}]},
            {"role": "tool", "content": RESULT},
        ),
        "tools": TOOLS,
    },
    ("v1_chat", "plain"): {"messages": PLAIN},
    ("v1_chat", "tools"): {
        "messages": chat(
            {"role": "assistant", "content": None, "reasoning": PROSE[:400], "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "tool_call_id": "c", "content": RESULT},
        ),
        "tools": TOOLS,
    },
    ("v1_messages", "plain"): {"system": PROSE, "messages": [{"role": "user", "content": CODE}]},
    ("v1_messages", "tools"): {
        "system": [{"type": "text", "text": PROSE}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": CODE}]},
            {"role": "assistant", "content": ANTHROPIC_TURN},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": RESULT}]},
        ],
        "tools": ANTHROPIC_TOOLS,
    },
    ("v1_responses", "plain"): {"instructions": PROSE, "input": CODE},
    ("v1_completions", "plain"): {"prompt": PROSE + CODE},
}


@pytest.mark.parametrize(("dialect", "what"), BODIES)
def test_a_prompt_is_never_sized_smaller_than_its_text(dialect, what):
    """The error is 0 to 25 %: escapes, and the names of a few members."""
    request = read_request(dialect, json.dumps({"model": "m", "max_tokens": 9, **BODIES[dialect, what]}).encode())
    text = sum(len(part.encode()) for part in TEXTS[what])
    assert text <= request.prompt_bytes <= 1.25 * text


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("chat", {"messages": [{"role": "user", "content": "hi", "images": ["aGk="]}]}),
        ("generate", {"prompt": "hi", "images": ["aGk="]}),
        (
            "v1_chat",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "hi"},
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                        ],
                    }
                ]
            },
        ),
    ],
)
def test_the_bytes_of_images_are_no_text(dialect, body):
    """They count by a fixed number of tokens (`context.needed_tokens`)."""
    request = read_request(dialect, json.dumps({"model": "m", **body}).encode())
    assert "vision" in request.needs
    assert request.prompt_bytes < 10
