"""Multipart forms: the model that Go would read from them, or a refusal; and the same form with another model."""

from __future__ import annotations

import asyncio

import aiohttp
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.core.payload.form import FAILED, MOST_PARTS, read_form
from router.core.payload.read import rewrite
from router.errors import BadRequest

TYPE = b"multipart/form-data; boundary=b"
AUDIO = b"RIFF\r\n--\r\n\x00\xff"


def part(value: bytes = b"whisper", disposition: bytes = b'form-data; name="model"', *more: bytes) -> bytes:
    return b"\r\n".join((b"--b", b"Content-Disposition: " + disposition, *more, b"", value, b""))


FILE = part(AUDIO, b'form-data; name="file"; filename="a \\"b\\" \xc3\xa9.wav"', b"Content-Type: audio/wav")
MODEL, END = part(), b"--b--\r\n"
FORM = FILE + MODEL + END


def read(body: bytes, content_type: bytes = TYPE) -> str:
    return read_form(content_type, body).model


@pytest.mark.parametrize(
    "body",
    [
        FORM,
        MODEL + FILE + b"--b--",
        MODEL + END + b"\r\n ",
        part(b"whisper", b"form-data; name=model"),
        part(b"whisper", b'FORM-DATA ;NAME="model"', b"Content-Type: text/plain; charset=utf-8") + END,
        part(b"whisper", b'form-data; name="model"', b"Content-Transfer-Encoding: 8bit") + END,
        part(b"en", b'form-data; name="language"') + part(b"", b'form-data; name="prompt"') + MODEL + END,
        part(b"model", b'form-data; name="Model"') + MODEL + END,
    ],
)
def test_the_model_is_read_and_replaced(body: bytes) -> None:
    """All other bytes of the form stay."""
    body = body if b"--b--" in body else body + END
    request = read_form(TYPE, body)
    assert (request.model, request.has_model, request.needs) == ("whisper", True, {"completion", "audio"})
    renamed = rewrite(body, model="other:1b", members=request.members)
    assert renamed == body.replace(b"whisper", b"other:1b")
    assert read(renamed) == "other:1b"
    assert rewrite(body, model="whisper", members=request.members) is body


@pytest.mark.parametrize("kind", ["httpx", "aiohttp"])
def test_forms_of_real_clients_are_read(kind: str) -> None:
    """Of the libraries that SDKs use."""
    if kind == "httpx":
        data, files = {"model": "m:1b", "language": "é"}, {"file": ("ü.wav", AUDIO)}
        sent = httpx.Request("POST", "http://x/", data=data, files=files)
        body, content_type = sent.read(), sent.headers["content-type"]
    else:
        body, content_type = asyncio.run(by_aiohttp())
    assert read(body, content_type.encode()) == "m:1b"


async def by_aiohttp() -> tuple[bytes, str]:
    form = aiohttp.FormData()
    form.add_field("file", AUDIO, filename="a.wav", content_type="audio/wav")
    form.add_field("model", "m:1b")
    writer = form()
    return await writer.as_bytes(), writer.headers["Content-Type"]


def test_a_form_without_a_model_is_left_to_ollama() -> None:
    """It says what is missing."""
    for body in (FILE + END, END, part(b"") + END, part(b" ") + END):
        assert not read_form(TYPE, body).has_model


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        (b"application/json", "request Content-Type isn't multipart/form-data"),
        (b"", "request Content-Type isn't multipart/form-data"),
        (b"multipart/form-data", "no multipart boundary param in Content-Type"),
        (b'multipart/form-data; boundary=""', "invalid boundary"),
        (b"multipart/form-data; boundary=" + b"b" * 71, "invalid boundary"),
        (b"multipart/form-data; boundary=b; boundary=c", "duplicate parameter name"),
        (b"multipart/form-data; boundary=b; boundary*=utf-8''c", "an encoded parameter"),
        (b"multipart/form-data; boundary*0=b", "request Content-Type isn't multipart/form-data"),
    ],
)
def test_a_content_type_that_could_be_read_differently_is_refused(content_type: bytes, text: str) -> None:
    """In Ollama's words where it has some."""
    with pytest.raises(BadRequest) as refused:
        read(FORM, content_type)
    assert refused.value.message == FAILED + text


ODD = {
    "nothing": b"",
    "a preamble": b"x\r\n" + FORM,
    "no end": FILE + MODEL,
    "text behind the end": FORM + b"--b\r\n",
    "a longer boundary": part(b"whisper\r\n--bb\r\n") + END,
    "line feeds": FORM.replace(b"\r\n", b"\n"),
    "a line feed in the head": MODEL.replace(b'"model"\r\n', b'"model"\nX: y\r\n') + END,
    "two models": MODEL + MODEL + END,
    "a file as model": part(b"whisper", b'form-data; name="model"; filename="x"') + END,
    "no file name": part(b"whisper", b'form-data; name="model"; filename=""') + END,
    "quoted-printable": part(b"whisper", b'form-data; name="model"', b"Content-Transfer-Encoding: quoted-printable")
    + END,
    "an escaped name": part(b"whisper", b'form-data; name="mo\\del"') + END,
    "an encoded name": part(b"whisper", b"form-data; name*=utf-8''model") + END,
    "a name in parts": part(b"whisper", b'form-data; name*0="mo"; name*1="del"') + END,
    "two names": part(b"whisper", b'form-data; name="x"; name="model"') + END,
    "no name": part(b"whisper", b"form-data") + END,
    "another disposition": part(b"whisper", b'attachment; name="model"') + END,
    "two dispositions": part(b"x", b'form-data; name="x"', b'Content-Disposition: form-data; name="model"') + END,
    "a folded head": part(b"whisper", b'form-data;\r\n name="model"') + END,
    "no blank line": b'--b\r\nContent-Disposition: form-data; name="model"\r\n--b--',
    "no head": b"--b\r\n\r\nwhisper\r\n" + END,
    "a part of nothing": b"--b\r\n--b--",
    "a long head": part(b"whisper", b'form-data; name="model"', b"X: " + b"x" * 9000) + END,
    "many parts": part(b"", b'form-data; name="x"') * (MOST_PARTS + 1) + END,
    "bytes that are no text": part(b"\xff") + END,
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_a_form_that_could_be_read_differently_is_refused(body: bytes) -> None:
    """Nothing is interpreted that another parser might not."""
    with pytest.raises(BadRequest):
        read(body)


@given(st.binary(max_size=60), st.integers(0, len(FORM)), st.integers(0, 40))
@example(b"\r\n--b", 0, 0)
def test_no_form_crashes_the_reader(junk: bytes, at: int, removed: int) -> None:
    """And one that is read has its model where it says."""
    body = FORM[:at] + junk + FORM[at + removed :]
    try:
        request = read_form(TYPE, body)
    except BadRequest:
        return
    if request.has_model:
        assert request.members is not None
        assert rewrite(body, model="\x01", members=request.members).count(b"\x01") == body.count(b"\x01") + 1
