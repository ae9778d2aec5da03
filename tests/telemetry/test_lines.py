"""The log's lines are written in order by a thread, and whoever reads them stops nobody."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any

import msgspec
import pytest

from router.telemetry import Answered, AuditHook, Finished, LineWriter, LogHook, Notified, RecordLines
from router.telemetry.log import REFUSALS, REFUSALS_S

PATIENCE_S = 60.0


class Reader:
    """A file that takes what it is given, once it may: `go`. It records each write and its thread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.is_asked = threading.Event()
        self.writes: list[bytes] = []
        self.threads: set[int] = set()
        self.errors: list[OSError] = []
        self.most = 1 << 30

    def write(self, _fd: int, data: bytes) -> int:
        self.is_asked.set()
        assert self.go.wait(PATIENCE_S)
        self.threads.add(threading.get_ident())
        if self.errors:
            raise self.errors.pop(0)
        self.writes.append(data[: self.most])
        return len(self.writes[-1])


def writer_to(reader: Reader, buffer_bytes: int = 1000) -> LineWriter:
    return LineWriter(1, buffer_bytes=buffer_bytes, write=reader.write)


def test_a_reader_that_does_not_read_stops_nobody_and_what_it_misses_is_said() -> None:
    """What fits into the buffer is kept; the number of other lines follows when it reads again."""
    reader = Reader()
    writer = writer_to(reader)
    writer(b"first\n")
    assert reader.is_asked.wait(PATIENCE_S)
    for _ in range(30):
        writer(b"x" * 99 + b"\n")
    assert writer.dropped == 21
    reader.go.set()
    writer.close(PATIENCE_S)
    first, notice, *kept = b"".join(reader.writes).splitlines()
    assert (first, len(kept)) == (b"first", 9)
    assert json.loads(notice)["count"] == 21
    assert reader.threads == {writer._thread.ident}  # type: ignore[union-attr]


def test_each_batch_is_one_write_and_the_last_one_is_written_at_the_end() -> None:
    """In their order, also if the file takes only a part at a time."""
    reader = Reader()
    reader.most = 7
    reader.go.set()
    writer = writer_to(reader)
    writer(b"one\ntwo\n")
    writer.close(PATIENCE_S)
    writer(b"late\n")
    assert reader.writes == [b"one\ntwo", b"\n"]
    assert writer.dropped == 1


def test_lines_collect_for_a_moment_after_each_write() -> None:
    """Each turn of the thread takes time from the event loop. The end does not wait for the moment to pass."""
    reader = Reader()
    reader.go.set()
    writer = LineWriter(1, pause_s=PATIENCE_S, write=reader.write)
    writer(b"one\n")
    while writer._size:
        pass
    writer(b"two\n")
    writer(b"three\n")
    writer.close(PATIENCE_S)
    assert reader.writes == [b"one\n", b"two\nthree\n"]


def test_lines_that_cannot_be_written_are_counted_and_said() -> None:
    """On a full disk; the next ones are tried again."""
    reader = Reader()
    reader.errors = [OSError(28, "No space left on device")]
    reader.go.set()
    writer = writer_to(reader)
    writer(b"a\nb\n")
    while writer._size:
        pass
    writer(b"c\n")
    writer.close(PATIENCE_S)
    notice, line = b"".join(reader.writes).splitlines()
    assert (json.loads(notice)["count"], line) == (2, b"c")


def test_what_was_dropped_last_is_said_at_the_end() -> None:
    """Once, even if that cannot be written either."""
    reader = Reader()
    writer = writer_to(reader, buffer_bytes=3)
    writer(b"a\n")
    assert reader.is_asked.wait(PATIENCE_S)
    writer(b"b\nc\n")
    reader.go.set()
    writer.close(PATIENCE_S)
    line, notice = b"".join(reader.writes).splitlines()
    assert (line, json.loads(notice)["count"]) == (b"a", 2)
    full = Reader()
    full.errors = [OSError(28, "No space left on device")] * 9
    full.go.set()
    writer = writer_to(full)
    writer(b"a\n")
    writer.close(PATIENCE_S)
    assert not writer._thread.is_alive()  # type: ignore[union-attr]


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    """Somebody who shares standard error may have made it non-blocking."""
    read, write = os.pipe()
    try:
        reader = Reader()
        reader.errors = [BlockingIOError()]
        reader.go.set()
        writer = LineWriter(write, write=reader.write)
        writer(b"a\n")
        writer.close(PATIENCE_S)
        assert reader.writes == [b"a\n"]
    finally:
        os.close(read)
        os.close(write)


def test_the_end_does_not_wait_for_a_reader_that_never_reads() -> None:
    """Its last lines are lost."""
    reader = Reader()
    writer = writer_to(reader)
    writer(b"a\n")
    writer.close(0.01)
    assert not reader.writes
    reader.go.set()


def records(*, say: str, **more: Any) -> dict[str, Any]:
    lines: list[bytes] = []
    log = logging.Logger("router.test")
    log.addHandler(RecordLines(lines.append))
    log.error(say, **more)
    (line,) = lines
    assert line.count(b"\n") == 1
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_traceback_is_one_json_line() -> None:
    """With the level and the logger of the record."""
    try:
        raise RuntimeError("lone \ud800")
    except RuntimeError:
        found = records(say="it failed", exc_info=True)
    assert (found["level"], found["msg"], found["logger"]) == ("error", "it failed", "router.test")
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: lone" in found["traceback"]


def test_a_record_that_cannot_be_rendered_is_a_line_too() -> None:
    """A wrong number of arguments, or a lone surrogate."""
    assert records(say="lone \ud800")["msg"] == "a log record could not be written"


def refusal(status: int, number: int = 0) -> Answered:
    return Answered(f"r{number}", "POST", "/api/pull", status, "refused", "m", "10.0.0.1", 0.5, 9, "why")


class Clock:
    """A clock that is set by hand."""

    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_flood_of_refusals_is_no_flood_of_lines() -> None:
    """The first ones are logged, the others counted; requests that are no refusals are all logged."""
    lines: list[bytes] = []
    clock = Clock()
    hook = LogHook(sink=lines.append, unix_now=float, now=clock)
    for number in range(REFUSALS + 1000):
        hook.on(refusal(403, number))
    hook.on(refusal(200))
    assert len(lines) == REFUSALS + 1
    clock.now_s += REFUSALS_S
    hook.on(refusal(403))
    counted, last = [json.loads(line) for line in lines[-2:]]
    assert (counted["level"], counted["count"], last["status"]) == ("warning", 1000, 403)
    hook.flush()
    assert len(lines) == REFUSALS + 3


def test_what_is_left_out_is_said_at_the_end() -> None:
    """Once."""
    lines: list[bytes] = []
    hook = LogHook(sink=lines.append, unix_now=Clock())
    for _ in range(REFUSALS + 3):
        hook.on(refusal(404))
    hook.flush()
    hook.flush()
    assert [json.loads(line).get("count") for line in lines[REFUSALS:]] == [3]


def test_the_line_of_a_refusal_has_the_address_and_the_reason() -> None:
    """Beside the fields that every request has."""
    lines: list[bytes] = []
    LogHook(sink=lines.append, unix_now=Clock()).on(refusal(403))
    found = json.loads(lines[0])
    assert (found["msg"], found["method"], found["route"], found["status"]) == ("request", "POST", "/api/pull", 403)
    assert (found["requested"], found["client"], found["error"]) == ("m", "10.0.0.1", "why")
    assert (found["duration_ms"], found["outcome"], found["bytes"]) == (500.0, "refused", 9)
    lines.clear()
    LogHook("warning", sink=lines.append).on(refusal(403))
    assert not lines


@pytest.mark.parametrize("text", ["a\x7fb", "a\x9bb", "a\x1bb", "a\x00b", "é\x85"])
def test_no_control_character_reaches_the_log(text: str) -> None:
    """Not even those that JSON allows: a terminal acts on them."""
    lines: list[bytes] = []
    LogHook(sink=lines.append, unix_now=Clock()).on(Notified(text))
    assert json.loads(lines[0])["msg"] == text
    assert not [char for char in lines[0].decode()[:-1] if not char.isprintable()]


@pytest.mark.parametrize("field", ["requested", "variant", "reason", "client", "error", "request_id"])
def test_no_secret_reaches_the_lines_of_a_batch(field: str) -> None:
    """Whichever text of others it is in, whatever the other requests of the batch say. A trace id has 32 hex digits."""
    plain = Finished("r1", "t", "/api/chat", 200, "a", "a", "completed", client="10.0.0.1")
    secret = msgspec.structs.replace(plain, **{field: "see http://u:s3cret@host"})
    for hook_of in (LogHook, AuditHook):
        lines: list[bytes] = []
        hook_of(sink=lines.append).on_requests([], [plain, secret, plain])
        assert b"".join(lines).count(b"\n") == 3
        assert b"s3cret" not in b"".join(lines)
