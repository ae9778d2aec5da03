"""Messages and prompts: their number, the bytes of their text, and whether there is an image among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from router.core.go.json_keys import (
    NOT_QUICK,
    elements,
    fold,
    kind_of,
    parts,
    quick_elements,
    read_word,
    split,
    texts_bytes,
)
from router.core.go.types import (
    Anything,
    Custom,
    GoType,
    Image,
    Mismatch,
    Place,
    Scalar,
    Slice,
    Struct,
    one,
    read_alone,
)
from router.errors import BadRequest

_STR, _BOOL, _INT = Scalar("string"), Scalar("bool"), Scalar("int")
_P_STR = Scalar("string", resets=True)
_ANY = Anything("any", resets=True)
_IMAGE_PARTS = frozenset({"image", "image_url", "input_image"})
_TEXT_KEYS = frozenset({"text", "thinking", "input", "output", "arguments"})
_QUOTE = ord('"')
_MAX_NESTING = 4  # a tool's result inside a message inside the input


class Prompt(msgspec.Struct, frozen=True):
    """The size of a prompt. `text_bytes` counts JSON text as written, without images."""

    parts: int = 0
    text_bytes: int = 0
    has_images: bool = False

    def plus(self, other: Prompt) -> Prompt:
        """Return both together; `parts` stays this one's."""
        return Prompt(self.parts, self.text_bytes + other.text_bytes, self.has_images or other.has_images)


def measure(view: memoryview | None, nesting: int = 0) -> Prompt:
    """Return the size of a string, or of a list of content parts or items of any dialect."""
    if view is None or (kind := kind_of(view)) == "null":
        return Prompt()
    if kind == "string":
        return Prompt(1, len(view) - 2)
    if kind != "array" or nesting > _MAX_NESTING:
        return Prompt(1, len(view))
    if (quick := _measure_quickly(view)) is not None:
        return quick
    count, text_bytes, has_images = 0, 0, False
    for item in elements(view):
        count += 1
        found = _measure_part(item, nesting) if item[0] == ord("{") else measure(item, nesting + 1)
        text_bytes, has_images = text_bytes + found.text_bytes, has_images or found.has_images
    return Prompt(count, text_bytes, has_images)


def _measure_numbers(view: memoryview) -> Prompt | None:
    """Return the size of a list of numbers from its bytes: as many objects would take long; None for other lists."""
    count = text_bytes = 0
    for part, is_one in parts(view):
        items = b"" if is_one else bytes(part[1:-1])
        if is_one or any(mark in items for mark in (b'"', b"[", b"{", b"n")):  # n: null, which has no size
            return None
        count, text_bytes = count + items.count(b",") + 1, text_bytes + len(items.translate(None, b" \t\r\n,"))
    return Prompt(count, text_bytes)


def _measure_quickly(view: memoryview) -> Prompt | None:
    """Return the size of a list of strings, or of the parts of a prompt that is text only; None for other lists."""
    first = bytes(view[1:65]).lstrip()[:1]
    if first.isdigit() and (found := _measure_numbers(view)) is not None:
        return found
    if first == b'"' and (texts := texts_bytes(view)) is not None:
        return Prompt(*texts)
    if first == b"{":
        try:
            return _sum_of(len(memoryview(part.text)) for part in quick_elements(_TEXT_PARTS, view))
        except NOT_QUICK:
            return None
    return None


def _sum_of(sizes: Iterable[int]) -> Prompt:
    count = text_bytes = 0
    for size in sizes:
        count, text_bytes = count + 1, text_bytes + size
    return Prompt(count, text_bytes)


def _measure_part(view: memoryview, nesting: int) -> Prompt:
    total = Prompt()
    for key, value in split(view):
        name = fold(key)
        if name == "type" and value[0] == ord('"') and read_word(value) in _IMAGE_PARTS:
            return Prompt(0, 0, True)
        if name in _TEXT_KEYS:
            total = total.plus(Prompt(0, len(value)))
        elif name == "content":
            total = total.plus(measure(value, nesting + 1))
    return total


class _Quick(msgspec.Struct, forbid_unknown_fields=True):
    """A message of the form that all dialects share. Any other spelling or type goes to the slow path."""

    role: str
    content: msgspec.Raw
    images: list[msgspec.Raw] | None = None


_QUICK = msgspec.json.Decoder(list[_Quick])


class _TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a prompt that is text, in the form that all dialects share."""

    type: Literal["text", "input_text", "output_text"]
    text: msgspec.Raw


_TEXT_PARTS = msgspec.json.Decoder(list[_TextPart])


@dataclass(frozen=True, slots=True, eq=False)
class Messages(GoType):
    """A list of messages decoded to a Prompt: each element is checked as `element` and measured by `measure_one`."""

    element: GoType = _ANY
    measure_one: Callable[[Any], Prompt] = lambda _value: Prompt()
    resets: bool = True

    def read(self, view: memoryview, kind: str, place: Place, _old: Any) -> Any:
        if (prompt := quick_prompt(view)) is not None:
            return prompt
        if kind != "array":
            place.record_mismatch(kind, self.name)
            return Prompt()
        count, total = 0, Prompt()
        for message in Slice(self.name, element=self.element).decoded(view, place):
            count, total = count + 1, total.plus(self.measure_one(message or {}))
        return Prompt(count, total.text_bytes, total.has_images)


def quick_prompt(view: memoryview | msgspec.Raw) -> Prompt | None:
    """Return the size of a list of messages of the common form; None if one has another form or more than text."""
    count = text_bytes = 0
    try:
        for message in quick_elements(_QUICK, view):
            content = memoryview(message.content)
            if message.images or content[0] != _QUOTE:
                return None
            count, text_bytes = count + 1, text_bytes + len(content) - 2
    except NOT_QUICK:
        return None
    return Prompt(count, text_bytes)


def _measure_native(message: dict[str, Any]) -> Prompt:
    text_bytes = sum(len(message[key]) for key in ("content", "thinking") if key in message)
    return Prompt(1, text_bytes + message.get("tool_calls", 0), bool(message.get("images")))


def _measure_openai(message: dict[str, Any]) -> Prompt:
    return _measure_content(message).plus(Prompt(0, len(message.get("reasoning", ())) + message.get("tool_calls", 0)))


def _measure_content(message: dict[str, Any]) -> Prompt:
    return measure(message.get("content"))


def _call_bytes(call: dict[str, Any] | None) -> int:
    """Return the bytes of the name and arguments of a tool call, which the template writes into the prompt."""
    function = (call or {}).get("function") or {}
    return sum(len(function.get(key, ())) for key in ("name", "arguments"))


IMAGES = Slice("[]api.ImageData", element=Image("api.ImageData"), size_of=one)
_FUNCTION = Struct("api.ToolCallFunction", fields={"name": _STR, "arguments": _ANY})
_CALL = Struct("api.ToolCall", fields={"id": _STR, "function": _FUNCTION})
CALLS = Slice("[]api.ToolCall", element=_CALL, size_of=_call_bytes)
_BODY = Struct(
    "api.Alias",
    fields=dict.fromkeys(("role", "content", "thinking", "tool_name", "tool_call_id"), _STR)
    | {"images": IMAGES, "tool_calls": CALLS},
)
NATIVE = Messages(
    "[]api.Message",
    element=Custom("api.Message", parse=lambda view, kind: read_alone(_BODY, view, kind)),
    measure_one=_measure_native,
)

_V1_FUNCTION = Struct("struct { Name string; Arguments string }", fields={"name": _STR, "arguments": _STR})
_V1_CALL = Struct("openai.ToolCall", fields={"id": _STR, "index": _INT, "type": _STR, "function": _V1_FUNCTION})
_V1_MESSAGE = Struct(
    "openai.Message",
    fields=dict.fromkeys(("role", "reasoning", "name", "tool_call_id"), _STR)
    | {"content": _ANY, "tool_calls": Slice("[]openai.ToolCall", element=_V1_CALL, size_of=_call_bytes)},
)
OPENAI = Messages("[]openai.Message", element=_V1_MESSAGE, measure_one=_measure_openai)

_BLOCK = Struct(
    "anthropic.ContentBlock",
    fields=dict.fromkeys(("type", "id", "name", "tool_use_id", "signature"), _STR)
    | {"text": _P_STR, "thinking": _P_STR, "is_error": _BOOL, "content": _ANY},
)
_BLOCKS = Slice("[]anthropic.ContentBlock", element=_BLOCK, size_of=one)
_PARAM = Struct(
    'struct { Role string "json:\\"role\\""; Content json.RawMessage "json:\\"content\\"" }',
    fields={"role": _STR, "content": Anything("json.RawMessage")},
)


def _param(view: memoryview, kind: str) -> dict[str, Any]:
    """Check a message of /v1/messages: `content` must be a string or a list of blocks."""
    found: dict[str, Any] = read_alone(_PARAM, view, kind)
    if "content" not in found:
        raise BadRequest("unexpected end of JSON input")
    if (content_kind := kind_of(found["content"])) not in ("string", "null"):
        read_alone(_BLOCKS, found["content"], content_kind)
    return found


ANTHROPIC = Messages(
    "[]anthropic.MessageParam",
    element=Custom("anthropic.MessageParam", parse=_param),
    measure_one=_measure_content,
)


def _input(view: memoryview, kind: str) -> Prompt:
    """Measure the input of /v1/responses: a string or a list of items."""
    if kind not in ("string", "null", "array"):
        wrong = Mismatch(kind, "[]json.RawMessage", "", ())
        raise BadRequest(f"input must be a string or array: {wrong.message}")
    return measure(view)


RESPONSES_INPUT = Custom("openai.ResponsesInput", parse=_input)
