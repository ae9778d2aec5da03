"""A real Open WebUI in front of the router: sign up, sign in, list, chat, pull.

It is two gigabytes and more, so nothing here installs it. With it in an environment of its own (Python 3.11 or 3.12):

    OPEN_WEBUI=/path/to/venv/bin/open-webui scripts/test tests/e2e/test_open_webui.py -s
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from ollama_simulator.models.library import real_model
from ollama_simulator.models.registry import Registry
from tests.e2e.conftest import CHAIN, SERVED, VARIANTS, Rig

PROGRAM = os.environ.get("OPEN_WEBUI", "")
PULLED = "qwen3:4b"
START_S = 600.0
"""Its first start makes a database, and imports a lot."""
PERSON = {"name": "Ada", "email": "ada@example.org", "password": "correct horse battery", "profile_image_url": ""}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_time,
    pytest.mark.skipif(not PROGRAM, reason="Open WebUI is not named: OPEN_WEBUI=…/bin/open-webui"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@dataclass
class WebUi:
    """A running Open WebUI, as its own page uses it."""

    url: str
    token: str = ""

    def ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Send a request with the token of who is signed in; return the body."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return bytes(answer.read())

    def is_up(self) -> bool:
        """Return True once it answers."""
        try:
            return json.loads(self.ask("/health"))["status"] is True
        except (URLError, OSError):
            return False


def environment(folder: Path, upstream: str) -> dict[str, str]:
    """Return what it is started with: the recipe of docs/clients.md, and nothing that it would download."""
    return {
        **os.environ,
        "OLLAMA_BASE_URL": upstream,
        "ENABLE_OPENAI_API": "false",
        "DATA_DIR": str(folder),
        "WEBUI_SECRET_KEY": "for this test only",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "ollama",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def webui(_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    """Start it in an empty folder; the first person who signs up is its admin."""
    folder, port = tmp_path_factory.mktemp("webui"), free_port()
    log = (folder / "log").open("wb")
    argv = [PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(argv, env=environment(folder, _rig.url), cwd=folder, stdout=log, stderr=log)
    one, started_s = WebUi(f"http://127.0.0.1:{port}"), time.monotonic()
    try:
        while not one.is_up():
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < started_s + START_S, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        version = json.loads(one.ask("/api/version"))["version"]
        print(f"\nOpen WebUI {version}: up after {time.monotonic() - started_s:.0f} s")
        one.ask("/api/v1/auths/signup", PERSON)
        who = {key: PERSON[key] for key in ("email", "password")}
        one.token = json.loads(one.ask("/api/v1/auths/signin", who))["token"]
        yield one
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def timed(what: str, started_s: float) -> None:
    """Print how long something took, for who runs this with -s."""
    print(f"  {what}: {time.monotonic() - started_s:.2f} s")


def test_its_list_of_models_has_the_chain(webui: WebUi, rig: Rig) -> None:
    """Beside what is installed; derived tags are hidden."""
    started_s = time.monotonic()
    names = {model["id"] for model in json.loads(webui.ask("/api/models"))["data"]}
    timed(f"{len(names)} models listed", started_s)
    assert {CHAIN, *VARIANTS} <= names
    assert rig.loads == []


def test_a_chat_with_the_70b_is_served_by_what_fits(webui: WebUi, rig: Rig) -> None:
    """Streamed, as the page asks for it, and whole."""
    body = {"model": CHAIN, "messages": [{"role": "user", "content": "[[tokens=20]] why is the sky blue?"}]}
    started_s = time.monotonic()
    lines = webui.ask("/api/chat/completions", {**body, "stream": True}).decode().splitlines()
    timed("a streamed chat, with its load", started_s)
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events if event.get("choices"))
    started_s = time.monotonic()
    whole = json.loads(webui.ask("/api/chat/completions", {**body, "stream": False}))
    timed("a chat, without a load", started_s)
    assert whole["choices"][0]["message"]["content"]
    assert rig.residents() == [SERVED]


def test_its_admin_pulls_through_the_router(webui: WebUi, rig: Rig) -> None:
    """With progress, line by line; the model is in its list after that."""
    registry = Registry(tls=True, bytes_per_s=2e9)
    registry.add(real_model(PULLED))
    rig.do(lambda: setattr(rig.sim.host, "registry", registry))
    started_s = time.monotonic()
    lines = webui.ask("/ollama/api/pull/0", {"model": PULLED, "stream": True}).decode().splitlines()
    timed(f"a pull with {len(lines)} lines of progress", started_s)
    assert json.loads(lines[-1]) == {"status": "success"}
    assert PULLED in {model["model"] for model in json.loads(webui.ask("/ollama/api/tags"))["models"]}


def test_it_shows_what_is_loaded(webui: WebUi, rig: Rig) -> None:
    """As the router does: fully on the GPU."""
    shown = json.loads(webui.ask("/ollama/api/ps"))
    rows = [row for found in shown.values() for row in found["models"]] if "models" not in shown else shown["models"]
    assert {row["model"] for row in rows} == set(rig.residents())
    assert all(row["size_vram"] == row["size"] for row in rows)
