"""Each command at 80 columns: no line is longer, except for what is to be copied, and no name is broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from router.cli import explain, ps, teams, top, usage
from router.cli.main import COMMANDS
from router.core.teams.usage import FIGURES
from tests.cli.test_fit import run as run_fit
from tests.cli.test_fit import show_of
from tests.cli.test_main import run
from tests.cli.test_top import ASKED, BOARD, MODEL

LONG = "hf.co/bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M-with-a-long-tag"
NAMES = {
    "short": ("llama3.3:70b", "qwen3:4b"),
    "long": (LONG, "registry.example.com/team/Qwen3-235B-A22B-Thinking:q2_K"),
    "longer than the terminal": ("x" * 100 + ":latest", "qwen3:4b"),
}
UP = {"up": True, "version": "1", "error": "", "stale_since": None}
GPUS = [{"name": "NVIDIA RTX A5000", "free_bytes": 20 << 30, "total_bytes": 24 << 30} for _ in range(3)]
WHY = "GPU 0 lacks 19.6 GiB for it, even if all others are unloaded; a smaller context would not be enough"
NOTE = "a chain names qwen3:14bb, which is not installed (did you mean qwen3:14b?), so it is left out of each decision"


def explained(names: tuple[str, str]) -> dict[str, Any]:
    row = {"num_ctx": 32768, "need_bytes": 45 << 30, "have_bytes": 24 << 30, "detail": WHY}
    rows = [{"model": names[0], "verdict": "too_big", **row}, {"model": names[1], "verdict": "resident", **row}]
    facts = {"chain": names[0], "outcome": "fallback", "reason": f"fallback: {names[0]} too big", "chosen": names[1]}
    return {**facts, "variants": rows, "gpus": GPUS, "notes": [NOTE], "ollama": UP}


def state(names: tuple[str, str]) -> dict[str, Any]:
    row = {"size_bytes": 40 << 30, "gpu_percent": 61, "context_length": 32768, "in_flight": 2, "loaded_by_router": True}
    rows = [{"name": name, "advice": f"{names[1]} would run fully on the GPU instead", **row} for name in names]
    return {"residents": rows, "gpus": GPUS, "notes": [NOTE], "ollama": UP}


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rich take the output for a terminal of 80 columns."""
    for name, value in (("FORCE_COLOR", "1"), ("NO_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)


def check(text: str, names: tuple[str, ...]) -> None:
    """Assert that lines fit, and that each name stands whole on a line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for line in plain.splitlines():
        is_word = len(line.split()) <= 2 and any(len(word) > 70 for word in line.split())
        assert len(line) <= 80 or is_word or line.startswith("ollama pull "), line
    assert all(any(name in line for line in plain.splitlines()) for name in names)


@pytest.mark.parametrize("kind", NAMES)
def test_explain(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The title names the chain and the cards, the rows the variants."""
    monkeypatch.setattr(explain, "ask", lambda *_, **__: explained(NAMES[kind]))
    assert run(monkeypatch, "explain", "x") == 0
    check(capsys.readouterr().out, NAMES[kind])


@pytest.mark.parametrize("kind", NAMES)
def test_ps(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Three cards in the title, an advice per row."""
    monkeypatch.setattr(ps, "ask", lambda *_, **__: state(NAMES[kind]))
    assert run(monkeypatch, "ps") == 0
    check(capsys.readouterr().out, NAMES[kind])


TODAY = {"requests": 123456, "tokens_in": 98_765_432, "tokens_out": 12_345_678, "card_ms": 86_400_000}
LEFT = {"requests": {"limit": 600, "remaining": 12}, "tokens": {"limit": 20_000_000, "remaining": 1_234_567}}


def team_row(name: str) -> dict[str, Any]:
    had = {"served_s": 12345.6, "lag_s": 78.9, "in_flight": 1}
    return {"team": name, "share": 2.5, "keys": [1, 2], "waiting": 12, "today": TODAY, "left": LEFT, **had}


@pytest.mark.parametrize("names", [("coding", "chat"), ("a" * 64, "chat")])
def test_teams(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A busy day; names may have 64 characters."""
    page = {"default_team": names[1], "teams": [team_row(name) for name in names]}
    monkeypatch.setattr(teams, "ask", lambda *_, **__: page)
    assert run(monkeypatch, "teams") == 0
    text = capsys.readouterr().out
    check(text, names)
    assert "served" in text
    assert "12345.6 s" in text
    assert "78.9 s" in text


@pytest.mark.parametrize("kind", NAMES)
def test_usage(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By all names at once."""
    figures = dict.fromkeys(FIGURES, 123_456_789)
    by = ["hour", "team", "model", "kind"]
    row = {"hour": "2027-01-15T08:00Z", "team": "coding", "model": NAMES[kind][0], "kind": "chat", **figures}
    page = {"from": None, "to": None, "by": by, "usage": [row, {**row, "model": NAMES[kind][1]}]}
    monkeypatch.setattr(usage, "ask", lambda *_, **__: page)
    assert run(monkeypatch, "usage", "--by", ",".join(by)) == 0
    check(capsys.readouterr().out, NAMES[kind])


@pytest.mark.parametrize("kind", ["short", "long"])  # a live view cannot show a line that is longer than the terminal
def test_top(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A load, a queue and decisions."""
    queue = [{"position": n, "model": NAMES[kind][n % 2], "since": 0} for n in range(4)]
    loading = {"model": NAMES[kind][0], "evicts": [NAMES[kind][1]]}
    board = {**BOARD, "models": [{**MODEL, "name": NAMES[kind][1]}], "queue": queue, "loading": loading}
    board["notes"] = [NOTE]
    asked = {**ASKED, "requested": NAMES[kind][0], "chosen": NAMES[kind][1], "reason": WHY}
    monkeypatch.setattr(top, "_read", lambda _: (board, [asked]))
    assert run(monkeypatch, "top", "--once") == 0
    check(capsys.readouterr().out, NAMES[kind])


@pytest.mark.parametrize("cards", [("24564",), ("24564", "24564"), ("8192",) * 6])
@pytest.mark.parametrize("command", ["fit", "advise"])
@pytest.mark.parametrize("name", ["big", "hf.co_bartowski_Llama-3.3-70B-Instruct-GGUF_Q4_K_M-with-a-long-tag"])
def test_fit_and_advise(command: str, name: str, cards: tuple[str, ...], tmp_path: Path) -> None:
    """The title names the model and its settings; up to six cards are columns."""
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(show_of("llama3.3-70b")))
    options = [part for card in cards for part in ("--gpu", card)]
    _, text = run_fit(command, str(path), *options, "--num-ctx", "8192")
    check(text, (name,))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each command."""
    assert run(monkeypatch, command, "--help") == 0
    check(capsys.readouterr().out, (command,))


def test_the_list_of_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`ollama-router --help`."""
    assert run(monkeypatch, "--help") == 0
    check(capsys.readouterr().out, ("advise",))
