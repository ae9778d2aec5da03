"""The options of `ollama-router simulate`."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.foreign import parse_script, play
from ollama_simulator.machine.gpu_metrics import page, serve_metrics
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from router.cli.simulate import _address, _library, _prepared, _script
from router.core.units import MIB
from router.errors import ConfigError
from tests.cli.test_main import run


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    """They are listed in the message."""
    with pytest.raises(ConfigError, match="llama3.3:70b-instruct-q4_K_M"):
        _library("nonsense:1b", None)


def test_the_whole_library_has_each_model_once() -> None:
    """Further names of the same weights are omitted, but can be requested."""
    everything = _library(None, "all")
    blobs = [model.weights.digest for model in everything.models.values()]
    assert len(blobs) == len(set(blobs)) > 60
    alias = _library("llama3.3:70b,llama3.3", None)
    assert len({model.weights.digest for model in alias.models.values()}) == 1


def test_a_script_of_foreign_memory_is_executed() -> None:
    """Other programs take and release memory at the scripted times."""

    async def story() -> list[int]:
        cards = Cards(Machine(cards=(CardSpec(total_mib=1000),)))
        task = asyncio.create_task(play(cards, parse_script("1 0 400\n# comment\n2 0 0\n")))
        found = []
        for _ in range(3):
            found.append(cards.free_bytes(0) // MIB)
            await asyncio.sleep(1.01)
        await task
        return found

    assert run_virtual(story()) == [1000, 600, 1000]


@pytest.mark.parametrize("text", ["1 0", "a 0 1", "1 7 100"])
def test_a_broken_script_is_refused(text: str, tmp_path: Path) -> None:
    """The message has the line, or the number of cards."""
    path = tmp_path / "script"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--foreign-script"):
        _script(path, 1)


def test_metrics_are_those_of_the_dcgm_exporter() -> None:
    """Free and used memory in MiB, with UUID and model name."""
    shown = page(Cards(Machine(cards=(CardSpec(total_mib=1000, foreign_mib=300),))))
    assert 'modelName="NVIDIA RTX A5000"} 700' in shown
    assert "DCGM_FI_DEV_FB_USED{" in shown


async def test_metrics_are_served_over_http() -> None:
    """There is one page for every path."""
    server = await serve_metrics(Cards(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    server.close()
    assert b"DCGM_FI_DEV_FB_FREE" in answer


def test_a_run_directory_gets_its_cards_once(tmp_path: Path) -> None:
    """An existing vgpu.json is left unchanged."""
    cards = (CardSpec(total_mib=24564),)
    path = _prepared(tmp_path / "run", cards, Speeds()) / "vgpu.json"
    assert json.loads(path.read_text())["devices"][0]["total_mib"] == 24564
    _prepared(tmp_path / "run", (), Speeds())
    assert json.loads(path.read_text())["devices"]


def test_an_address_needs_a_port() -> None:
    """The form is HOST:PORT."""
    assert _address("127.0.0.1:80") == ("127.0.0.1", 80)
    with pytest.raises(ConfigError):
        _address("localhost")


def test_a_port_in_use_is_a_failure_and_no_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exits with 1, as `serve` does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run(monkeypatch, "simulate", "--library", "tiny", "--gpu", "24GiB", "--listen", address) == 1
