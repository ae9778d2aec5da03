"""Whether a head shows the key of the fronts, which is found out once for all requests that repeat it."""

import hashlib
from collections.abc import Iterable

from router.api.fronts import Fronts
from router.config import Rulebook
from router.core.decision.verdict import Verdict
from router.http.server.heads import Head


class _Node:
    is_draining = False

    def declined(self, why: str, verdicts: Iterable[Verdict] = ()) -> bytes:  # noqa: ARG002
        return why.encode()


def _fronts(key: bytes) -> Fronts:
    return Fronts((hashlib.sha256(key).digest(),), _Node(), lambda: Rulebook.__new__(Rulebook))


def _head(key: bytes) -> Head:
    headers = [(b"host", b"a"), (b"authorization", b"Bearer " + key)]
    return Head("POST", b"/api/chat", b"/api/chat", headers, dict(headers))


def test_a_head_that_repeats_is_known_by_each_nodes_own_keys() -> None:
    one, other, head = _fronts(b"key-of-one"), _fronts(b"key-of-other"), _head(b"key-of-one")
    assert [one.knows(head), one.knows(head)] == [True, True]
    assert [other.knows(head), other.knows(head), one.knows(head)] == [False, False, True]


def test_a_head_without_the_key_stays_unknown_when_it_repeats() -> None:
    fronts, head = _fronts(b"key-of-one"), _head(b"another-key")
    assert [fronts.knows(head), fronts.knows(head)] == [False, False]
