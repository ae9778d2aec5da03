"""`fit` and `advise` on the command line: files and a server, tables and JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from typer.testing import CliRunner

from ollama_simulator.recorded.plans import Recordings
from router.adapters.gpu.detect import StaticProbe
from router.cli import question
from router.cli.main import app
from router.core.ollama.runner import Gpu
from router.core.units import GIB
from router.errors import ConfigError, ProbeError, RouterError

RECORDED = Recordings(Path(__file__).parent.parent / "data" / "fit")
UPSTREAM = "http://ollama.test:11434"
RUNNER = CliRunner()


def show_of(model: str, quant: str = "Q4_K_M") -> dict[str, Any]:
    """Return the answer of `/api/show` for a recorded model."""
    facts = RECORDED.facts[model, quant]
    return {
        "details": {"family": facts.family, "quantization_level": quant},
        "model_info": facts.info,
        "tensors": [{"name": one.name, "type": one.type, "shape": one.shape} for one in facts.tensors],
        "capabilities": ["completion"],
        "modelfile": f"FROM /blobs/sha256-{quant.encode().hex() + model.encode().hex():0<64.64}\n",
    }


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Save an answer of `/api/show` for a 70B model; return its path."""
    path = tmp_path / "big.json"
    path.write_text(json.dumps(show_of("llama3.3-70b")))
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    """Run a command; return exit code and output, with the codes of errors: 2 for a ConfigError, else 1."""
    result = RUNNER.invoke(app, list(arguments))
    if isinstance(result.exception, RouterError):
        return 2 if isinstance(result.exception, ConfigError) else 1, result.exception.message
    return result.exit_code, result.output


def test_fit_of_a_file_prints_the_missing_memory(saved: str) -> None:
    """One line per term, tab-separated in a pipe; exit code 1."""
    code, text = run("fit", saved, "--gpu", "24564", "--num-ctx", "8192")
    assert code == 1
    assert "big (llama), context 8192, 1 slot" in text
    assert "weights\t39.04 GiB" in text
    assert "does not fit on card 0: 19.64 GiB are missing; no context fits" in text


def test_fit_over_two_cards_exits_0(saved: str) -> None:
    """The split is printed card by card."""
    code, text = run("fit", saved, "--gpu", "24GiB", "--gpu", "24564", "--num-ctx", "8192", "--parallel", "2")
    assert code == 1
    code, text = run("fit", saved, "--gpu", "24GiB", "--gpu", "24564", "--num-ctx", "8192")
    assert code == 0
    assert "card 0\tcard 1" in text
    assert "fits fully on 2 cards; the largest context that fits is" in text


def test_fit_as_json_has_all_bytes(saved: str) -> None:
    """Terms, devices, options and the verdict."""
    code, text = run("fit", saved, "--gpu", "48000", "--json", "--num-ctx", "4096", "--kv-type", "q8_0")
    data = json.loads(text)
    assert code == 0
    assert data["fits"] is True
    assert data["options"]["kv_type"] == "q8_0"
    assert data["devices"][0]["layers"] == 81
    assert data["terms"]["weights_bytes"] > 39 * GIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "many"], "--gpu many: expected the memory"),
        (["--gpu", "0"], "--gpu 0"),
        (["--gpu", "24000", "--kv-type", "q7"], "--kv-type q7: not a cache type"),
        (["--gpu", "24000", "--kv-type", "q8_0", "--no-flash-attn"], "requires flash attention"),
    ],
)
def test_bad_options_exit_2(saved: str, arguments: list[str], message: str) -> None:
    """The message names the option, and what is expected."""
    code, text = run("fit", saved, *arguments)
    assert code == 2
    assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "it has no model_info"), ('{"model_info": {}}', "it lists no tensors")],
)
def test_bad_files_exit_2(tmp_path: Path, content: str, message: str) -> None:
    """A file that is not an answer of /api/show, or one without sizes, is refused."""
    path = tmp_path / "bad.json"
    path.write_text(content)
    code, text = run("fit", str(path), "--gpu", "24000")
    assert code == 2
    assert message in text


@pytest.fixture
def server() -> Any:
    """Provide an Ollama with a 70B model in two quantizations and an 8B model."""
    models = {"llama3.3:70b": ("llama3.3-70b", "Q4_K_M"), "llama3.3:70b-instruct-q2_K": ("llama3.3-70b", "Q2_K"),
              "llama3.1:8b": ("llama3.1-8b", "Q4_K_M")}  # fmt: skip
    rows = [{"name": name, "digest": name, "size": RECORDED.facts[of].size_bytes} for name, of in models.items()]

    def show(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=show_of(*models[json.loads(request.content)["model"]]))

    with respx.mock(base_url=UPSTREAM, assert_all_called=False) as mock:
        mock.get("/api/tags").respond(json={"models": rows})
        mock.post("/api/show").mock(side_effect=show)
        mock.get("/api/version").respond(json={"version": "0.33.0"})
        yield mock


@pytest.mark.usefixtures("server")
def test_advise_lists_what_would_help() -> None:
    """Another installed quantization, a smaller installed model of the series, and cards that would run it."""
    code, text = run("advise", "llama3.3:70b", "--gpu", "32GiB", "--num-ctx", "8192", "--upstream", UPSTREAM)
    assert code == 1
    assert "use llama3.3:70b-instruct-q2_K, which is installed" in text
    assert "use llama3.1:8b, a smaller member of the series" in text
    assert "runs fully on: one card of 48 GB" in text
    assert "2 cards of 24 GB" in text
    assert "are in main memory" in text
    assert text.splitlines()[-1].startswith("ollama pull llama3.1:8b-instruct-q8_0  # about")


def test_advise_with_only_the_70b_says_what_to_pull(saved: str) -> None:
    """On 24 GB: models that fit, no q2_K, and the card that would do with less context."""
    code, text = run("advise", saved, "--gpu", "24564")
    assert code == 1
    assert "ollama pull qwen3:32b  # about" in text
    assert "q2_K" not in text
    assert "one card of 48 GB with a context of" in text


@pytest.mark.usefixtures("server")
def test_advise_as_json_has_cures_and_hardware() -> None:
    """All sizes are in bytes, except those of cards, which are in GB."""
    code, text = run("advise", "llama3.3:70b", "--gpu", "32GiB", "--num-ctx", "8192", "--upstream", UPSTREAM, "--json")
    data = json.loads(text)
    assert code == 1
    assert data["cures"][0]["kind"] == "variant"
    assert data["hardware"][0] == {"cards": 1, "size_gb": 48, "need_bytes": data["hardware"][0]["need_bytes"],
                                   "num_ctx": 8192, "split_cost_bytes": 0}  # fmt: skip


@pytest.mark.usefixtures("server")
def test_advise_of_a_model_that_fits_exits_0() -> None:
    """No changes are proposed."""
    code, text = run("advise", "llama3.1:8b", "--gpu", "24GiB", "--upstream", UPSTREAM)
    assert code == 0
    assert "fits fully on card 0" in text
    assert "what would help" not in text


def test_advise_reports_that_nothing_helps(tmp_path: Path) -> None:
    """Nothing makes a 671B model fit on a tiny card, or on any known one; the notes on coarse figures are printed."""
    path = tmp_path / "huge.json"
    path.write_text(json.dumps({**show_of("deepseek-r1-671b"), "tensors": [], "size": 400 * GIB}))
    code, text = run("advise", str(path), "--gpu", "4000")
    assert code == 1
    assert "no change makes it fit on this machine" in text
    assert "runs fully on: no machine with up to two cards of 96 GB" in text
    assert "note: the server listed no tensors" in text


@pytest.mark.parametrize(
    ("model", "message", "expected"),
    [
        ("nothere:1b", "neither a file nor installed", 1),
        ("llama3.1:8bb", "(did you mean llama3.1:8b?)", 1),
        ("/no/such/file.json ", "neither a file nor", 2),
    ],
)
@pytest.mark.usefixtures("server")
def test_an_unknown_model_exits_1_and_an_invalid_name_2(model: str, message: str, expected: int) -> None:
    """It is neither a file nor a model of the server."""
    code, text = run("fit", model, "--gpu", "24GiB", "--upstream", UPSTREAM)
    assert code == expected
    assert message in text


def test_an_unreachable_server_exits_1() -> None:
    """An address without a scheme is used with http."""
    code, text = run("fit", "llama3.1:8b", "--gpu", "24GiB", "--upstream", "127.0.0.1:1")
    assert code == 1
    assert text


class LostProbe(StaticProbe):
    """A probe that cannot be read."""

    async def read(self) -> Any:
        raise ProbeError("gone")


@pytest.mark.parametrize(
    ("probe", "arguments", "code", "message"),
    [
        (None, [], 2, "no GPU was found"),
        (LostProbe(()), [], 2, "the GPUs cannot be read: gone"),
        (StaticProbe(()), [], 1, "does not fit: there is no GPU"),
        (StaticProbe((Gpu(0, "u", "RTX A6000", 48 * GIB, 4 * GIB),)), [], 1, "has\t4.00 GiB"),
        (StaticProbe((Gpu(0, "u", "RTX A6000", 48 * GIB, 4 * GIB),)), ["--idle"], 0, "has\t47.50 GiB"),
    ],
)
def test_cards_come_from_the_probe(
    saved: str,
    monkeypatch: pytest.MonkeyPatch,
    probe: StaticProbe | None,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """Without --gpu this machine's cards are used, as they are or as if they were idle."""
    monkeypatch.setattr(question, "detect_probe", lambda: probe)
    found, text = run("fit", saved, "--num-ctx", "8192", *arguments)
    assert found == code
    assert message in text
