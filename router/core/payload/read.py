"""What a request body asks for.

`read_request` sees in a body what Ollama's Go decoder sees (`go/types.py`), so no spelling escapes a decision;
`rewrite` sends exactly one `model`, ours, and leaves the bytes of every other value unchanged.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.go.json_keys import Members, fold, read_word, split
from router.core.go.quoting import GO_SPACE, go_quoted
from router.core.ollama.runner import LoadOptions
from router.core.payload.checks import check, check_options_bytes
from router.core.payload.fields import REQUESTS
from router.core.payload.members import decoded, members_of
from router.core.payload.messages import Prompt, measure
from router.core.payload.quick import Plain, QuickRequest, read_quick
from router.core.payload.rewrite import Patch, Span, rewrite
from router.core.payload.values import MAX_NS, keep_alive_ns_of
from router.errors import BadRequest

__all__ = ["InferenceRequest", "Members", "Patch", "read_request", "read_wholly", "rewrite"]

BYTES_PER_TOKEN = 3
"""Bytes of a prompt per token, few of them: code has about 3, English about 4. Too many tokens cost a little memory,
too few cut the prompt."""

_EMBEDDING_KINDS = frozenset({"embed", "embeddings", "v1_embeddings"})
_INT_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_predict"}
)
_RUNNER_OPTIONS = _INT_OPTIONS | {"use_mmap"}
_NO_OPTIONS = LoadOptions()
_EMBEDDING, _COMPLETION = frozenset({"embedding"}), frozenset({"completion"})


class InferenceRequest(msgspec.Struct, frozen=True, gc=False):
    """What the body of an inference route asks for.

    A struct, because one is built per request: it is faster than a dataclass.

    `model` is as sent ("" if absent: `has_model` is False, and Ollama answers with the error). `options` holds what the
    client named, None for the rest. `keep_alive_s` is None if absent, and inf = indefinitely. `needs` are capabilities
    by Ollama's names. `prompt_bytes` counts the text without images. `num_predict` None = not named. A load-only
    request has no prompt; with keep_alive 0 it is an unload instead. `options_error` is what Ollama answers with status
    500, once it has found the model, to an option of the wrong type. `members` and `plain` are for `rewrite`.
    `is_automatic`: the request can only use a runner with Ollama's own options (no derived tags).
    """

    model: str
    num_ctx: int | None = None
    options: LoadOptions = _NO_OPTIONS
    keep_alive_s: float | None = None
    stream: bool = False
    needs: frozenset[str] = _COMPLETION
    format: bool = False
    prompt_bytes: int = 0
    num_predict: int | None = None
    is_load_only: bool = False
    is_unload: bool = False
    has_model: bool = True
    options_error: str = ""
    members: Members | Span | None = None
    plain: Plain | None = None
    is_automatic: bool = False


def read_request(kind: str, body: bytes) -> InferenceRequest:
    """Return the request in `body` of a route of `kind`. Raise BadRequest with the text that Ollama would answer."""
    found = read_quick(kind, body)
    if found is not None and (request := _from_quick(found)) is not None:
        return request
    return read_slowly(kind, body)


def read_wholly(kind: str, body: bytes) -> InferenceRequest:
    """Return the same, with the members of `body`: for large ones, where `rewrite` is not to look for them."""
    request = read_request(kind, body)
    if request.members is not None or request.plain is not None:
        return request
    return msgspec.structs.replace(request, members=split(body))


def read_slowly(kind: str, body: bytes) -> InferenceRequest:
    """Return the same without the fast path. Tests compare the fast path with it."""
    members = members_of(body, is_native=not kind.startswith("v1_"))
    check_options_bytes(members)
    found = decoded(REQUESTS[kind], body, members)
    model = read_word(found.get("model"))
    has_model = bool(model.strip(GO_SPACE))
    check(kind, model if has_model else "", found)
    if kind.startswith("v1_"):
        return _read_v1(kind, model, has_model, found, members)
    return _read_native(kind, model, has_model, found, members)


def _from_quick(found: QuickRequest) -> InferenceRequest | None:
    """Build the request of a body that took the fast path; None if one of its values needs the slow path."""
    options, num_predict, keep_alive_ns = _NO_OPTIONS, found.max_tokens, None
    if not _RUNNER_OPTIONS.isdisjoint(found.options):
        options, num_predict, error = _read_options({"options": found.options})
        if error:
            return None
    if found.keep_alive:
        try:
            keep_alive_ns = keep_alive_ns_of(found.keep_alive)
        except BadRequest:
            return None
    return InferenceRequest(
        found.model,
        options.num_ctx,
        options,
        None if keep_alive_ns is None else _seconds(keep_alive_ns),
        found.stream,
        _COMPLETION,
        False,
        found.prompt.text_bytes,
        num_predict,
        not found.prompt.parts and keep_alive_ns != 0,
        not found.prompt.parts and keep_alive_ns == 0,
        True,
        "",
        None,
        found.plain,
    )


def _read_native(kind: str, model: str, has_model: bool, found: dict[str, Any], members: Members) -> InferenceRequest:
    prompt = _native_prompt(kind, found)
    keep_alive_ns: int | None = found.get("keep_alive")
    options, num_predict, options_error = _read_options(found)
    return InferenceRequest(
        model=model,
        num_ctx=options.num_ctx,
        options=options,
        keep_alive_s=None if keep_alive_ns is None else _seconds(keep_alive_ns),
        stream=kind in ("generate", "chat") and _is_true(found.get("stream"), default=True),
        needs=_needs(kind, found, prompt, thinks=found.get("think", False)),
        format="format" in found and bytes(found["format"][:2]) != b'""',
        prompt_bytes=prompt.text_bytes + _tool_bytes(found, members),
        num_predict=num_predict,
        is_load_only=prompt.parts == 0 and keep_alive_ns != 0,
        is_unload=prompt.parts == 0 and keep_alive_ns == 0,
        has_model=has_model,
        options_error=options_error,
        members=members,
    )


def _read_v1(kind: str, model: str, has_model: bool, found: dict[str, Any], members: Members) -> InferenceRequest:
    prompt = _v1_prompt(kind, found)
    limit = found.get("max_output_tokens" if kind == "v1_responses" else "max_tokens")
    return InferenceRequest(
        model=model,
        stream=_is_true(found.get("stream"), default=False),
        needs=_needs(kind, found, prompt, thinks=_has_effort(kind, found)),
        format=_has_format(kind, found),
        prompt_bytes=prompt.text_bytes + _tool_bytes(found, members),
        num_predict=None if limit is None else int(bytes(limit)),
        has_model=has_model,
        members=members,
    )


def _native_prompt(kind: str, found: dict[str, Any]) -> Prompt:
    """Return the prompt of a native body; `parts` is 0 if Ollama only loads the model."""
    if kind == "chat":
        return found.get("messages") or Prompt()
    if kind == "embed":
        prompt = measure(found.get("input"))
        return Prompt() if prompt == Prompt(1, 0) and bytes(found["input"][:3]) == b'""' else prompt
    text_bytes = sum(len(found[key]) - 2 for key in ("prompt", "system", "suffix") if key in found)
    text_bytes += BYTES_PER_TOKEN * int(found.get("context", 0))  # these are tokens
    return Prompt(0 if len(found.get("prompt", ())) <= 2 else 1, text_bytes, bool(found.get("images")))


def _v1_prompt(kind: str, found: dict[str, Any]) -> Prompt:
    if kind == "v1_responses":
        asked: Prompt = found.get("input") or Prompt()
        return asked.plus(measure(found.get("instructions")))
    if kind in ("v1_chat", "v1_messages"):
        messages: Prompt = found.get("messages") or Prompt()
        return messages.plus(measure(found.get("system")))
    return measure(found.get("input" if kind == "v1_embeddings" else "prompt"))


def _needs(kind: str, found: dict[str, Any], prompt: Prompt, *, thinks: bool) -> frozenset[str]:
    if kind in _EMBEDDING_KINDS:
        return _EMBEDDING
    if not (thinks or prompt.has_images or found.get("tools") or "suffix" in found):
        return _COMPLETION
    extra = {"thinking": thinks, "vision": prompt.has_images, "tools": bool(found.get("tools"))}
    extra["insert"] = len(found.get("suffix", ())) > 2
    return _COMPLETION | {need for need, is_needed in extra.items() if is_needed}


def _has_effort(kind: str, found: dict[str, Any]) -> bool:
    """Return whether a `/v1` body asks for thinking.

    Anthropic's `thinking` does not count: Ollama drops it for a model that cannot think.
    """
    if kind not in ("v1_chat", "v1_responses"):
        return False
    effort = read_word(found.get("reasoning", {}).get("effort")) or read_word(found.get("reasoning_effort"))
    return effort not in ("", "none")


def _has_format(kind: str, found: dict[str, Any]) -> bool:
    wanted = found.get("response_format") if kind == "v1_chat" else found.get("text", {}).get("format")
    return read_word((wanted or {}).get("type")) in ("json_object", "json_schema")


def _tool_bytes(found: dict[str, Any], members: Members) -> int:
    return sum(len(view) for key, view in members if fold(key) == "tools") if found.get("tools") else 0


def _read_options(found: dict[str, Any]) -> tuple[LoadOptions, int | None, str]:
    """Return the runner's options, num_predict, and the first error that Ollama would report about their types."""
    values: dict[str, Any] = found.get("options") or {}
    shift = _is_true(found["shift"], default=False) if "shift" in found else None
    if shift is None and _RUNNER_OPTIONS.isdisjoint(values):
        return _NO_OPTIONS, None, ""
    numbers: dict[str, int] = {}
    error = ""
    for key, value in values.items():
        if key in _INT_OPTIONS and value is not None:
            if (number := _int_option(value)) is not None:
                numbers[key] = number
            else:
                error = error or f"option {go_quoted(key)} must be of type integer"
    use_mmap = values.get("use_mmap")
    if use_mmap is not None and not isinstance(use_mmap, bool):
        use_mmap, error = None, error or 'option "use_mmap" must be of type boolean'
    num_predict = numbers.pop("num_predict", None)
    return LoadOptions(**numbers, use_mmap=use_mmap, shift=shift), num_predict, error


def _int_option(value: Any) -> int | None:
    """Convert a number like Ollama: cut off a fraction; beyond 64 bits take the smallest integer. None for others."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if abs(value) < 2.0**63 else -(1 << 63)


def _seconds(nanoseconds: int) -> float:
    """Convert to seconds: MAX_NS to inf (indefinitely), a value that overflowed to 0 (at once)."""
    if nanoseconds == MAX_NS:
        return float("inf")
    return max(0, nanoseconds) / 1e9


def _is_true(view: memoryview | None, *, default: bool) -> bool:
    return default if view is None else view[0] == ord("t")
