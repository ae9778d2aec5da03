"""`ollama-router usage`: what it asks for, what it prints, and how it ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from router.core.teams.usage import FIGURES
from tests.cli.test_main import run

ROW = dict.fromkeys(FIGURES, 0) | {"requests": 3, "tokens_in": 12, "card_ms": 1500, "vram_mib_s": 1024 * 3600 * 2}
PAGE = {"problem": "disk full", "from": None, "to": "2027-02-01T00:00Z", "by": ["team", "model"]}


class Admin(HTTPServer):
    """The admin address of a router with one row of usage. It records what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Admin)
        self.server.asked.append(self.path)
        is_wrong, is_csv = "by=teem" in self.path, "format=csv" in self.path
        usage = [{"team": "coding", "model": "big", **ROW}]
        body = "team,model\r\ncoding,big\r\n" if is_csv else json.dumps({**PAGE, "usage": usage})
        self.send_response(400 if is_wrong else 200)
        self.end_headers()
        self.wfile.write((json.dumps({"error": "by='teem' is not a name"}) if is_wrong else body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    with Admin() as server:
        monkeypatch.setenv("OLLAMA_ROUTER_ADMIN_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_rows_are_lines_with_titles_in_a_pipe(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The period first; times in seconds, memory in GiB hours."""
    assert run(monkeypatch, "usage", "--from", "2027-01-01") == 0
    assert admin.asked == ["/router/usage?by=team%2Cmodel&from=2027-01-01"]
    streams = capsys.readouterr()
    period, titles, row = streams.out.splitlines()
    assert streams.err == "disk full\n"
    assert period == "usage from the beginning to 2027-02-01T00:00Z"
    found = dict(zip(titles.split("\t"), row.split("\t"), strict=True))
    assert (found["team"], found["model"], found["requests"]) == ("coding", "big", "3")
    assert (found["on runners"], found["GiB·h"]) == ("1.5 s", "2.00")


def test_csv_is_what_the_router_says(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "usage", "--csv", "--by", "hour,team", "--to", "2027-02-01") == 0
    assert admin.asked == ["/router/usage?format=csv&by=hour%2Cteam&to=2027-02-01"]
    assert capsys.readouterr().out.split() == ["team,model", "coding,big"]


def test_focus_is_asked_for_by_its_name(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "usage", "--focus") == 0
    assert admin.asked == ["/router/usage?format=focus&by=team%2Cmodel"]
    assert capsys.readouterr().out


def test_json_is_the_page(admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "usage", "--json") == 0
    assert json.loads(capsys.readouterr().out)["usage"][0]["card_ms"] == 1500
    assert len(admin.asked) == 1


@pytest.mark.parametrize("arguments", [("--by", "teem"), ("--by", "teem", "--csv")])
def test_a_name_that_there_is_not_is_wrong_usage(
    arguments: tuple[str, ...], admin: Admin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what the router says of it in one line."""
    assert run(monkeypatch, "usage", *arguments) == 2
    assert capsys.readouterr().err == "by='teem' is not a name\n"
    assert admin.asked


def test_without_a_router_it_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OLLAMA_ROUTER_ADMIN_URL", "http://127.0.0.1:9")
    assert run(monkeypatch, "usage", "--csv") == 1
    assert "cannot reach a router" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "body"), [(404, "404 page not found"), (200, "<html>")])
def test_another_server_than_a_router_is_named_as_such(
    status: int, body: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be the address for clients, or Ollama's."""
    monkeypatch.setattr(Answer, "do_GET", lambda self: _say(self, status, body))
    server = Admin()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert run(monkeypatch, "usage", "--admin", address) == 1
    server.shutdown()
    server.server_close()
    assert f"{address} is not a router's admin address" in capsys.readouterr().err


def _say(handler: BaseHTTPRequestHandler, status: int, body: str) -> None:
    handler.send_response(status)
    handler.end_headers()
    handler.wfile.write(body.encode())
