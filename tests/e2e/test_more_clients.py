"""The recipes of docs/clients.md as they are written, and clients that are too big for the suite's environment.

A recipe runs in this Python if it has the client; else in the one that CLIENTS_PYTHON names:

    python3 -m venv /tmp/clients && /tmp/clients/bin/pip install llama-index-llms-ollama aider-chat
    CLIENTS_PYTHON=/tmp/clients/bin/python scripts/test tests/e2e/test_more_clients.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import CHAIN, SERVED, Rig

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/clients.md").read_text()
RECIPES: list[tuple[str, str]] = re.findall(r"<!-- tested: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
ELSEWHERE = os.environ.get("CLIENTS_PYTHON", "")
WAIT_S = 240
pytestmark = [pytest.mark.slow, pytest.mark.real_time]


def python_with(module: str) -> str:
    """Return a Python that has a client; skip the test if there is none."""
    if importlib.util.find_spec(module) is not None:
        return sys.executable
    has_it = [ELSEWHERE, "-c", f"import importlib.util as u; exit(u.find_spec({module!r}) is None)"]
    if not ELSEWHERE or subprocess.run(has_it).returncode:
        pytest.skip(f"{module} is not installed; CLIENTS_PYTHON may name a Python that has it")
    return ELSEWHERE


def run(argv: list[str], folder: Path, **env: str) -> str:
    """Run a client in an empty folder; return what it printed."""
    full = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA", "PYTHON"))}
    full |= {"HOME": str(folder), "NO_PROXY": "*", **env}
    done = subprocess.run(argv, cwd=folder, env=full, capture_output=True, text=True, timeout=WAIT_S, stdin=-3)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_every_recipe_in_python_is_run() -> None:
    """A block without the comment in front of it would be run by nobody."""
    assert len(RECIPES) == len(re.findall(r"^```python$", PAGE, re.MULTILINE))


@pytest.mark.parametrize(("client", "recipe"), RECIPES, ids=[client for client, _ in RECIPES])
def test_a_recipe_prints_the_variant_that_answered(client: str, recipe: str, rig: Rig, tmp_path: Path) -> None:
    """As it is written, except for the address."""
    module = {"langchain": "langchain_ollama"}.get(client, client)
    program = recipe.replace("http://127.0.0.1:11435", rig.url)
    assert program != recipe
    said = run([python_with(module), "-c", program], tmp_path)
    assert said.splitlines()[-1] == SERVED


def test_llama_index_asks_for_a_whole_context_unless_it_is_told(rig: Rig, tmp_path: Path) -> None:
    """The reason for context_window in its recipe."""
    python = python_with("llama_index")
    program = f"from llama_index.llms.ollama import Ollama\nm = Ollama(model={CHAIN!r}, base_url={rig.url!r})\n"
    run([python, "-c", f"{program}try: m.complete('hi')\nexcept Exception as why: print(why)"], tmp_path)
    assert max(body.get("options", {}).get("num_ctx", 0) for body in rig.asked("/api/chat")) > 100_000


def test_aider_changes_its_context_without_a_reload(rig: Rig, tmp_path: Path) -> None:
    """A long message and a short one: one load, and answers by what fits."""
    python = python_with("aider")
    options = ["--yes-always", "--no-git", "--no-check-update", "--no-show-model-warnings", "--no-auto-commits"]
    options += ["--model", f"ollama_chat/{CHAIN}", "--map-tokens", "0", "--no-stream", "--analytics-disable"]
    (tmp_path / "a.txt").write_text("hello\n")
    env = {"OLLAMA_API_BASE": rig.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    for message in ("[[tokens=5]] say hi " + "again and again " * 800, "[[tokens=5]] say hi"):
        said = run([python, "-m", "aider", *options, "--message", message, "a.txt"], tmp_path, **env)
        assert "6 received" in said, said[-2000:]
    contexts = {body["options"]["num_ctx"] for body in rig.asked("/api/chat") if "num_ctx" in body.get("options", {})}
    assert contexts
    assert rig.loads.count(SERVED) <= 1
    assert rig.residents() == [SERVED]
