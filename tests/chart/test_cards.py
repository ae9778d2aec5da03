"""The router of a pod sees every card of the machine: it is told which ones its Ollama was given."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from router.config import load_config
from tests.chart.cases import Rendered, values_of

pytestmark = pytest.mark.slow

UUIDS = ["GPU-6b6b1c1e-0000-4444-8888-123456789abc", "GPU-1f2e3d4c-0000-4444-8888-123456789abc"]
GPUS = "OLLAMA_ROUTER_BACKENDS__LOCAL__GPUS"
Of = Callable[[str], Rendered]


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def told(chart: Rendered, folder: Path, smi: str) -> dict[str, str]:
    """Run what both containers do at their start, with this nvidia-smi; return the environment of the router."""
    program(folder, "nvidia-smi", smi)
    program(folder, "ollama-router", "env")
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    for argv in (chart.ollama()["lifecycle"]["postStart"]["exec"]["command"], chart.router("node")["command"]):
        command = [part.replace("/run/cards", str(folder)) for part in argv]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


@pytest.mark.parametrize("count", [1, 2])
def test_the_router_counts_the_cards_that_its_ollama_was_given(of: Of, tmp_path: Path, count: int) -> None:
    """As the device plugin of Kubernetes chose them, in Ollama's order."""
    env = told(of("defaults"), tmp_path, f"printf '%s\\n' {' '.join(UUIDS[:count])}")
    config = load_config(env={GPUS: env[GPUS]})
    assert config.backends["local"].gpus == tuple(UUIDS[:count])


@pytest.mark.parametrize("smi", ["exit 9", "echo 'No devices were found'", "true"])
def test_without_an_answer_all_cards_count(of: Of, tmp_path: Path, smi: str) -> None:
    """Each load is verified before anything is answered; the pod must not wait for a program that fails."""
    env = told(of("defaults"), tmp_path, smi)
    assert load_config(env={GPUS: env[GPUS]}).backends["local"].gpus == "auto"


def test_ollama_numbers_its_cards_as_nvidia_smi_lists_them(of: Of) -> None:
    """CUDA's own order, the fastest first, would be another one where cards differ."""
    orders = {
        name: values_of(of(name).ollama()["env"]).get("CUDA_DEVICE_ORDER") for name in ("defaults", "no GPU", "AMD")
    }
    assert orders == {"defaults": "PCI_BUS_ID", "no GPU": None, "AMD": None}


@pytest.mark.parametrize("name", ["no GPU", "AMD", "settings of Ollama"])
def test_nothing_is_told_where_there_is_no_such_card_or_the_values_name_them(of: Of, name: str) -> None:
    """The router then starts as its image does."""
    assert "lifecycle" not in of(name).ollama()
    assert "command" not in of(name).router("node")


def test_reading_memory_is_no_second_request_for_cards(of: Of) -> None:
    """One request for the pod, by Ollama."""
    chart = of("daemonset")
    assert chart.ollama()["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert "nvidia.com/gpu" not in str(chart.router("node")["resources"])
    env = values_of(chart.router("node")["env"])
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert chart.pod("node")["runtimeClassName"] == "nvidia"
    assert of("no GPU").ollama()["resources"].get("limits", {}) == {}


def test_settings_of_ollama_are_known_to_its_router(of: Of) -> None:
    """They stand in the values once."""
    chart = of("settings of Ollama")
    env = values_of(chart.ollama()["env"])
    assert (
        env.items()
        >= {
            "OLLAMA_NUM_PARALLEL": "4",
            "OLLAMA_KV_CACHE_TYPE": "q8_0",
            "OLLAMA_FLASH_ATTENTION": "1",
            "OLLAMA_CONTEXT_LENGTH": "16384",
            "OLLAMA_GPU_OVERHEAD": str(512 << 20),
            "OLLAMA_SCHED_SPREAD": "1",
            "LLAMA_ARG_FIT_TARGET": "256",
            "OLLAMA_MAX_LOADED_MODELS": "3",
            "OLLAMA_KEEP_ALIVE": "1h",
        }.items()
    )
    server = chart.plain("node")["backends"]["local"]["server"]
    assert (server["num_parallel"], server["kv_type"], server["gpu_overhead_mib"]) == (4, "q8_0", 512)
