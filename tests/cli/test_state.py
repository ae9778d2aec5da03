"""`ps`, `explain` and `check --live` on the command line: what they print and how they end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import respx

from router.cli import explain, ps
from tests.cli.test_main import run

UP = {"up": True, "version": "1", "error": "", "stale_since": None}
DOWN = {"up": False, "version": "1", "error": "refused", "stale_since": "2026-01-01T00:00:00+00:00"}
STATE = {"residents": [], "gpus": [], "notes": []}
ROW = {
    "model": "x", "verdict": "too_big", "num_ctx": 8192, "need_bytes": 2, "have_bytes": 1, "detail": "1 short",
}  # fmt: skip
DECISION = {"chain": "x", "outcome": "exact", "reason": "fits", "chosen": "x", "variants": [], "gpus": [], "notes": []}
OLLAMA = "http://ollama.test:11434"


@pytest.mark.parametrize(("ollama", "code"), [(UP, 0), (DOWN, 1), ({**DOWN, "version": "", "stale_since": None}, 1)])
@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("command", ["ps", "explain"])
def test_an_old_state_is_shown_as_one_and_exits_1(
    command: str,
    arguments: tuple[str, ...],
    ollama: dict[str, Any],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The warning is on standard error, so that JSON stays JSON."""
    monkeypatch.setattr(ps, "ask", lambda *_, **__: {**STATE, "ollama": ollama})
    monkeypatch.setattr(explain, "ask", lambda *_, **__: {**DECISION, "ollama": ollama})
    assert run(monkeypatch, command, *(["x"] if command == "explain" else []), *arguments) == code
    streams = capsys.readouterr()
    assert ("Ollama does not answer: refused" in streams.err) is not ollama["up"]
    assert ("2026-01-01" in streams.err) is bool(ollama["stale_since"])
    if arguments:
        assert json.loads(streams.out)["ollama"] == ollama


@respx.mock
def test_live_names_misspelt_models_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """And what is cut, which is no failure."""
    rows = [{"name": "qwen3:14b", "size": 1}, {"name": "bad name!", "size": 1}]
    respx.get(f"{OLLAMA}/api/tags").mock(httpx.Response(200, json={"models": rows}))
    show = {"model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960}, "details": {}}
    respx.post(f"{OLLAMA}/api/show").mock(httpx.Response(200, json=show))
    monkeypatch.setenv("OLLAMA_ROUTER_BACKENDS__LOCAL__URL", OLLAMA)
    file = tmp_path / "router.yaml"
    file.write_text("chains: {a: [{model: qwen3:14b, num_ctx: 262144}]}")
    assert run(monkeypatch, "check", str(file), "--live") == 0
    assert capsys.readouterr().err.splitlines() == [
        f"note: {file}:1: chain a: num_ctx 262144 of qwen3:14b is cut to its maximum, 40960",
        f"{file} is valid",
    ]
    file.write_text("chains: {a: [qwen3:14bb]}")
    assert run(monkeypatch, "check", str(file), "--live") == 1
    assert (
        capsys.readouterr().err
        == f"warning: {file}:1: chain a: qwen3:14bb is not installed (did you mean qwen3:14b?)\n"
    )


@respx.mock
def test_live_warns_of_entries_that_help_nobody_by_their_real_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """In the files of teams too, with file and line: bigger than one before it, or the same weights under two names."""
    rows = [{"name": name, "size": size} for name, size in (("small:1", 10), ("big:1", 20), ("alias:1", 20))]
    respx.get(f"{OLLAMA}/api/tags").mock(httpx.Response(200, json={"models": rows}))

    def show(request: httpx.Request) -> httpx.Response:
        blob = "b" if json.loads(request.content)["model"] == "small:1" else "a"
        return httpx.Response(200, json={"modelfile": f"FROM /models/blobs/sha256-{blob * 64}", "model_info": {}})

    respx.post(f"{OLLAMA}/api/show").mock(side_effect=show)
    monkeypatch.setenv("OLLAMA_ROUTER_BACKENDS__LOCAL__URL", OLLAMA)
    file, team = tmp_path / "router.yaml", tmp_path / "one.team"
    file.write_text('chains: { a: ["small:1", "big:1"] }\nteams: "*.team"\n')
    chains = 'chains:\n  a: ["big:1", "alias:1"]\n  b: ["gone:1"]\n'
    team.write_text(f'team: one\n{chains}models: {{ deny: ["gemma*"] }}\nrights: [manage]\n')
    assert run(monkeypatch, "check", str(file), "--live") == 1
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {team}:4: chain b: gone:1 is not installed (ollama pull gone:1)",
        f"warning: {file}:1: chain a: big:1 is bigger than small:1 before it: it fits only if that fits too",
        f"warning: {team}:3: chain a: alias:1 is never used: it has the same weights as big:1",
        f"warning: {team}:6: the right manage allows nothing: manage_models names no model",
        f"warning: {team}:5: models.deny: gemma* matches no installed model and no chain",
    ]


@respx.mock
def test_live_asks_each_of_several_backends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """A model that only the second one has is installed."""
    for host, name in (("desk", "small:1"), ("tower", "big:1")):
        respx.get(f"http://{host}/api/tags").mock(httpx.Response(200, json={"models": [{"name": name, "size": 1}]}))
        respx.post(f"http://{host}/api/show").mock(httpx.Response(200, json={"model_info": {}}))
    file = tmp_path / "router.yaml"
    backends = 'backends: { desk: { url: "http://desk" }, tower: { url: "http://tower" } }\n'
    file.write_text(f'{backends}chains: {{ a: ["big:1", "small:1"] }}\n')
    assert run(monkeypatch, "check", str(file), "--live") == 0
    assert capsys.readouterr().err == f"{file} is valid\n"


@respx.mock
def test_live_without_an_ollama_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    respx.get(f"{OLLAMA}/api/tags").mock(side_effect=httpx.ConnectError("refused"))
    monkeypatch.setenv("OLLAMA_ROUTER_BACKENDS__LOCAL__URL", OLLAMA)
    assert run(monkeypatch, "check", "--live") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def several(models: Mapping[str, Mapping[str, int]]) -> str:
    """Backends with these models and the longest context of each; their part of a configuration file."""
    for name, contexts in models.items():
        rows = [{"name": model, "size": 1 + at} for at, model in enumerate(contexts)]
        respx.get(f"http://{name}.test/api/tags").mock(httpx.Response(200, json={"models": rows}))

        def show(request: httpx.Request, contexts: Mapping[str, int] = contexts) -> httpx.Response:
            model = json.loads(request.content)["model"]
            info = {"general.architecture": "qwen3", "qwen3.context_length": contexts[model]}
            return httpx.Response(200, json={"model_info": info, "details": {}})

        respx.post(f"http://{name}.test/api/show").mock(side_effect=show)
    urls = "".join(f"  {name}: {{ url: 'http://{name}.test:80', server: {{ auto: false }} }}\n" for name in models)
    return f"backends:\n{urls}"


@respx.mock
def test_live_asks_all_backends_and_names_those_that_a_finding_is_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """A chain may be spread over them, with a smaller one first that another backend has."""
    backends = several({"desk": {"qwen3:8b": 4096}, "tower": {"x:1": 1, "qwen3:32b": 8192, "qwen3:8b": 8192}})
    file = tmp_path / "router.yaml"
    file.write_text(f"{backends}chains: {{ a: [qwen3:32b, qwen3:8b] }}\n")
    assert run(monkeypatch, "check", str(file), "--live") == 0
    assert capsys.readouterr().err == f"{file} is valid\n"
    file.write_text(f"{backends}chains: {{ a: [{{ model: qwen3:8b, num_ctx: 6000 }}, qwen3:9b] }}\n")
    assert run(monkeypatch, "check", str(file), "--live") == 1
    missing, cut = capsys.readouterr().err.splitlines()[:2]
    assert missing.startswith("warning: desk, tower: ")
    assert "qwen3:9b is not installed" in missing
    assert cut.startswith("note: desk: ")
    assert "cut to its maximum, 4096" in cut


@respx.mock
def test_live_warns_of_the_order_of_a_chain_only_where_its_entries_are_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """On the tower the bigger one may fit while the desk is busy with the smaller one."""
    chain = "chains: { a: [small:1, big:1] }\n"
    file = tmp_path / "router.yaml"
    file.write_text(several({"desk": {"small:1": 1}, "tower": {"x:1": 1, "big:1": 1}}) + chain)
    assert run(monkeypatch, "check", str(file), "--live") == 0
    assert capsys.readouterr().err == f"{file} is valid\n"
    file.write_text(several({"desk": {"small:1": 1}, "tower": {"small:1": 1, "big:1": 1}}) + chain)
    assert run(monkeypatch, "check", str(file), "--live") == 0
    assert "big:1 is bigger than small:1 before it" in capsys.readouterr().err


@respx.mock
def test_live_goes_on_with_the_other_backends_if_one_does_not_answer_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """In one line for each that does not."""
    backends = several({"desk": {"qwen3:8b": 4096}, "tower": {}})
    respx.get("http://tower.test/api/tags").mock(side_effect=httpx.ConnectError("refused"))
    file = tmp_path / "router.yaml"
    file.write_text(f"{backends}chains: {{ a: [qwen3:8b] }}\n")
    assert run(monkeypatch, "check", str(file), "--live") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tower: cannot reach")
    respx.get("http://desk.test/api/tags").mock(side_effect=httpx.ConnectError("refused"))
    assert run(monkeypatch, "check", str(file), "--live") == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_explain_and_ps_name_the_backends_if_there_are_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`explain` says why a request goes to one of them and not to the others."""
    ranking = [
        {"backend": "tower", "usable": True, "model": "x", "reason": "x is resident", "variants": [ROW]},
        {"backend": "desk", "usable": False, "model": None, "reason": "too big", "variants": [ROW]},
    ]
    placed = {"ollama": UP, "backend": "tower", "ranking": ranking, "team": "chat", "denied": ["y", "z"]}
    monkeypatch.setattr(explain, "ask", lambda *_, **__: {**DECISION, **placed})
    assert run(monkeypatch, "explain", "x") == 0
    out = capsys.readouterr().out
    assert "; tower: " in out.splitlines()[0]
    assert ">\ttower\tx\tx is resident" in out
    assert "desk\t\ttoo big" in out
    _, _, elsewhere = out.partition("on desk\n")
    assert "\tx\t" in elsewhere
    assert "denied to team chat: y, z" in elsewhere
    resident = {
        "name": "x", "size_bytes": 1, "gpu_percent": 100, "context_length": 8192, "in_flight": 0,
        "loaded_by_router": True, "advice": "", "backend": "tower",
    }  # fmt: skip
    state = {**STATE, "ollama": UP, "residents": [resident], "backends": {"tower": {}, "desk": {}}}
    monkeypatch.setattr(ps, "ask", lambda *_, **__: state)
    assert run(monkeypatch, "ps") == 0
    assert "tower\tx" in capsys.readouterr().out
