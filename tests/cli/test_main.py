"""The command line itself: version, exit codes, and `check`."""

from __future__ import annotations

import http.server
import importlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from router import __version__
from router.cli import main
from router.config import Config, effective, schema
from router.errors import ConfigError, UpstreamError

ROOT = Path(__file__).parent.parent.parent


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Run `ollama-router ARGS` in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["ollama-router", *args])
    with pytest.raises(SystemExit) as ended:
        main.run()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_that_of_the_package(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and exit code 0."""
    assert run(monkeypatch, option) == 0
    assert capsys.readouterr().out == f"ollama-router {__version__}\n"


def test_the_module_runs_like_the_console_script() -> None:
    """`python -m router` is `ollama-router`."""
    done = subprocess.run([sys.executable, "-m", "router", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"ollama-router {__version__}\n")


def test_a_valid_file_is_printed_with_all_effective_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`check FILE` exits with 0 and prints every key, overrides included; the output is a valid file again."""
    file = tmp_path / "router.yaml"
    file.write_text("chains: { 'a:70b': [b, { model: c, num_ctx: max }] }\n")
    monkeypatch.setenv("OLLAMA_ROUTER_DEFAULTS__KEEP_ALIVE_S", "forever")
    assert run(monkeypatch, "check", str(file)) == 0
    printed = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert run(monkeypatch, "check", str(again), "--json") == 0
    assert json.loads(capsys.readouterr().out) == YAML(typ="safe", pure=True).load(printed)
    assert "keep_alive_s: forever" in printed


def test_an_invalid_file_exits_2_with_file_and_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The error is one line on standard error; standard output stays empty for scripts."""
    file = tmp_path / "router.yaml"
    file.write_text("\nlistn: x\n")
    assert run(monkeypatch, "check", str(file)) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"{file}:2: listn: found the unknown key listn (did you mean listen?)")


NODES = "kind: node, discover: { static: [http://127.0.0.1:9] }"
SECURED = NODES.replace("http:", "https:")
NAMED = {
    "backends.pool.key_file": f"backends:\n  pool: {{ {NODES}, key_file: FILE }}",
    "backends.pool.ca": f"backends:\n  pool: {{ {SECURED}, key_file: KEY, ca: FILE }}",
    "backends.pool.client_cert": f"backends:\n  pool: {{ {SECURED}, key_file: KEY, client_cert: FILE }}",
    "backends.gpu.lan.bearer_file": "backends:\n  gpu.lan: { bearer_file: FILE }",
    "backends.a.basic_file": "backends:\n  a: { basic_file: FILE }",
    "usage.postgres_file": "usage:\n  postgres_file: FILE",
    "shared.password_file": "shared:\n  { valkey: 'valkey://127.0.0.1:9', password_file: FILE }",
    "shared.ca": "shared:\n  { valkey: 'valkeys://127.0.0.1:9', ca: FILE }",
    "tls": "tls:\n  { cert: FILE, key: KEY }",
}


@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "wrong"])
@pytest.mark.parametrize("key", NAMED)
def test_check_refuses_each_file_that_a_router_could_not_use(
    key: str, is_there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As `serve` does: with the line, the key and the file, and without what is in it."""
    (tmp_path / "KEY").write_text("a-key-of-the-fronts")
    if is_there:
        (tmp_path / "FILE").write_text("secret\nof two lines\n")
    file = tmp_path / "router.yaml"
    file.write_text(NAMED[key] + "\n")
    for command in ("check", "serve"):
        assert run(monkeypatch, command, "--config", str(file)) == 2
        streams = capsys.readouterr()
        assert f"{key}: " in streams.err
        assert str(tmp_path / "FILE") in streams.err
        assert "secret" not in streams.err
        assert command == "serve" or streams.err.startswith(f"{file}:2: {key}: ")
    (tmp_path / "FILE").unlink(missing_ok=True)
    file.write_text(f"backends:\n  pool: {{ {NODES}, key_file: KEY }}\n")
    assert run(monkeypatch, "check", str(file)) == 0


def test_check_without_file_prints_the_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty configuration is valid."""
    assert run(monkeypatch, "check", "--json") == 0
    streams = capsys.readouterr()
    assert (json.loads(streams.out), streams.err) == (effective(Config()), "the built-in configuration is valid\n")


@pytest.mark.parametrize("named", [[], ["--config"], ["-c"]])
def test_check_takes_its_file_as_the_other_commands_do_and_says_that_it_is_valid(
    named: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In the last line, on standard error, so that what is printed is still a file."""
    file = tmp_path / "router.yaml"
    file.write_text("queue: { wait_s: 7 }\n")
    assert run(monkeypatch, "check", *named, str(file)) == 0
    streams = capsys.readouterr()
    assert (streams.err, YAML(typ="safe", pure=True).load(streams.out)["queue"]["wait_s"]) == (f"{file} is valid\n", 7)
    assert run(monkeypatch, "check", str(file), "--config", str(file)) == 2


def test_schema_can_be_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By `check --schema`; the shipped schema is its output."""
    assert run(monkeypatch, "check", "--schema") == 0
    assert json.loads(capsys.readouterr().out) == schema()


@pytest.mark.parametrize("args", [["frobnicate"], ["--frobnicate"], ["check", "--frobnicate"], []])
def test_wrong_usage_exits_2(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown commands and options, and no command at all, are wrong usage."""
    assert run(monkeypatch, *args) == 2


@pytest.mark.parametrize(("error", "code"), [(ConfigError("bad file"), 2), (UpstreamError("not there"), 1)])
def test_error_of_a_command_is_one_line_and_an_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A RouterError has no traceback."""

    def fails() -> None:
        raise error

    monkeypatch.setattr("router.cli.check.check", fails)
    assert run(monkeypatch, "check") == code
    assert capsys.readouterr().err == f"{error}\n"


@pytest.mark.parametrize("command", main.COMMANDS)
def test_command_has_help_without_colours_when_piped(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of the table exists, has a description, and prints plain text in a pipe."""
    assert run(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out
    assert re.search(rf"Usage: ollama-router {command}", text)
    assert "\x1b" not in text
    assert len(text.split("\n\n")[1].strip()) > 20


@pytest.mark.parametrize(
    ("args", "path", "printed"),
    [
        ((), "/router/forget", "forgot 2 loads of all models"),
        (("a:7b",), "/router/forget?model=a%3A7b", "forgot 1 load of a:7b"),
    ],
)
def test_forget_posts_to_the_admin_listener(
    args: tuple[str, ...], path: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the model in the query, or none."""
    with admin_stub({"forgotten": 1 if args else 2}) as (url, asked):
        monkeypatch.setattr(sys, "argv", ["ollama-router", "forget", *args, "--admin", url])
        with pytest.raises(SystemExit) as ended:
            main.run()
    assert (ended.value.code, capsys.readouterr().out.strip(), asked) == (0, printed, [f"POST {path}"])


@contextmanager
def admin_stub(answer: dict[str, object]) -> Iterator[tuple[str, list[str]]]:
    """Run an admin listener that gives one answer and notes what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.command} {self.path}")
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_import_prints_a_valid_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`check --import FILE` writes to standard output only."""
    file = tmp_path / "litellm.yaml"
    file.write_text("model_list: [{model_name: x, litellm_params: {model: ollama/m:8b}}]")
    assert run(monkeypatch, "check", "--import", str(file)) == 0
    streams = capsys.readouterr()
    assert (YAML(typ="safe", pure=True).load(streams.out), streams.err) == ({"chains": {"x": ["m:8b"]}}, "")


def test_import_of_an_unknown_file_is_one_line_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is printed for a redirection to take."""
    file = tmp_path / "compose.yaml"
    file.write_text("services: {}")
    assert run(monkeypatch, "check", "--import", str(file)) == 1
    streams = capsys.readouterr()
    assert (streams.out, len(streams.err.splitlines())) == ("", 1)


def test_the_list_of_commands_imports_none_of_them() -> None:
    """Nor what serves, reads cards or draws tables: it is printed at once."""
    code = (
        "import sys; from router.cli import main; sys.argv = ['ollama-router', '--help']\n"
        "try: main.run()\n"
        "except SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name in "
        "('httpx', 'pydantic', 'pynvml', 'router.app', 'ollama_simulator.server', 'router.cli.demo', 'rich.table')))\n"
        "print(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    *_, imported, count = done.stdout.splitlines()
    assert imported == "[]", done.stderr
    assert int(count) < 200  # each costs time
    for command in main.COMMANDS:
        assert re.search(rf"^  {command} +\S", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", main.COMMANDS)
def test_a_command_has_a_summary(command: str) -> None:
    """In the list of commands: how its own help begins."""
    module, _, function = main.COMMANDS[command].partition(":")
    found = getattr(importlib.import_module(module), function)
    text = " ".join((found.info.help if isinstance(found, typer.Typer) else found.__doc__).split())
    assert text.startswith(main.SUMMARIES[command].rstrip("."))


def test_the_router_does_not_import_nvidias_library_before_it_reads_cards() -> None:
    """It takes 16 MB; the probe is chosen at start."""
    code = "import sys; import router.app, router.cli.fit; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_check_tells_what_a_reload_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A line for each key that differs from the file in force."""
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("listen: 127.0.0.1:11435\n")
    new.write_text("chains: { a: [b] }\nqueue: { wait_s: 7 }\nlisten: 0.0.0.0:11435\nadmin: 127.0.0.1:1\n")
    assert run(monkeypatch, "check", str(new), "--against", str(old)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "listen: not taken over by a reload, because the router itself has the port: restart it",
        "admin: taken over by a next router in the same process, while the one before ends its requests",
        "chains: taken over at once",
        "queue.wait_s: taken over by a next router in the same process, while the one before ends its requests",
    ]


def test_check_warns_of_what_helps_nobody_and_prints_the_schema_of_teams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On standard error, with file and line."""
    file = tmp_path / "router.yaml"
    file.write_text("chains:\n  a: [x:8b, x:70b]\n")
    assert run(monkeypatch, "check", str(file)) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {file}:2: chain a: x:70b is bigger than x:8b before it: it fits only if that fits too",
        f"{file} is valid",
    ]
    assert run(monkeypatch, "check", "--team-schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Team"


def test_a_misspelt_command_is_told_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is one like it."""
    assert run(monkeypatch, "explan", "x") == 2
    assert "No such command 'explan'. Did you mean 'explain'?" in capsys.readouterr().err
    assert run(monkeypatch, "qqqq") == 2
    assert capsys.readouterr().err.rstrip().endswith("No such command 'qqqq'.")


def test_where_no_router_answers_the_cure_is_said_and_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence for people."""
    assert run(monkeypatch, "ps", "--admin", "http://127.0.0.1:1") == 1
    said = capsys.readouterr().err
    assert said == (
        "cannot reach a router at http://127.0.0.1:1 (Connection refused); "
        "start one with: ollama-router serve, or name its admin address by --admin\n"
    )


@pytest.mark.parametrize("command", ["serve", "simulate"])
def test_an_address_in_use_is_named_with_the_cure(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the words of asyncio."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        more = ("--admin", "127.0.0.1:0") if command == "serve" else ()
        assert run(monkeypatch, command, "--listen", address, *more) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"cannot listen on {address}")
    assert ": Address already in use; name " in said
