"""`top`: one frame of it for each state, the live view, and the scripts for shells."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from router.cli import top
from router.cli.top import frame
from router.core.units import GIB
from router.errors import UpstreamError
from tests.cli.test_main import run

TOTALS = {"requests": 7, "spills_avoided": 6, "switches": 4}
MODEL = {"name": "qwen3:8b", "bytes": 8 * GIB, "context": 8192, "in_flight": 1, "on_cpu_bytes": 0, "kept": False}
FREE = {"kind": "free", "model": "", "bytes": 16 * GIB}
CARD = {
    "index": 0, "name": "NVIDIA RTX A5000", "total_bytes": 24 * GIB,
    "blocks": [{"kind": "model", "model": "qwen3:8b", "bytes": 8 * GIB}, FREE],
}  # fmt: skip
BOARD: dict[str, Any] = {
    "version": "1.0", "ready": True, "draining": False, "ollama": {"up": True, "version": "0.33.0", "error": ""},
    "totals": TOTALS, "notes": [], "cards": [CARD], "models": [MODEL], "loading": None, "queue": [],
}  # fmt: skip
ASKED = {
    "kind": "request", "at": 0, "requested": "llama3.3:70b", "chosen": "qwen3:8b", "reason": "fallback: too big",
}  # fmt: skip


def shown(board: dict[str, Any], decisions: list[dict[str, Any]] = [], width: int = 80) -> str:  # noqa: B006
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(frame(board, decisions, width))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_frame_has_the_card_to_scale_its_models_and_decisions_as_sentences():
    """At 80 columns nothing is longer."""
    text = shown(BOARD, [ASKED, {**ASKED, "chosen": ""}, {"kind": "switch finished", "at": 0, "model": "qwen3:8b"}])
    assert "Ollama 0.33.0 · ready" in text
    assert "7 requests, 6 spills avoided, 4 switches" in text
    assert "GPU 0 NVIDIA RTX A5000  8.0 of 24.0 GiB in use" in text
    assert (text.count("█"), text.count("░")) == (26, 53)
    assert "qwen3:8b  8.0 GiB · 8192 tokens · 1 in flight" in text
    assert "llama3.3:70b → qwen3:8b  fallback: too big" in text
    assert "llama3.3:70b refused" in text
    assert "switch finished: qwen3:8b" in text
    assert "Nothing waits." in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_of_a_kind_is_not_several():
    """As people say it."""
    for count, text in ((0, "0 requests, 0 spills avoided, 0 switches"), (1, "1 request, 1 spill avoided, 1 switch")):
        assert text in shown({**BOARD, "totals": dict.fromkeys(TOTALS, count)})


def test_a_model_says_its_backend_if_there_are_several():
    """The same model may be loaded on two."""
    assert "in flight · on tower" in shown({**BOARD, "models": [{**MODEL, "backend": "tower"}]})
    assert " · on " not in shown(BOARD)


def test_a_decision_says_its_backend_if_there_are_several():
    """The one that served, or loaded; not where there is one only."""
    rows = [
        {**ASKED, "backend": "tower"},
        {**ASKED, "chosen": ""},
        {"kind": "switch finished", "at": 0, "model": "a", "backend": "desk"},
    ]
    text = shown({**BOARD, "cards": [{**CARD, "backend": "tower"}]}, rows)
    assert "llama3.3:70b → qwen3:8b on tower  fallback" in text
    assert "llama3.3:70b refused" in text
    assert "switch finished: a on desk" in text
    assert " on tower" not in shown(BOARD, rows)


def test_a_load_the_queue_and_what_is_wrong_are_shown():
    """A spilled model, one that is kept, an Ollama that is away, unknown memory."""
    board = {
        **BOARD, "ready": False, "ollama": {"up": False, "version": "", "error": "refused"}, "notes": ["drift"],
        "cards": None, "models": [{**MODEL, "on_cpu_bytes": GIB, "kept": True, "in_flight": 0, "context": None}],
        "loading": {"model": "a:1b", "evicts": ["qwen3:8b"]},
        "queue": [{"position": n, "model": "a:1b" if n == 1 else "", "since": 0} for n in range(1, 9)],
    }  # fmt: skip
    text = shown(board)
    assert "not ready" in text
    assert "Ollama does not answer: refused" in text
    assert "drift" in text
    assert "Free VRAM cannot be read" in text
    assert "? tokens · idle · 1.0 GiB on the CPU · kept" in text
    assert "a:1b  loading, in place of qwen3:8b" in text
    assert "8 requests waiting" in text
    assert re.search(r"a:1b  1 request waits for its load, for \d+ s", text)
    assert re.search(r"any variant  7 requests wait for memory, the first for \d+ s", text)
    assert "draining" in shown({**BOARD, "draining": True})


def test_one_is_singular_and_more_models_than_lines_are_counted():
    """One request, one spill, one switch, one token."""
    totals = {"requests": 1, "spills_avoided": 1, "switches": 1}
    queue = [{"position": n, "model": f"m:{n}b", "since": 0} for n in range(1, 9)]
    text = shown({**BOARD, "totals": totals, "models": [{**MODEL, "context": 1}], "queue": queue})
    assert "1 request, 1 spill avoided, 1 switch\n" in text
    assert "1 token ·" in text
    assert "m:5b  1 request waits for a turn" in text
    assert "m:6b" not in text
    assert "and 3 more models" in text


def test_what_a_front_does_not_know_is_left_out():
    """Its nodes switch, and not itself."""
    assert "7 requests, 6 spills avoided\n" in shown({**BOARD, "totals": {**TOTALS, "switches": None}})


def test_names_cannot_move_the_cursor():
    """They come from clients."""
    assert "\x1b" not in shown(BOARD, [{**ASKED, "requested": "a\x1b[2J"}])


def test_into_a_pipe_it_is_printed_once(monkeypatch, capsys):
    """With the exit code of `ps` if the state is old."""
    pages = {"/router/board": BOARD, "/router/decisions": {"decisions": [ASKED]}}
    monkeypatch.setattr(top, "ask", lambda _admin, path: pages[path])
    assert run(monkeypatch, "top") == 0
    assert "llama3.3:70b → qwen3:8b" in capsys.readouterr().out
    pages["/router/board"] = {**BOARD, "ollama": {"up": False, "version": "", "error": "refused", "stale_since": None}}
    assert run(monkeypatch, "top", "--once") == 1


def test_the_live_view_waits_for_a_router_that_went_away(monkeypatch, capsys):
    """Ctrl-C ends it."""
    answers = [BOARD, UpstreamError("cannot reach a router"), BOARD]

    def ask(_admin: str, path: str) -> dict[str, Any]:
        if path != "/router/board":
            return {"decisions": []}
        if not answers:
            raise KeyboardInterrupt
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(top, "ask", ask)
    monkeypatch.setattr(top.time, "sleep", lambda _: None)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert run(monkeypatch, "top") == 130
    assert "cannot reach a router" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_printed_for_each_shell(shell, monkeypatch, capsys):
    """It asks this program."""
    assert run(monkeypatch, "completion", shell) == 0
    assert "_OLLAMA_ROUTER_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "at", "found"), [("ollama-router ex", 1, "explain"), ("ollama-router ps --", 2, "--json")]
)
def test_commands_and_options_are_completed(words, at, found):
    """As bash's script asks for them."""
    asks = {"_OLLAMA_ROUTER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    done = subprocess.run(
        [sys.executable, "-m", "router"], env={**os.environ, **asks}, capture_output=True, text=True, check=False
    )
    assert found in done.stdout.split()
