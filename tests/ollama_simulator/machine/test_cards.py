"""Memory of the virtual cards, in process and through a run directory."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.run_log import log_to
from router.core.units import MIB
from router.errors import ProbeError


def test_free_is_total_less_reserved_foreign_and_held() -> None:
    """A holder cannot take more than is free."""
    cards = Cards(Machine(cards=(CardSpec(total_mib=8000, foreign_mib=1000, reserved_mib=400),)))
    assert cards.hold("a", "m", 0, 6000 * MIB)
    assert cards.free_bytes(0) == 600 * MIB
    assert not cards.hold("b", "n", 0, 601 * MIB)
    cards.set_foreign(0, 9000 * MIB)
    assert cards.gpus()[0].free_bytes == 0


def test_memory_of_the_dead_comes_back_after_the_lag() -> None:
    """The lag is `free_lag_s`."""

    async def scenario() -> tuple[int, int]:
        cards = Cards(Machine(free_lag_s=1.0))
        cards.hold("a", "m", 0, 1000 * MIB)
        cards.drop("a")
        before = cards.free_bytes(0)
        await asyncio.sleep(1.1)
        return before, cards.free_bytes(0)

    assert run_virtual(scenario()) == (23564 * MIB, 24564 * MIB)


def test_probe_names_runners_and_foreign_programs() -> None:
    """Processes are listed as by the driver; a lost driver raises."""

    async def scenario() -> None:
        cards = Cards()
        cards.hold("sim-1", "qwen3:8b", 0, 5000 * MIB)
        cards.set_foreign(0, 2000 * MIB)
        probe = CardsProbe(cards, lag_s=0.5)
        reading = await probe.read()
        assert reading.taken_at_s == 0.5
        assert reading.gpus[0].free_bytes == 17564 * MIB
        assert {(one.name, one.used_bytes // MIB) for one in reading.processes} == {
            ("llama-server qwen3:8b", 5000),
            ("foreign", 2000),
        }
        assert len({one.pid for one in reading.processes}) == 2
        probe.is_lost = True
        with pytest.raises(ProbeError):
            await probe.read()
        await probe.aclose()

    run_virtual(scenario())


def test_run_directory_is_read_at_each_use_and_written_for_others(tmp_path: Path) -> None:
    """Changes of vgpu.json take effect at once; each holder has a file with a live process."""
    config = tmp_path / "vgpu.json"
    config.write_text(json.dumps({"devices": [{"name": "CUDA0", "total_mib": 8000}], "tokens_per_s": 40}))
    cards = Cards(run_dir=tmp_path)
    assert cards.machine.speeds.tokens_per_s == 40
    cards.hold("sim-7", "qwen3:8b", 0, 5 * MIB)
    entry = json.loads((tmp_path / "state" / "sim-7.json").read_text())
    assert (entry["pid"], entry["alloc"]) == (os.getpid(), {"0": 5 * MIB})
    cards.set_foreign(0, 1000 * MIB)
    assert json.loads(config.read_text())["devices"][0]["foreign_mib"] == 1000
    config.write_text("{ not yet whole")
    assert cards.free_bytes(0) == 6995 * MIB
    fresh = tmp_path / "new"
    fresh.write_text(json.dumps({"devices": [{"name": "CUDA0", "total_mib": 4000, "new": 1}]}))
    fresh.replace(config)
    assert cards.free_bytes(0) == 3995 * MIB
    cards.drop("sim-7")
    assert not (tmp_path / "state" / "sim-7.json").exists()


def test_log_has_the_lines_that_others_evaluate(tmp_path: Path) -> None:
    """One line per start of a runner, with its command."""
    events: list[str] = []
    sink = log_to(tmp_path / "log", lambda what, _name, _detail: events.append(what))
    sink("starting", "qwen3:8b", "llama-server --model qwen3:8b -c 4096")
    sink("load_failed", "qwen3:8b", 'a "b"\nc')
    first, second = (tmp_path / "log").read_text().splitlines()
    assert 'msg="starting llama-server" cmd="llama-server --model qwen3:8b -c 4096"' in first
    assert "error=\"a 'b'\\nc\"" in second
    assert events == ["starting", "load_failed"]


def test_speed_collapses_with_weights_on_the_cpu() -> None:
    """By bandwidth: ten percent on the CPU costs more than half of the speed."""
    speeds = Speeds()
    whole, split = speeds.tokens_per_s_of(20 * 10**9, 0), speeds.tokens_per_s_of(18 * 10**9, 2 * 10**9)
    assert whole == pytest.approx(25)
    assert split < 0.5 * whole
    fixed = Speeds(tokens_per_s=100, cpu_tokens_per_s=4)
    assert fixed.tokens_per_s_of(1, 1) == pytest.approx(2 / (0.01 + 0.25))
