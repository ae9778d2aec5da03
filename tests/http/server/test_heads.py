"""What the head of a request must be, judged without a parser, and how the head of an answer is rendered."""

import pytest

from router.http.headers import header_lines
from router.http.server import heads
from router.http.server.heads import Head, continues, judge, split_target, without_upgrade
from router.http.server.rendering import NO_BODY, UNKNOWN, render


@pytest.fixture(autouse=True)
def _way():
    """No edge is here: once is enough."""


def judged(*headers, version="1.1"):
    return judge(headers, dict(headers), version)


HOST = (b"host", b"localhost")


@pytest.mark.parametrize(
    ("headers", "version", "status"),
    [
        ([HOST], "1.1", None),
        ([HOST], "1.0", None),
        ([], "1.0", None),
        ([], "1.1", 400),
        ([HOST, HOST], "1.1", 400),
        ([HOST], "2.0", 505),
        ([HOST], "1.2", 400),
        ([HOST, (b"content-length", b"1"), (b"content-length", b"1")], "1.1", 400),
        ([HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "1.1", 400),
        ([HOST, (b"transfer-encoding", b"Chunked")], "1.1", None),
        ([HOST, (b"transfer-encoding", b"gzip")], "1.1", 501),
        ([HOST, (b"transfer-encoding", b"chunked")], "1.0", 400),
        ([(b"host", b"a b")], "1.1", 400),
        ([HOST, (b"x", b"1"), (b"x", b"2")], "1.1", None),
    ],
)
def test_a_head_that_two_parsers_could_read_differently_is_refused(headers, version, status):
    """Though the parser in front lets it through."""
    found = judged(*headers, version=version)
    assert (found and found[0]) == status


def test_hosts_that_clients_invent_are_not_all_remembered():
    """A well-formed one is let in all the same."""
    for number in range(heads.MAX_SEEN + 10):
        assert judged((b"host", b"host-%d" % number)) is None
    assert len(heads._SEEN_HOSTS) <= heads.MAX_SEEN
    assert judged((b"host", b"x" * 1000)) is None
    assert b"x" * 1000 not in heads._SEEN_HOSTS


@pytest.mark.parametrize(
    ("url", "method", "found"),
    [
        (b"/a?b", "GET", (b"/a?b", None)),
        (b"HTTP://h:1/a?b", "GET", (b"/a?b", b"h:1")),
        (b"http://h", "GET", (b"/", b"h")),
        (b"*", "OPTIONS", (b"*", None)),
        (b"*", "GET", None),
        (b"http://", "GET", None),
        (b"http://h?x", "GET", None),
        (b"http://u@h/", "GET", None),
        (b"http://h#x/", "GET", None),
        (b"https://h/", "GET", None),
        (b"h:80", "CONNECT", None),
        (b"/%zz", "GET", None),
        (b"/a%2", "GET", None),
        (b"http://h/%", "GET", None),
        (b"/%2F%ff%00?%zz", "GET", (b"/%2F%ff%00?%zz", None)),
    ],
)
def test_a_target_is_a_path_or_an_absolute_address(url, method, found):
    """What is neither is refused."""
    assert split_target(url, method) == found


@pytest.mark.parametrize(
    ("expectation", "found"),
    [(None, False), (b"", False), (b"100-Continue", True), (b"x, 100-continue", True), (b"x", None), (b"100", None)],
)
def test_the_only_expectation_is_to_continue(expectation, found):
    """None is an expectation that cannot be met."""
    assert continues(expectation) is found


def test_a_head_is_rendered_again_without_its_upgrade():
    """All else of it stays, also what comes twice."""
    headers = [
        (b"host", b"x"),
        (b"upgrade", b"h2c"),
        (b"x", b"1"),
        (b"upgrade", b"h3"),
        (b"x", b""),
        (b"upgraded", b"y"),
    ]
    head = b"POST /a?b HTTP/1.0\r\nhost: x\r\nx: 1\r\nx: \r\nupgraded: y\r\n\r\n"
    assert without_upgrade(b"POST", b"/a?b", "1.0", headers) == head


def rendered(*headers, method="GET", status=200, http_10=False, is_kept=True, lines=b"", body_bytes=UNKNOWN):
    head = Head(method, b"/", b"/", [], {}, http_10)
    return render(head, status, headers, lines, 0.0, is_kept=is_kept, body_bytes=body_bytes)


LENGTH = (b"content-length", b"5")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: rendered(LENGTH), (True, False, 5)),
        (lambda: rendered(), (True, True, UNKNOWN)),
        (lambda: rendered(body_bytes=5), (True, False, 5)),
        (lambda: rendered(body_bytes=5, method="HEAD"), (True, False, NO_BODY)),
        (lambda: rendered(http_10=True), (False, False, UNKNOWN)),
        (lambda: rendered(LENGTH, http_10=True), (True, False, 5)),
        (lambda: rendered(LENGTH, method="HEAD"), (True, False, NO_BODY)),
        (lambda: rendered(status=204), (True, False, NO_BODY)),
        (lambda: rendered(LENGTH, is_kept=False), (False, False, 5)),
        (lambda: rendered(LENGTH, (b"connection", b"Close")), (False, False, 5)),
        (lambda: rendered(LENGTH, (b"connection", b"keep-alive")), (True, False, 5)),
        (lambda: rendered(LENGTH, (b"transfer-encoding", b"chunked")), (True, False, 5)),
    ],
)
def test_the_framing_of_an_answer_is_ours(found, expected):
    """Whatever an application says of it; only a wish to close is heard."""
    data, *framing = found()
    assert tuple(framing) == expected
    assert data.count(b"transfer-encoding") == expected[1]
    assert (b"connection: close" in data) is not expected[0]


@pytest.mark.parametrize("value", [b"a\r\nevil: 1", b"a\nb", b"a\rb", b"a\x00b"])
def test_a_header_that_would_be_two_is_refused(value):
    """Neither one of ours nor one of an upstream."""
    with pytest.raises(ValueError, match="line break"):
        rendered((b"x", value))


def test_the_length_of_a_complete_answer_is_added_to_its_lines():
    """The lines were checked when they were rendered."""
    data, *_ = rendered(lines=header_lines([(b"x", b"1")]), body_bytes=5)
    assert data.endswith(b"\r\nx: 1\r\ncontent-length: 5\r\n\r\n")
    with pytest.raises(ValueError, match="line break"):
        header_lines([(b"x", b"1"), (b"y", b"2\r\nevil: 1")])
