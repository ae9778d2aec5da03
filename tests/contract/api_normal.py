"""Normalisation of responses for comparison: times, ids, digests, vectors and sampled text are masked.

`tests/contract/README.md` lists each rule. Key order, header order, framing, chunks and statuses are compared.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from tests.contract.api_client import Reply

TIMES = {"created_at", "modified_at", "created", "completed_at", "total_duration", "load_duration", "eval_duration"}
TIMES |= {"prompt_eval_duration"}
IDS = {"id", "item_id", "request_id", "call_id"}
HEX = re.compile(r"\b[0-9a-f]{64}\b")
SHORT_HEX = re.compile(r"\b(pulling|pushing) [0-9a-f]{12}\b")
# Models whose words are sampled and whose tokenizer is not part of the recordings.
SAMPLED = re.compile(r"gemma3")
GRAMMARS = ("json_object", "json_schema")


def is_sampled(body: bytes) -> bool:
    """Whether a request asks for text that no rule gives: of a real model, or under a grammar."""
    if SAMPLED.search(body.decode("utf-8", "replace")):
        return True
    try:
        asked = json.loads(body)
    except ValueError:
        return False
    if not isinstance(asked, dict):
        return False
    text = asked.get("text")
    wanted = [asked.get("response_format"), text.get("format") if isinstance(text, dict) else None]
    kinds = [form.get("type") for form in wanted if isinstance(form, dict)]
    return asked.get("format") not in (None, "") or any(str(kind).lower() in GRAMMARS for kind in kinds)


def normal(reply: Reply | None, *, sampled: bool, through_proxy: bool = False) -> list[str]:
    """Return a response as lines of text; two responses agree if these are equal.

    `through_proxy`: without everything that HTTP leaves to each hop (framing, chunk boundaries, order and case of
    headers) and without the headers that the router adds.
    """
    if reply is None:
        return ["no answer"]
    if through_proxy:
        return _forwarded(reply, sampled)
    closed = reply.closed and reply.header("Connection") != "close"  # implied by the header
    lines = [f"status {reply.status} {reply.reason}", f"framing {reply.framing}{' closed' if closed else ''}"]
    lines += [f"header {name}: {_header(name, value)}" for name, value in _headers(reply.headers)]
    if reply.incomplete:
        lines.append("incomplete")
    if reply.framing == "chunked":
        shown = [_text(chunk.decode("utf-8", "replace"), sampled) for chunk in reply.chunks]
        lines += _folded(shown, sampled)
    else:
        lines.append(_text(reply.body.decode("utf-8", "replace"), sampled))
    return lines


def _forwarded(reply: Reply, sampled: bool) -> list[str]:
    """Status, end-to-end headers and the body as lines or events."""
    shown = {name.lower(): value for name, value in reply.headers}
    kept = {name: value for name, value in shown.items() if name not in HOP and not name.startswith("x-router-")}
    if reply.status != 405:
        kept.pop("allow", None)  # irrelevant if no method was refused
    body = (b"".join(reply.chunks) or reply.body).decode("utf-8", "replace")
    separator = "\n\n" if "event-stream" in shown.get("content-type", "") else "\n"
    parts = [_text(part, sampled) for part in body.split(separator)]
    headers = [f"header {name}: {_header(name, kept[name])}" for name in sorted(kept)]
    return [f"status {reply.status}", *headers, *_folded(parts, sampled)]


HOP = {"date", "connection", "content-length", "transfer-encoding", "keep-alive", "server", "x-request-id"}
HOP |= {"x-should-retry", "access-control-expose-headers"}


def _headers(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers, sorted and without Date if they are of the stub server in `cli-errors`."""
    if any(name == "Server" for name, _ in headers):
        return sorted((name, value) for name, value in headers if name not in ("Server", "Date"))
    return list(headers)


def _header(name: str, value: str) -> str:
    if name == "Date":
        return "<date>"
    if name == "Content-Length":
        return value if value == "0" else "<length>"
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", value)


def _folded(chunks: list[str], sampled: bool) -> list[str]:
    """Return the chunks, with equal adjacent ones of a sampled model and a layer's progress lines counted once."""
    found: list[str] = []
    for chunk in chunks:
        if (sampled and found and chunk == found[-1]) or ('"status": "pulling ' in chunk and chunk in found):
            continue
        found.append(chunk)
    return [f"chunk {chunk}" for chunk in found]


def _text(text: str, sampled: bool) -> str:
    """Return a body or chunk with each JSON value in it normalised and the text around it kept."""
    out = []
    for line in text.split("\n"):
        prefix, value = ("data: ", line[6:]) if line.startswith("data: ") else ("", line)
        try:
            parsed = json.loads(value) if value[:1] in ("{", "[") else None
        except ValueError:
            parsed = None
        if parsed is None:
            out.append(line)
            continue
        own = sampled or (isinstance(parsed, dict) and bool(SAMPLED.search(str(parsed.get("model", "")))))
        out.append(prefix + json.dumps(_value("", parsed, own), ensure_ascii=False))
    return "\n".join(out)


def _value(key: str, value: Any, sampled: bool) -> Any:
    if key in TIMES and value is not None:
        return "<time>"
    if key in IDS and isinstance(value, str) and re.match(r"(call_|cmpl-|chatcmpl-|resp_|msg_|req_|rs_|fc_)", value):
        return "<id>"
    if key == "expires_at":
        return "<never>" if str(value).startswith("23") else "<time>"
    if key in ("embedding", "embeddings") and value:
        return _vectors(value)
    if key == "top_logprobs" and isinstance(value, list):
        return f"<{len(value)} alternatives>"
    if key == "parameters" and isinstance(value, str):
        return "\n".join(sorted(value.split("\n")))
    if key == "modelfile":
        return _modelfile(str(value))
    if sampled and (masked := _sampled(key, value)) is not None:
        return masked
    if isinstance(value, dict):
        if str(value.get("status", "")).startswith(("pulling ", "pushing ")):
            value = {name: item for name, item in value.items() if name != "completed"}
        return {name: _value(name, item, sampled) for name, item in value.items()}
    if isinstance(value, list):
        items = [_value("", item, sampled) for item in value]
        return sorted(items, key=json.dumps) if key in ("models", "data") else items
    return _string(value) if isinstance(value, str) else value


def _sampled(key: str, value: Any) -> Any:
    """Return the mask for a value that sampling determines (words, counts of an unrecorded tokenizer), else None."""
    if key in ("response", "content", "text", "delta", "thinking") and isinstance(value, str):
        return "<words>"
    if key in ("prompt_eval_count", "prompt_tokens", "total_tokens", "input_tokens", "eval_count", "output_tokens"):
        return "<count>"
    if key in ("done_reason", "finish_reason", "stop_reason") and value is not None and value not in ("load", "unload"):
        return "<reason>"
    if key in ("completion_tokens", "context", "logprobs", "sequence_number"):
        return "<tokens>"
    return None


def _vectors(value: Any) -> Any:
    if isinstance(value, str):
        return f"<{len(base64.b64decode(value)) // 4} floats>"
    if value and isinstance(value[0], list):
        return [_vectors(item) for item in value]
    return f"<{len(value)} floats>"


def _modelfile(text: str) -> str:
    lines = _string(text).split("\n")
    at = [number for number, line in enumerate(lines) if line.startswith("PARAMETER ")]
    for number, line in zip(at, sorted(lines[number] for number in at), strict=True):
        lines[number] = line
    return "\n".join(re.sub(r"^FROM .*/blobs/", "FROM <models>/blobs/", line) for line in lines)


def _string(text: str) -> str:
    text = SHORT_HEX.sub(r"\1 <12 hex>", HEX.sub("<64 hex>", text))
    return re.sub(r"\?ts=\d+", "?ts=<time>", text)


def recorded(response: dict[str, Any] | None) -> Reply | None:
    """Return a recorded response as a Reply."""
    if response is None:
        return None
    reply = Reply(response["status"], response["reason"], [(name, value) for name, value in response["headers"]])
    reply.framing = response["framing"]
    reply.closed = bool(response.get("closed"))
    reply.incomplete = bool(response.get("incomplete"))
    if "chunks" in response:
        reply.chunks = [
            chunk["text"].encode() if "text" in chunk else base64.b64decode(chunk["b64"])
            for chunk in response["chunks"]
        ]
    reply.body = response["body"].encode() if "body" in response else base64.b64decode(response.get("body_b64") or "")
    return reply
