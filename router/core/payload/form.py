"""The multipart form of `/v1/audio/transcriptions`: its model is read, and replaced by the one that serves.

Two parsers may read a form differently, so only what every client writes is accepted: one plain boundary, CRLF, a
`form-data` disposition with plain parameters, each field's bytes as they are. Whatever else Go's parser would take
(line feeds alone, folded headers, encoded names, quoted-printable) is refused instead of being interpreted.
"""

from __future__ import annotations

import re

from router.core.go.json_scan import STEP_BYTES
from router.core.go.quoting import GO_SPACE
from router.core.payload.read import InferenceRequest
from router.core.payload.rewrite import Span
from router.errors import BadRequest

FAILED = "failed to parse multipart form: "
"""How Ollama begins; what follows is Go's text where Go has one for it."""

MOST_PARTS, MOST_HEAD_BYTES, MOST_VALUE_BYTES = 64, 4096, 4096

_NEEDS = frozenset({"completion", "audio"})
_PARAMETER = rb';[ \t]*([A-Za-z]+\*?)=("(?:[^"\\\r\n]|\\[^\r\n])*"|[^\s";,]+)[ \t]*'
_TYPE = re.compile(rb"multipart/form-data[ \t]*((?:%b)*)\Z" % _PARAMETER, re.IGNORECASE)
_DISPOSITION = re.compile(rb"form-data[ \t]*((?:%b)*)\Z" % _PARAMETER, re.IGNORECASE)
_PARAMETERS = re.compile(_PARAMETER)
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_HEADER = re.compile(rb"([A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_ENCODINGS = (b"7bit", b"8bit", b"binary")


def read_form(content_type: bytes, body: bytes) -> InferenceRequest:
    """Return the request in a form. Raises BadRequest for a form that could be read differently."""
    spans = [span for name, span in _parts(body, _boundary(content_type)) if name == b"model"]
    if not spans:
        return InferenceRequest("", needs=_NEEDS, has_model=False)
    if len(spans) > 1:
        raise BadRequest(f"{FAILED}more than one model")
    (span,) = spans
    try:
        model = body[span.start : min(span.end, span.start + MOST_VALUE_BYTES)].decode()
    except UnicodeDecodeError:
        raise BadRequest("invalid model name") from None
    return InferenceRequest(model, needs=_NEEDS, has_model=bool(model.strip(GO_SPACE)), members=span)


def _boundary(content_type: bytes) -> bytes:
    found = _TYPE.match(content_type.strip())
    if found is None:
        raise BadRequest(f"{FAILED}request Content-Type isn't multipart/form-data")
    parameters = _read_parameters(found[1])
    if any(key.endswith(b"*") for key in parameters):
        raise BadRequest(f"{FAILED}an encoded parameter")
    if b"boundary" not in parameters:
        raise BadRequest(f"{FAILED}no multipart boundary param in Content-Type")
    if not _BOUNDARY.fullmatch(parameters[b"boundary"]):
        raise BadRequest(f"{FAILED}invalid boundary")
    return parameters[b"boundary"]


def _read_parameters(text: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for key, value in _PARAMETERS.findall(text):
        name = key.lower()
        if name in found:
            raise BadRequest(f"{FAILED}duplicate parameter name")
        found[name] = value[1:-1] if value.startswith(b'"') else value
    return found


def _parts(body: bytes, boundary: bytes) -> list[tuple[bytes, Span]]:
    """Return the names of the fields and where their values are."""
    delimiter, found = b"\r\n--" + boundary, list[tuple[bytes, Span]]()
    if not body.startswith(delimiter[2:]):
        raise BadRequest(f"{FAILED}multipart: NextPart: EOF")
    at = len(delimiter) - 2
    while body.startswith(b"\r\n", at):
        end = _find(body, delimiter, at)
        if end == at:
            raise BadRequest(f"{FAILED}a part without headers")
        if end < 0:
            raise BadRequest(f"{FAILED}unexpected EOF")
        if len(found) >= MOST_PARTS:
            raise BadRequest(f"{FAILED}more than {MOST_PARTS} parts")
        found.append(_part(body, at, end))
        at = end + len(delimiter)
    if not body.startswith(b"--", at) or len(body) - at > MOST_HEAD_BYTES or body[at + 2 :].strip():
        raise BadRequest(f"{FAILED}malformed boundary")
    return found


def _find(body: bytes, delimiter: bytes, at: int) -> int:
    """Return where the next delimiter is, or -1; in steps, so that other threads get their turn."""
    for start in range(at, len(body), STEP_BYTES):
        if (found := body.find(delimiter, start, start + STEP_BYTES + len(delimiter) - 1)) >= 0:
            return found
    return -1


def _part(body: bytes, at: int, end: int) -> tuple[bytes, Span]:
    """Return the name of the field whose headers begin with the line break at `at`."""
    blank = body.find(b"\r\n\r\n", at, min(end, at + MOST_HEAD_BYTES))
    if blank <= at:
        raise BadRequest(f"{FAILED}malformed MIME header")
    headers: dict[bytes, bytes] = {}
    for line in body[at + 2 : blank].split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None or header[1].lower() in headers:
            raise BadRequest(f"{FAILED}malformed MIME header")
        headers[header[1].lower()] = header[2].rstrip()
    return _name(headers), Span(blank + 4, end)


def _name(headers: dict[bytes, bytes]) -> bytes:
    """Return the name of a part's field. Raises BadRequest for one that is not written plainly, and a file as model."""
    found = _DISPOSITION.match(headers.get(b"content-disposition", b""))
    encoding = headers.get(b"content-transfer-encoding", b"binary").lower()
    if found is None or encoding not in _ENCODINGS:
        raise BadRequest(f"{FAILED}a part that is no plain form-data")
    parameters = _read_parameters(found[1])
    name = parameters.get(b"name", b"")
    is_odd = b"\\" in name or not name or not parameters.keys() <= {b"name", b"filename", b"filename*"}
    if is_odd or (name == b"model" and len(parameters) > 1):
        raise BadRequest(f"{FAILED}a part that is no plain form-data")
    return name
