"""docker-compose.yml is valid, publishes the router's port only, and gives each container no more than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from router.cli.files import SPARE
from router.config import load_config

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "docker-compose.yml").read_text())
ROUTER, OLLAMA = COMPOSE["services"]["router"], COMPOSE["services"]["ollama"]


def devices(service: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service["deploy"]["resources"]["reservations"]["devices"]
    return found


def test_file_agrees_with_the_compose_specification() -> None:
    """The schema is the vendored one of check-jsonschema, so no network is needed."""
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_routers_port_is_published() -> None:
    """Clients cannot reach Ollama except through the router (S3)."""
    published = {name: service.get("ports", []) for name, service in COMPOSE["services"].items()}
    assert {name for name, ports in published.items() if ports} == {"router"}
    assert published["router"] == ["127.0.0.1:11435:11435"]
    assert all("network_mode" not in service for service in COMPOSE["services"].values())


def test_router_sees_the_same_cards_for_reading_only() -> None:
    """NVML needs the `utility` capability; the router never computes."""
    assert "utility" in devices(ROUTER)[0]["capabilities"]
    assert ROUTER["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert devices(ROUTER)[0]["count"] == devices(OLLAMA)[0]["count"] == "all"


@pytest.mark.parametrize(
    ("key", "value"),
    [("read_only", True), ("cap_drop", ["ALL"]), ("security_opt", ["no-new-privileges:true"]), ("init", True)],
)
def test_router_has_no_more_rights_than_it_needs(key: str, value: object) -> None:
    """Read-only, no capabilities, no new privileges (S2)."""
    assert ROUTER[key] == value


def test_router_has_bounds_that_its_limits_fit_into() -> None:
    """Memory for all bodies, received and rewritten; a file for each connection of either side."""
    limits = load_config(ROOT / "config/examples/container.yaml", env={}).limits
    assert ROUTER["mem_limit"] == "2g"
    assert 2 * limits.buffered_bytes + (512 << 20) <= 2 << 30
    assert ROUTER["ulimits"]["nofile"] >= limits.connections + limits.pool + SPARE
    assert 0 < ROUTER["pids_limit"] <= 1024


def test_shutdown_leaves_time_for_running_requests() -> None:
    """The engine waits longer than the router's own drain."""
    assert float(ROUTER["stop_grace_period"].removesuffix("s")) > load_config(env={}).timeouts.shutdown_s


def test_mounted_configuration_fits_the_compose_file() -> None:
    """The file that is mounted exists, names the service `ollama`, and listens on the port that is published."""
    source, target, mode = ROUTER["volumes"][0].split(":")
    config = load_config(ROOT / source, env={})
    assert (ROUTER["command"], mode) == (["serve", "--config", target], "ro")
    assert [backend.url for backend in config.backends.values()] == ["http://ollama:11434"]
    assert str(config.listen) == "0.0.0.0:11435"
    assert config.admin.is_loopback
    store = Path(config.store.path or "")
    assert str(store.parent) in [volume.split(":")[1] for volume in ROUTER["volumes"]]


def test_health_is_readiness() -> None:
    """A container is healthy when it can serve."""
    # On the admin address, which never speaks TLS.
    assert "http://127.0.0.1:11436/readyz" in ROUTER["healthcheck"]["test"][-1]
    assert OLLAMA["environment"]["OLLAMA_NO_CLOUD"] == "1"
