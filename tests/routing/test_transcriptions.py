"""Transcriptions: their model stands in a form, and is decided on like any other."""

import re
from urllib.parse import urlsplit

from router.core.ollama.derived_names import is_derived
from tests.config.keys.play import MIDDLE, SMALL, play, seen
from tests.fakes import RawClient

TYPE = ("Content-Type", "multipart/form-data; boundary=b")


def form(*models):
    """Return a form with an audio file."""
    fields = [f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n' for model in models]
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
    return file + "".join(fields) + "--b--\r\n"


async def transcribed(one, *models, headers=(TYPE,)):
    raw = await RawClient.to(urlsplit(one.router.url).port)
    try:
        return await raw.ask("POST", "/v1/audio/transcriptions", form(*models), headers)
    finally:
        raw.close()


def test_a_transcription_goes_to_what_its_model_runs_as():
    """The router loads it, Ollama gets the tag with its context in the form, and the client never sees that."""

    async def story(one):
        reply = await transcribed(one, SMALL)
        (asked,) = seen(one, "/v1/audio/transcriptions")
        return reply, asked.body.decode(), one.loads

    reply, body, loads = play(story, models=(SMALL,))
    (name,) = re.findall(r'name="model"\r\n\r\n(.*)\r\n', body)
    assert is_derived(name)
    assert body == form(name)
    assert reply.headers["x-router-model"] == SMALL
    assert name not in reply.body.decode()
    assert len(loads) == 1


def test_a_chain_none_of_whose_variants_hears_is_refused():
    """With what they lack."""

    async def story(one):
        reply = await transcribed(one, "chat")
        return reply.status, reply.json()["error"]["message"], len(seen(one, "/v1/audio/transcriptions"))

    status, message, sent = play(story, {"chains": {"chat": [MIDDLE, SMALL]}}, models=(SMALL,))
    assert (status, sent) == (503, 0)
    assert "lacks audio" in message


def test_a_model_of_the_cloud_is_refused_to_anonymous_clients_in_a_form_as_well_g2():
    """Nothing of it reaches Ollama."""

    async def story(one):
        reply = await transcribed(one, "gpt-oss:120b-cloud")
        return reply.status, len(seen(one, "/v1/audio/transcriptions"))

    assert play(story, {"listen": "0.0.0.0:0"}, models=(SMALL,)) == (403, 0)


def test_forms_that_two_parsers_could_read_differently_are_refused():
    """Two models, or two types of content."""

    async def story(one):
        replies = [await transcribed(one, SMALL, MIDDLE), await transcribed(one, SMALL, headers=(TYPE, TYPE))]
        return [reply.status for reply in replies], len(seen(one, "/v1/audio/transcriptions"))

    assert play(story, models=(SMALL,)) == ([400, 400], 0)


def test_a_form_without_a_model_gets_ollamas_answer():
    """And so does one that is none."""

    async def story(one):
        replies = [await transcribed(one), await transcribed(one, SMALL, headers=())]
        return [(reply.status, reply.json()["error"]["message"]) for reply in replies]

    without, no_form = play(story, models=(SMALL,))
    assert without == (400, "model is required")
    assert no_form == (400, "failed to parse multipart form: request Content-Type isn't multipart/form-data")


def test_a_name_in_a_form_is_a_name():
    """With control characters, or too long, it is none."""

    async def story(one):
        return [(await transcribed(one, name)).status for name in ("a\x1bb", "x" * 5000)]

    assert play(story, models=(SMALL,)) == [400, 400]
