"""config/examples/compose/fleet.yml: two nodes and two fronts that find each other, and nobody else gets in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from router.config import Config, load_config

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "config/examples/compose"
FILE = FOLDER / "fleet.yml"
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ALONE: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "docker-compose.yml").read_text())["services"][
    "router"
]
FRONTS, NODES, OLLAMAS = ("front-a", "front-b"), ("node-a", "node-b"), ("ollama-a", "ollama-b")


def config_of(name: str) -> Config:
    """Return the configuration that a service reads."""
    source, target, mode = SERVICES[name]["volumes"][0].split(":")
    assert (target, mode) == ("/etc/ollama-router", "ro")
    env = {
        key: value for key, value in SERVICES[name].get("environment", {}).items() if key.startswith("OLLAMA_ROUTER")
    }
    return load_config(FOLDER / source / "router.yaml", env=env)


def test_file_agrees_with_the_compose_specification() -> None:
    """By the same schema as the other one."""
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SERVICES.keys() == {*FRONTS, *NODES, *OLLAMAS}


def test_configurations_load() -> None:
    """Nodes have names of their own, and know the key of the fronts by its hash."""
    nodes = [config_of(name) for name in NODES]
    assert [config.node.name for config in nodes] == list(NODES)
    assert all(len(config.node_keys) == 1 for config in nodes)
    assert [[backend.is_nodes for backend in config_of(name).backends.values()] for name in FRONTS] == [[True]] * 2


def test_fronts_find_all_nodes_by_one_name() -> None:
    """Docker answers with the addresses of all containers that have an alias."""
    for name in FRONTS:
        (backend,) = config_of(name).backends.values()
        assert (backend.discover.dns, backend.discover.port) == ("nodes", 11435)
        assert "nodes" in SERVICES[name]["networks"]
    for name in NODES:
        assert SERVICES[name]["networks"] == {"nodes": {"aliases": ["nodes"]}}
        assert config_of(name).listen.port == 11435


def test_only_fronts_are_published_and_on_loopback_only_s3() -> None:
    """Each on ports of its own; a client of the machine reaches neither a node nor an Ollama."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == set(FRONTS)
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert len({port.rpartition(":")[0] for ports in published.values() for port in ports}) == 4


@pytest.mark.parametrize(("ollama", "node"), list(zip(OLLAMAS, NODES, strict=True)))
def test_an_ollama_listens_on_the_loopback_of_its_node_and_has_the_same_card_s3(ollama: str, node: str) -> None:
    """So nobody but its node reaches it, and the node reads the memory of the right card."""
    assert SERVICES[ollama]["network_mode"] == f"service:{node}"
    assert "networks" not in SERVICES[ollama]
    assert config_of(node).backends["local"].url == f"http://{SERVICES[ollama]['environment']['OLLAMA_HOST']}"
    cards = [
        SERVICES[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name in (ollama, node)
    ]
    assert cards[0] == cards[1] == [str(NODES.index(node))]


@pytest.mark.parametrize("name", [*FRONTS, *NODES])
def test_routers_are_run_as_the_one_of_the_other_file_s2(name: str) -> None:
    """With the same rights, bounds, health check and time to end."""
    kept = (
        "command",
        "healthcheck",
        "init",
        "read_only",
        "cap_drop",
        "security_opt",
        "tmpfs",
        "mem_limit",
        "pids_limit",
    )
    kept += ("ulimits", "stop_grace_period", "restart", "image")
    assert {key: SERVICES[name][key] for key in kept} == {key: ALONE[key] for key in kept}


@pytest.mark.parametrize("name", NODES)
def test_what_a_node_writes_is_in_its_own_volume(name: str) -> None:
    """A front writes nothing."""
    config = config_of(name)
    volumes = dict(volume.split(":")[1::-1] for volume in SERVICES[name]["volumes"])
    assert volumes["/var/lib/ollama-router"] == f"state-{name[-1]}"
    assert {str(Path(path).parent) for path in (config.store.path, config.usage.path) if path} == {
        "/var/lib/ollama-router"
    }
    assert [config_of(front).store.path for front in FRONTS] == [":memory:"] * 2


def test_the_key_is_not_in_the_repository() -> None:
    """The file says how to make one, and Git ignores it."""
    (backend,) = config_of("front-a").backends.values()
    assert backend.key_file == str(FOLDER / "fleet/front/node.key")
    assert str(Path(backend.key_file).relative_to(ROOT)) in (ROOT / ".gitignore").read_text().splitlines()
    assert "fleet/front/node.key" in FILE.read_text()
    assert "fleet/node/fronts.sha256" in FILE.read_text()


def test_the_commands_for_the_key_make_one_that_fits(tmp_path: Path) -> None:
    """What the front sends is what the node has the hash of."""
    (commands,) = [line[1:] for line in FILE.read_text().splitlines() if line.startswith("#   key=")]
    for name in ("front", "node"):
        (tmp_path / "fleet" / name).mkdir(parents=True)
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True)
    (tmp_path / "router.yaml").write_text("node: { name: a, key_sha256_file: fleet/node/fronts.sha256 }")
    key = (tmp_path / "fleet/front/node.key").read_text()
    assert len(key) == 64
    digest = subprocess.run(["sha256sum"], input=key, capture_output=True, text=True, check=True).stdout.split()[0]
    assert load_config(tmp_path / "router.yaml", env={}).node_keys == (bytes.fromhex(digest),)
