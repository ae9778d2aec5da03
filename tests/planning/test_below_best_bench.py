"""The count of answers below the best from the log of a run, apart from the router's own count."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BIG, SMALL = "qwen3:32b", "llama3.2:3b"
START = datetime(2027, 1, 1, tzinfo=UTC)
HELD = f"fallback: {BIG} fits, but is held back: swaps_per_minute is spent"


def counted(folder: Path, *requests: tuple[float, float, str, str], foreign: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the bench on `requests`: when each came, how long it waited, which variant answered, and the reason."""
    log, rows = [], []
    for number, (at_s, wait_s, served, reason) in enumerate(requests):
        end = START + timedelta(seconds=at_s + wait_s + 1)
        log.append({"msg": "request", "ts": end.isoformat(), "status": 200, "requested": BIG, "reason": reason,
                    "queue_ms": wait_s * 1000, "duration_ms": wait_s * 1000 + 1000})  # fmt: skip
        rows.append([number, BIG, 8192, "chat", 200, served, wait_s + 1, 40.0, ""])
    (folder / "log").write_text("a line of another kind\n" + "\n".join(map(json.dumps, log)))
    (folder / "asked").write_text(json.dumps(rows))
    (folder / "config").write_text(json.dumps({"chains": {BIG: [BIG, SMALL]}}))
    files = (f"--{name}={folder / name}" for name in ("log", "asked", "config"))
    command = [sys.executable, str(ROOT / "bench" / "below_best.py"), *files, "--foreign", *foreign]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_an_answer_below_the_best_that_the_router_does_not_own_up_to_fails_the_bench(tmp_path: Path) -> None:
    """What is said counts on both sides; what could not fit beside other programs counts on neither."""
    best, said, unsaid = (0, 0, BIG, "fits"), (10, 0, SMALL, HELD), (20, 0, SMALL, f"fallback: {BIG} too big")
    code, text = counted(tmp_path, best, said)
    assert (code, "1 counted, 1 by the router; counted and not said: 0" in text) == (0, True), text
    code, text = counted(tmp_path, best, said, unsaid)
    assert (code, "2 counted, 1 by the router; counted and not said: 1" in text) == (1, True), text
    code, text = counted(tmp_path, best, said, unsaid, foreign=("2:12000",))
    assert (code, "1 counted, 1 by the router; counted and not said: 0" in text) == (0, True), text


@pytest.mark.slow
def test_memory_that_others_had_while_a_request_waited_is_no_better_choice(tmp_path: Path) -> None:
    """They gave it back before the answer began, too late for the choice."""
    waits, frees = (0, 30, SMALL, f"fallback: {BIG} too big"), (10, 0, BIG, "fits")
    code, text = counted(tmp_path, waits, frees, foreign=("0:12000", "1:0"))
    assert (code, "below best: 0 counted" in text) == (0, True), text
