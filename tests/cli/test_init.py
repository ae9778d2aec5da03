"""`init`: a configuration for what is installed; and the sizes of cards on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli import init
from router.cli.init import configuration
from router.cli.question import Site
from router.cli.sizes import mib_of
from router.config import load_config
from router.core.ollama.runner import Gpu
from router.core.units import GIB
from router.errors import ConfigError
from tests.backend.machine import BIG, SMALL
from tests.cli.test_main import run
from tests.core.facts import bare_model


def site(gib: float, *installed: object) -> Site:
    return Site("http://127.0.0.1:1", "0.33.0", installed, (Gpu(0, "G", "RTX", int(gib * GIB), int(gib * GIB)),))  # type: ignore[arg-type]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "router.yaml"
    path.write_text(text)
    return path


def test_a_model_that_does_not_fit_gets_a_chain_and_the_file_is_valid(tmp_path):
    """Others are listed as comments; nothing is lost if no chain is needed."""
    text = configuration(site(6, BIG, SMALL), "x.yaml")
    assert f"#   {SMALL.name}" in text
    assert load_config(written(tmp_path, text)).backends["local"].url == "http://127.0.0.1:1"
    assert f"{BIG.name}" in text.split("chains:")[1].split("# These")[0]
    assert "does not fit" in text
    everything = configuration(site(80, BIG, SMALL), "x.yaml")
    assert "chains: {}" in everything
    assert load_config(written(tmp_path, everything)).chains == {}
    assert "#   none" in configuration(site(0.1), "x.yaml")


def test_a_chain_has_nothing_of_which_check_would_warn(tmp_path, monkeypatch, capsys):
    """An 8B in 16 bits is bigger than the 14B in 4 bits before it, so it would never serve."""
    sizes = {"qwen3:32b-q8_0": 35, "qwen3:32b": 20, "qwen3:14b": 9, "qwen3:8b-fp16": 16, "qwen3:8b": 5}
    models = [bare_model(name, int(name[6:].split("b")[0]), size, family="qwen3") for name, size in sizes.items()]
    path = written(tmp_path, configuration(site(8, *models), "x.yaml"))
    served = [entry.model for entry in load_config(path, env={}).chains["qwen3:32b-q8_0"].variants]
    assert served == ["qwen3:32b-q8_0", "qwen3:32b", "qwen3:14b", "qwen3:8b"]
    assert run(monkeypatch, "check", str(path)) == 0
    assert capsys.readouterr().err == f"{path} is valid\n"


def test_a_file_that_exists_is_not_overwritten(tmp_path, monkeypatch, capsys):
    """A folder that does not exist is an error too; - prints."""
    monkeypatch.setattr(init, "read_site", lambda _upstream, _gpu: site(80, SMALL))
    path = tmp_path / "router.yaml"
    assert run(monkeypatch, "init", str(path)) == 0
    said = capsys.readouterr().out
    assert "next: ollama-router serve" in said
    assert (Path(said.split()[-1]) / "slow-70b.yaml").is_file()
    assert run(monkeypatch, "init", str(path)) == 2
    assert "exists" in capsys.readouterr().err
    assert run(monkeypatch, "init", str(tmp_path / "none" / "router.yaml")) == 2
    capsys.readouterr()
    assert run(monkeypatch, "init", "-") == 0
    assert capsys.readouterr().out.startswith("# Written by")


def test_the_folder_of_the_examples_is_printed(monkeypatch, capsys):
    """Without asking any Ollama."""
    assert run(monkeypatch, "init", "--examples") == 0
    assert (Path(capsys.readouterr().out.strip()) / "two-cards" / "router.yaml").is_file()


@pytest.mark.parametrize(
    ("text", "mib"), [("24564", 24564), ("24GiB", 24576), (" 24 gb ", 24576), ("1.5g", 1536), ("512MiB", 512)]
)
def test_the_size_of_a_card_has_the_same_forms_everywhere(text, mib):
    """MiB without a unit."""
    assert mib_of(text) == mib


@pytest.mark.parametrize("text", ["", "x", "24TiB", "-1", "0", "0GiB"])
def test_another_size_of_a_card_is_an_error(text):
    """Zero is one only where a machine without cards makes sense."""
    with pytest.raises(ConfigError, match="--gpu"):
        mib_of(text)


def test_a_simulated_machine_may_have_no_card():
    """`simulate --gpu 0`."""
    assert mib_of("0", may_be_none=True) == 0
