"""How an answer ended: its last value, and the token counts in it. Pure.

The counts come from the upstream, so anything may be in their place. What is not a number of tokens is no count, and
does not make an answer that is complete an incomplete one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any

import msgspec

from router.core.go.json_keys import NOT_QUICK

UNREADABLE = NOT_QUICK
"""What reading JSON of an upstream may raise."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""Of one answer; a server may say anything, and sums of more would outgrow the files that they are kept in."""


class StreamEnd(msgspec.Struct, frozen=True, gc=False):
    """How a stream ended: `is_terminated` if by a proper last line or event, or an error; and its token counts."""

    is_terminated: bool
    tokens_in: int | None = None
    tokens_out: int | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts on `/v1/*`, by OpenAI's names and Anthropic's."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class Last(msgspec.Struct, gc=False):
    """The fields of an answer's last value that are read."""

    done: bool = False
    status: str = ""
    error: Any = None
    type: str = ""
    prompt_eval_count: Tokens | None = None
    eval_count: Tokens | None = None
    usage: Usage | None = None


_read_last = msgspec.json.Decoder(Last).decode
_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_tokens = msgspec.json.Decoder(Tokens | None).decode
_read_text = msgspec.json.Decoder(str).decode
_read_any = msgspec.json.Decoder().decode
_read_bool = msgspec.json.Decoder(bool).decode

# Readers of one field each, for a value whose fields do not all have their types.
_USAGE_FIELDS = dict.fromkeys(Usage.__struct_fields__, _read_tokens)
_LAST_FIELDS = {
    "done": _read_bool,
    "status": _read_text,
    "error": _read_any,
    "type": _read_text,
    "prompt_eval_count": _read_tokens,
    "eval_count": _read_tokens,
    "usage": lambda value: Usage(**_fields(value, _USAGE_FIELDS)),
}


def last_of(value: bytes) -> Last:
    """Return what an answer's last value says; a field of another type says nothing."""
    try:
        return _read_last(value)
    except UNREADABLE:
        return Last(**_fields(value, _LAST_FIELDS))


def body_ending(body: bytes) -> StreamEnd:
    """Return the token counts of an unstreamed answer."""
    last = last_of(body)
    if last.usage is not None:
        return StreamEnd(True, *counts_of(last.usage))
    return StreamEnd(True, last.prompt_eval_count, last.eval_count)


def counts_of(usage: Usage | None) -> tuple[int | None, int | None]:
    """Return the tokens read and written."""
    if usage is None:
        return None, None
    tokens_in = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    return tokens_in, usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens


def _fields(value: bytes, readers: Mapping[str, Callable[[bytes], Any]]) -> dict[str, Any]:
    """Return the members of an object that can be read."""
    found: dict[str, Any] = {}
    with suppress(*UNREADABLE):
        for key, member in _read_object(value).items():
            if key in readers:
                with suppress(*UNREADABLE):
                    found[key] = readers[key](member)
    return found
