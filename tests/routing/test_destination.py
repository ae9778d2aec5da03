"""Where a request goes: the body that is sent, the headers that the client reads, and the name in its answer."""

import json

import pytest

from router.config import ChainRules, load_config
from router.core.decision.chain import Variant
from router.core.decision.verdict import Verdict, VerdictKind
from router.core.ollama.routes import TARGETS
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import read_request
from router.http.headers import header_lines
from router.routing.call import Call
from router.routing.destination import client_spelling, router_headers
from router.routing.destinations import Destinations, digest_of, patch_of
from router.routing.ruled import RuledChain
from router.telemetry import Decided
from tests.core.facts import facts_of

OPTIONS = LoadOptions(num_ctx=8192, num_batch=512)
TAG = "ollama-router-derived/small:3b-d1-c8192-b512-gx"
CONFIG = load_config(env={}, options={})
CHAIN = RuledChain("small:3b", (Variant("small:3b"),), ChainRules(CONFIG.chains, CONFIG.defaults).rule_for("small:3b"))
EVENT = Decided("", "", "small:3b", "small:3b", "fits", "exact")


def call(model="small:3b", path="/api/generate", **body):
    route = TARGETS[("POST", path.encode())]
    data = json.dumps({"model": model, **body}).encode()
    return Call(route, read_request(route.kind, data), data)


def destinations(**defaults):
    options = {f"defaults.{key}": value for key, value in defaults.items()}
    return Destinations("gpu1", load_config(env={}, options=options).defaults)


def to_resident(asked, *, variant="small:3b", tag="", options=OPTIONS, **defaults):
    verdict = Verdict(Variant(variant), VerdictKind.RESIDENT)
    return destinations(**defaults).to_resident(asked, CHAIN, verdict, "w", "fits", options, tag, EVENT)


def sent(destination, asked):
    return json.loads(destination.body(asked.request, asked.body))


def test_a_native_request_carries_exactly_the_residents_options():
    """Its own are replaced, so that nothing reloads; its keep_alive is the router's business."""
    asked = call(options={"num_ctx": 100, "num_gpu": 1, "temperature": 0.5}, keep_alive="10m", prompt="hi")
    body = sent(to_resident(asked), asked)
    assert body["options"] == {"temperature": 0.5, "num_ctx": 8192, "num_batch": 512}
    assert (body["prompt"], "keep_alive" in body) == ("hi", False)


def test_a_v1_request_reaches_the_resident_by_its_tag_and_is_otherwise_unchanged():
    """It can carry no options; the answer shows the variant's name."""
    asked = call(path="/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], keep_alive=5)
    found = to_resident(asked, tag=TAG)
    assert sent(found, asked) == {**json.loads(asked.body), "model": TAG}
    assert (found.rename, found.may_vanish) == ((TAG.encode(), b"small:3b"), True)


def test_a_request_without_a_model_is_sent_unchanged():
    """Ollama says what that means."""
    asked = call(model="")
    assert destinations().passed_on(asked, "why").body(asked.request, asked.body) == asked.body


@pytest.mark.parametrize(
    ("requested", "variant", "expected"),
    [
        ("small:3b", "small:3b", "small:3b"),
        ("Library/SMALL:3b", "small:3b", "Library/SMALL:3b"),
        ("big:32b", "small:3b", "small:3b"),
    ],
)
def test_the_model_is_spelled_as_the_client_does_where_it_means_the_same(requested, variant, expected):
    """Clients compare names byte by byte."""
    assert client_spelling(requested, variant) == expected
    assert to_resident(call(requested), variant=variant).name == expected


def test_a_variant_that_the_client_did_not_name_may_vanish():
    """A 404 for it is no answer to the client's question; one for the named model is."""
    assert to_resident(call("big:32b")).may_vanish
    assert not to_resident(call("small:3b")).may_vanish


@pytest.mark.parametrize(
    ("response_model", "requested", "rename"),
    [
        ("served", "big:32b", None),
        ("requested", "big:32b", (b"small:3b", b"big:32b")),
        ("requested", "small:3b", None),
    ],
)
def test_answers_name_the_served_or_the_requested_model_as_the_operator_wants(response_model, requested, rename):
    """Nothing is replaced where both are the same."""
    assert to_resident(call(requested), response_model=response_model).rename == rename


def test_the_headers_say_who_serves_whom_and_why():
    """Rendered once for all requests that did not wait."""
    found = to_resident(call("big:32b"))
    headers = dict(found.headers)
    assert headers == {
        b"x-router-model": b"small:3b",
        b"x-router-requested-model": b"big:32b",
        b"x-router-reason": b"fits",
        b"x-router-backend": b"gpu1",
        b"x-router-queue-ms": b"0",
    }
    assert found.lines == header_lines(found.headers) == b"".join(b"%b: %b\r\n" % pair for pair in headers.items())


def test_a_request_that_waited_or_was_sent_more_than_once_says_so():
    """The attempts only where there were several."""
    found = to_resident(call("big:32b"))
    waited = dict(found.headers_after("big:32b", 1.2345, 1, "gpu1")[0])
    assert (waited[b"x-router-queue-ms"], b"x-router-attempts" in waited) == (b"1234", False)
    assert dict(found.headers_after("big:32b", 0.0, 3, "gpu1")[0])[b"x-router-attempts"] == b"3"


@pytest.mark.parametrize("model", ["m\r\nx-evil: 1", "мodel", "m" * 600])
def test_a_header_is_one_line_of_latin_1_whatever_the_client_named(model):
    """No header of the client's making, no error, no end of memory."""
    for name, value in router_headers(model, model, model, 0.0, "gpu1"):
        assert b"\n" not in name + value and b"\r" not in value
        assert len(value) <= 512


def test_what_is_passed_on_enters_no_resident():
    """Under the asked name, or under a variant's in its place, with the options of a chain where it has some."""
    asked = call("big:32b", keep_alive=5)
    plain = destinations().passed_on(asked, "why")
    assert (plain.weights, plain.served, plain.decided) == ("", "big:32b", None)
    assert sent(plain, asked) == json.loads(asked.body)
    other = destinations().passed_on(asked, "why", "small:3b", patch=patch_of(LoadOptions(num_ctx=4096)), decided=EVENT)
    assert sent(other, asked) == {"model": "small:3b", "keep_alive": 5, "options": {"num_ctx": 4096}}
    assert (other.served, other.rename, other.may_vanish, other.decided) == ("small:3b", None, False, EVENT)
    tagged = destinations().passed_on(asked, "why", "small:3b", tag=TAG)
    assert (tagged.name, tagged.rename, tagged.may_vanish) == (TAG, (TAG.encode(), b"small:3b"), True)


@pytest.mark.parametrize("has_tags", [True, False])
def test_only_v1_needs_a_tag_and_only_for_options_that_a_tag_can_carry(has_tags):
    """Without tags it runs at Ollama's own options."""
    made, v1 = destinations(derived_tags=has_tags), call(path="/v1/completions", prompt="hi")
    assert made.needs_tag(v1, OPTIONS) is has_tags
    assert made.is_automatic(v1) is not has_tags
    assert not made.needs_tag(v1, LoadOptions(shift=False))
    assert not made.needs_tag(call(), OPTIONS)
    assert not made.is_automatic(call())


def test_a_tag_stands_for_a_manifest():
    """None where the facts are not known."""
    facts = facts_of("small:3b")
    assert digest_of(Verdict(Variant("small:3b"), VerdictKind.FITS, facts=facts)) == facts.digest
    assert digest_of(Verdict(Variant("small:3b"), VerdictKind.FITS)) == ""


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\x7fb", "a\x85b", "a\r\nb", "a\x00b"])
def test_a_header_value_holds_no_control_character(text):
    """Whatever a name or a reason holds."""
    lines = header_lines(router_headers(text, text, text, 0.0, "local"))
    assert b"a" in lines
    assert all(byte in b"\r\n" or 0x20 <= byte < 0x7F for byte in lines)
    assert lines.count(b"\n") == 5
