"""The head cache: a message is recognized only if a parser would read exactly the same, whatever was changed in it."""

from __future__ import annotations

import asyncio
import random

import httptools
import msgspec
import pytest

from router.errors import UpstreamError
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from router.http.repeats import MAX_HEAD_BYTES, MAX_HEADS, MAX_MISSES, HeadCache, HeadTemplate, LastHead
from tests.http.raw_upstream import Visit, raw_upstream

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
    b"Date: Tue, 24 Nov 2026 18:00:00 GMT\r\nContent-Length: 12\r\n\r\n"
)
REQUEST = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\nAccept: */*\r\n\r\n"
BODY = b'{"done":true'


class Parsed(msgspec.Struct):
    """A parsed head, of which nothing is read."""


class Read:
    """What httptools reads in one message; `whole` if the message ends with the bytes."""

    def __init__(self, data: bytes, *, is_answer: bool) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.first = b""
        self.body = b""
        self.ends = 0
        parser = httptools.HttpResponseParser(self) if is_answer else httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.ends = -1

    def on_url(self, url: bytes) -> None:
        self.first += url

    def on_status(self, status: bytes) -> None:
        self.first += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ends += 1

    def constant(self) -> list[tuple[bytes, bytes]]:
        return [pair for pair in self.headers if pair[0] not in (b"date", b"content-length")]


def learn(head: bytes, body: bytes = BODY, *, is_dated: bool = False) -> HeadTemplate[str] | None:
    by_name = dict(Read(head + body, is_answer=head.startswith(b"HTTP")).headers)
    return HeadCache[str](is_dated=is_dated).template_of(head + body, by_name, len(body), "it")


@pytest.mark.parametrize("head", [ANSWER, REQUEST])
def test_a_cached_head_is_recognized_with_any_length_and_date(head: bytes) -> None:
    known = learn(head, is_dated=True)
    assert known is not None and known.head == "it"
    assert known.read(head + BODY) == (b"12", BODY)
    longer = head.replace(b": 12\r", b": 1001\r").replace(b"24 Nov 2026 18:00:00", b"25 Dec 2027 23:59:59")
    assert known.read(longer + b"x" * 1001) == (b"1001", b"x" * 1001)


def test_a_date_may_differ_only_in_a_cache_with_is_dated() -> None:
    known = learn(ANSWER)
    assert known is not None
    assert known.read(ANSWER + BODY) == (b"12", BODY)
    assert known.read(ANSWER.replace(b":00 GMT", b":01 GMT") + BODY) is None


@pytest.mark.parametrize(
    "data",
    [
        REQUEST + BODY[:-1],
        REQUEST + BODY + b"x",
        REQUEST,
        REQUEST[:40],
        b"\r\n" + REQUEST + BODY,
        REQUEST.replace(b"12", b"+12") + BODY,
        REQUEST.replace(b"12", b"1 2") + BODY,
        REQUEST.replace(b"12", b"") + BODY,
        REQUEST.replace(b"12", b"000000012") + BODY,
        REQUEST.replace(b"12", b"\xb2\xb2") + BODY,
        REQUEST.replace(b": 12", b":12") + BODY,
        REQUEST.replace(b"localhost", b"localhose") + BODY,
        REQUEST.replace(b"12\r\n", b"12\r\nTransfer-Encoding: chunked\r\n") + BODY,
        REQUEST.replace(b"12\r\n", b"12\r\nContent-Length: 12\r\n") + BODY,
        REQUEST.replace(b"12\r\n", b"12\n") + BODY,
        REQUEST.replace(b"*/*\r\n", b"*/*\r\nX: y\r\n") + BODY,
    ],
)
def test_anything_but_one_complete_message_is_left_to_the_parser(data: bytes) -> None:
    known = learn(REQUEST)
    assert known is not None
    assert known.read(data) is None


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (REQUEST.replace(b"Content-Length: 12", b"X: y"), b""),
        (REQUEST.replace(b": 12", b": 13"), BODY),
        (REQUEST.replace(b"Accept", b"X-Content-Length"), BODY),
        (b"\r\n\r\n" + REQUEST, BODY),
        (REQUEST.replace(b"*/*", b"a" * MAX_HEAD_BYTES), BODY),
        (ANSWER.replace(b"Content-Type: application/json; charset=utf-8", b"Date: today"), BODY),
    ],
    ids=["no-length", "another-length", "length-twice", "empty-lines-before", "long", "two-dates"],
)
def test_an_ambiguous_head_is_not_cached(head: bytes, body: bytes) -> None:
    assert learn(head, body, is_dated=True) is None


def test_two_messages_in_one_read_are_not_cached_as_one_with_a_longer_head() -> None:
    """The first body looks like the rest of a head: cached, it would let a later body hide a request."""
    tail = b"x\r\nHost: a\r\n\r\n"
    first = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(tail) + tail
    data = first + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for claimed in range(len(data)):
        assert HeadCache[str]().template_of(data, {b"content-length": b"%d" % len(tail)}, claimed, "it") is None


def test_a_recognized_message_is_what_the_parser_reads() -> None:
    """20,000 mutated messages: a recognized one is complete for httptools too, with the same headers and body."""
    rng = random.Random(5)
    bits = [b"\r\n", b"\n", b"\r", b" ", b"0", b"1", b"9", b":", b"\x00", b"Date: ", b"Content-Length: 1\r\n", b"GMT"]
    hits = 0
    for number in range(20_000):
        head, is_answer = ((ANSWER, True), (REQUEST, False))[number % 2]
        known = learn(head, is_dated=is_answer)
        assert known is not None
        body = bytes(rng.choices(b'{"a":1}\r\n', k=rng.choice((1, 9, 12, 120))))
        data = bytearray(head.replace(b": 12", b": %d" % len(body)) + body)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice(bits)
        found = known.read(bytes(data))
        if found is None:
            continue
        hits += 1
        read, first = Read(bytes(data), is_answer=is_answer), Read(head + BODY, is_answer=is_answer)
        assert (read.ends, read.body, read.first) == (1, found[1], first.first), bytes(data)
        assert read.constant() == first.constant()
        assert int(found[0]) == int(dict(read.headers)[b"content-length"])
    assert hits > 5000


def test_the_number_of_cached_heads_is_bounded() -> None:
    repeats = HeadCache[int]()
    heads = [REQUEST.replace(b"*/*", b"%d" % number) for number in range(MAX_HEADS + 1)]
    by_name = {b"content-length": b"12"}
    kept = [repeats.template_of(head + BODY, by_name, 12, number) for number, head in enumerate(heads)]
    assert repeats.template_of(heads[-1] + BODY, by_name, 12, -1) is kept[-1]
    again = repeats.template_of(heads[0] + BODY, by_name, 12, -1)
    assert again is not None and again.head == -1


async def test_mutated_answers_are_read_as_on_a_new_connection() -> None:
    """200 answers, each after a well-formed one and alone: the same head and body, or an error both times."""
    rng = random.Random(9)
    bits = [b"\r\n", b"\n", b" ", b"0", b"7", b":", b"\x00", b"Content-Length: 9\r\n", b"\r\n\r\n", b"GMT", b"1xx"]
    mutated = b""

    async def script(visit: Visit) -> None:
        await visit.say(ANSWER + BODY if visit.target == b"/first" else mutated)

    async def ask(relay: HttpRelay, target: bytes) -> tuple[object, ...]:
        try:
            response = await relay.open(UpstreamRequest(b"POST", target, body=b"{}"))
            body = b""
            while part := await response.read():
                body += part
        except UpstreamError:
            return ("error",)
        return response.status, [pair for pair in response.headers if pair[0] != b"date"], body

    async def compare() -> None:
        relay = HttpRelay(upstream.url, first_byte_timeout_s=0.05, idle_timeout_s=0.05)
        alone = await ask(relay, b"/mutated")
        if relay.idle_connections == 0:
            await ask(relay, b"/first")
        await ask(relay, b"/first")
        connections = upstream.connections
        assert await ask(relay, b"/mutated") == alone, mutated
        assert upstream.connections == connections  # it was the connection that had seen the first
        assert (await ask(relay, b"/first"))[2] == BODY
        await relay.aclose()

    async with raw_upstream(script) as upstream:
        for _ in range(200):
            body = bytes(rng.choices(b'{"a":1}\r\n', k=rng.choice((1, 9, 12, 120))))
            data = bytearray(ANSWER.replace(b": 12", b": %d" % len(body)) + body)
            for _ in range(rng.randrange(3)):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(3)] = rng.choice(bits)
            mutated = bytes(data)
            async with asyncio.timeout(5):
                await compare()


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"POST", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
        (b"POST", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_a_cached_head_never_gives_a_body_to_an_answer_without_one(method: bytes, head: bytes) -> None:
    """The head comes first without a body where one is allowed, then with bytes after it where none is."""
    sent = head

    async def script(visit: Visit) -> None:
        await visit.say(sent)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(2):
            response = await relay.open(UpstreamRequest(b"POST", b"/", body=b"{}"))
            assert await response.read() == b""
        sent = head.replace(b": 0", b": 5") + b"HELLO"
        response = await relay.open(UpstreamRequest(method, b"/", body=b"{}"))
        assert await response.read() == b""
        await asyncio.sleep(0.01)
        assert relay.idle_connections == 0
        await relay.aclose()


def test_a_peer_whose_heads_never_come_again_is_not_asked_for_them_any_more() -> None:
    """To compare each of its messages with the last head would cost for nothing. One that comes again begins anew."""
    known: LastHead[Parsed] = LastHead(HeadCache())
    heads = [REQUEST.replace(b"localhost", b"host-%d" % number) for number in range(MAX_MISSES + 1)]
    for head in heads[:-1]:
        known.learn(head + BODY, {b"content-length": b"12"}, len(BODY), Parsed())
        assert known.template is not None
    known.learn(heads[-1] + BODY, {b"content-length": b"12"}, len(BODY), Parsed())
    assert known.template is None
    known.record_hit()
    known.learn(heads[0] + BODY, {b"content-length": b"12"}, len(BODY), Parsed())
    assert known.template is not None


def test_what_follows_a_recognized_head_is_judged_as_before_it() -> None:
    """Also by one that is the same to the byte, in front of a body of the same or of another length."""
    known = learn(REQUEST)
    assert known is not None
    known.head = Headed([(b"content-length", b"12")], {b"content-length": b"12"})  # type: ignore[assignment]
    for _ in range(2):
        assert known.match(REQUEST + BODY) == (known.head, BODY)
        for wrong in (REQUEST + BODY + b"x", REQUEST + BODY[1:], REQUEST[:-1], REQUEST, b"GET / HTTP/1.1\r\n\r\n"):
            assert known.match(wrong) is None
    longer = known.match(REQUEST.replace(b": 12", b": 13") + BODY + b"x")
    assert longer is not None
    head: Headed = longer[0]  # type: ignore[assignment]
    assert (head.by_name, longer[1]) == ({b"content-length": b"13"}, BODY + b"x")
    assert known.match(REQUEST + BODY) == (known.head, BODY)


class Headed(msgspec.Struct, eq=False):
    headers: list[tuple[bytes, bytes]]
    by_name: dict[bytes, bytes]
