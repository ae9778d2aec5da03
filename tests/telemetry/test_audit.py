"""The audit: who has used what, a line for each request, in a file of bounded size, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.telemetry import Answered, AuditHook, Decided, Finished, LineWriter, RotatedFile
from router.telemetry.audit import REFUSALS, REFUSALS_S, AuditLine

KEY = "or_coding_" + "a1B2" * 8 + "_c3D4e5"
ENDED = Finished(
    "r1", "coding", "/api/chat", 200, "big", "small", "completed", queue_s=0.25, sent_bytes=1234, duration_s=2.5,
    ttft_s=0.5, tokens_in=12, tokens_out=41, reason="fallback", operation="chat", trace_id="ab" * 16,
    client="10.0.0.9", key_id="ci", card_s=1.5, load_s=4.0, vram_bytes=1, error="the prompt was: hello",
)  # fmt: skip
REFUSED = Answered("r2", "POST", "/api/pull", 403, "refused", "big", "10.0.0.9", 0.5, 9, "no right", "coding", "ci")


def audited(*events: Any, unix_s: float = 1_800_000_000.25) -> list[dict[str, Any]]:
    lines: list[bytes] = []
    hook = AuditHook(lines.append, unix_now=lambda: unix_s)
    for event in events:
        hook.on(event)
    return [json.loads(line) for line in b"".join(lines).splitlines()]


def test_a_request_is_one_line_without_any_text_of_it() -> None:
    """Neither of its prompt nor of an error, which may quote it."""
    assert audited(Decided("r1", "coding", "big", "small", "", "exact"), ENDED) == [
        {
            "ts": "2027-01-15T08:00:00.250+00:00", "request_id": "r1", "trace_id": "ab" * 16, "team": "coding",
            "key_id": "ci", "client": "10.0.0.9", "method": "POST", "route": "/api/chat", "requested": "big",
            "variant": "small", "backend": "local", "status": 200, "outcome": "completed", "tokens_in": 12,
            "tokens_out": 41, "queue_ms": 250, "load_ms": 4000, "card_ms": 1500, "duration_ms": 2500, "bytes": 1234,
        }
    ]  # fmt: skip


def test_what_manages_models_and_what_is_refused_is_audited() -> None:
    managed = msgspec.structs.replace(REFUSED, status=200, outcome="completed")
    found = [(line["team"], line["key_id"], line["status"], line["outcome"]) for line in audited(REFUSED, managed)]
    assert found == [("coding", "ci", 403, "refused"), ("coding", "ci", 200, "completed")]


def test_a_flood_of_refusals_does_not_rotate_away_what_others_did() -> None:
    """At most so many in a period; the rest is counted."""
    lines: list[bytes] = []
    now_s = [100.0]
    hook = AuditHook(lines.append, unix_now=float, now=lambda: now_s[0])
    for _ in range(1000):
        hook.on(REFUSED)
    hook.on(ENDED)
    assert (len(lines), hook.left_out) == (REFUSALS + 1, 1000 - REFUSALS)
    now_s[0] += REFUSALS_S
    hook.on(REFUSED)
    assert len(lines) == REFUSALS + 2


@pytest.mark.parametrize("field", ["route", "requested", "request_id", "outcome"])
def test_a_key_that_a_client_put_into_a_name_is_masked(field: str) -> None:
    """A path token or a key in the wrong place."""
    text = f"/t/{KEY}/api/chat" if field == "route" else KEY
    (line,) = audited(msgspec.structs.replace(REFUSED, **{field: text}))
    assert KEY not in json.dumps(line)
    assert KEY[:20] not in json.dumps(line)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_file_is_rotated_by_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    file = RotatedFile(path, 100, 2)
    for number in range(10):
        file.write(0, b'{"n": %d, "x": "%s"}\n' % (number, b"x" * 30))
    assert sorted(one.name for one in path.parent.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    found = [line["n"] for name in (".2", ".1", "") for line in lines_of(Path(f"{path}{name}"))]
    assert found == [4, 5, 6, 7, 8, 9]
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()


def test_with_none_to_keep_the_file_starts_again(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "a", 10, 0)
    for number in range(3):
        file.write(0, b"%08d\n" % number)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"00000002\n"


def test_writers_that_share_a_file_lose_nothing_when_one_of_them_rotates_it(tmp_path: Path) -> None:
    """As two routers do during a reload; also if a tool of the system moves the file."""
    files = [RotatedFile(tmp_path / "a", 1000, 99) for _ in range(4)]

    def write(which: int) -> None:
        for number in range(100):
            files[which].write(0, b'{"who": %d, "n": %04d}\n' % (which, number + 1000))

    threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (tmp_path / "a").rename(tmp_path / "moved")
    files[0].write(0, b'{"who": 9, "n": 1}\n')
    found = [(line["who"], line["n"]) for one in tmp_path.iterdir() for line in lines_of(one)]
    assert sorted(found) == sorted([*((who, n + 1000) for who in range(4) for n in range(100)), (9, 1)])
    assert all(one.stat().st_size <= 1000 for one in tmp_path.iterdir())


def test_a_disk_that_is_full_is_said_once_and_leaves_no_half_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    file = RotatedFile(tmp_path / "a", 10_000, 2, report=said.append)
    file.write(0, b"first\n")
    real = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:3])

    monkeypatch.setattr(os, "write", short)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            file.write(0, b"second\n")
    assert (tmp_path / "a").read_bytes() == b"first\n"
    assert (len(said), "No space" in said[0]) == (1, True)
    monkeypatch.setattr(os, "write", real)
    file.write(0, b"third\n")
    assert (tmp_path / "a").read_bytes() == b"first\nthird\n"


def test_a_line_that_a_killed_writer_has_cut_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"n": 1}\n{"n":')
    RotatedFile(tmp_path / "a", 10_000, 2).write(0, b'{"n": 2}\n')
    assert (tmp_path / "a").read_bytes().splitlines() == [b'{"n": 1}', b'{"n":', b'{"n": 2}']


def test_lines_that_cannot_be_written_are_counted_and_do_not_wait(tmp_path: Path) -> None:
    """A folder in place of the file: the writer's thread goes on, and so does the loop."""
    (tmp_path / "a").mkdir()
    writer = LineWriter(write=RotatedFile(tmp_path / "a", 100, 1).write)
    hook = AuditHook(writer)
    hook.on_requests([], [ENDED] * 3)
    writer.close(60.0)
    assert writer.dropped == 3


def test_the_fields_are_those_that_the_documents_name() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    for name in AuditLine.__struct_fields__:
        assert f"`{name}`" in page, name
