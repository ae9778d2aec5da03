"""docker-compose.yml is valid, publishes nothing beyond this machine, and gives containers no more than they need."""

from __future__ import annotations

import json
import plistlib
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from router.cli.files import SPARE
from router.config import Config, load_config

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROUTER, OLLAMA, WEBUI = SERVICES["router"], SERVICES["ollama"], SERVICES["open-webui"]
IMAGE = ROOT / "config/examples/container.yaml"
STATE = "/var/lib/ollama-router"


def mounted() -> Config:
    """Return the configuration that the container reads."""
    source, target, mode = ROUTER["volumes"][0].split(":")
    assert (target, mode) == ("/etc/ollama-router", "ro")
    return load_config(ROOT / source / "router.yaml", env={})


def devices(service: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service["deploy"]["resources"]["reservations"]["devices"]
    return found


def test_file_agrees_with_the_compose_specification() -> None:
    """The schema is the vendored one of check-jsonschema, so no network is needed."""
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ollama_is_not_published_and_the_others_on_loopback_only_s3() -> None:
    """Clients cannot reach Ollama except through the router (S3)."""
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert published == {
        "router": ["127.0.0.1:11435:11435", "127.0.0.1:11436:11436"],
        "ollama": [],
        "open-webui": ["127.0.0.1:3000:8080"],
    }
    assert OLLAMA["expose"] == ["11434"]
    assert all("network_mode" not in service for service in SERVICES.values())


def test_only_the_router_shares_a_network_with_ollama_s3() -> None:
    """Open WebUI asks the router, not Ollama."""
    assert {name for name, service in SERVICES.items() if "back" in service["networks"]} == {"router", "ollama"}
    assert set(OLLAMA["networks"]) == {"back"}
    assert WEBUI["environment"]["OLLAMA_BASE_URL"] == "http://router:11435"


def test_router_sees_the_same_cards_for_reading_only() -> None:
    """NVML needs the `utility` capability; the router never computes."""
    assert "utility" in devices(ROUTER)[0]["capabilities"]
    assert ROUTER["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert devices(ROUTER)[0]["count"] == devices(OLLAMA)[0]["count"] == "all"


@pytest.mark.parametrize(
    ("key", "value"),
    [("read_only", True), ("cap_drop", ["ALL"]), ("security_opt", ["no-new-privileges:true"]), ("init", True)],
)
def test_router_has_no_more_rights_than_it_needs_s2(key: str, value: object) -> None:
    """Read-only, no capabilities, no new privileges (S2)."""
    assert ROUTER[key] == value


def test_router_has_bounds_that_its_limits_fit_into() -> None:
    """Memory for all bodies, received and rewritten; a file for each connection of either side."""
    limits = mounted().limits
    assert ROUTER["mem_limit"] == "2g"
    assert 2 * limits.buffered_bytes + (512 << 20) <= 2 << 30
    assert ROUTER["ulimits"]["nofile"] >= limits.connections + limits.pool + SPARE
    assert 0 < ROUTER["pids_limit"] <= 1024


def test_shutdown_leaves_time_for_running_requests() -> None:
    """The engine waits longer than the router's own drain."""
    assert float(ROUTER["stop_grace_period"].removesuffix("s")) > load_config(env={}).timeouts.shutdown_s


def test_mounted_configuration_fits_the_compose_file() -> None:
    """The folder that is mounted exists, names the service `ollama`, and listens on the ports that are published."""
    config = mounted()
    assert ROUTER["command"] == ["serve", "--config", "/etc/ollama-router/router.yaml"]
    assert [backend.url for backend in config.backends.values()] == ["http://ollama:11434"]
    assert (str(config.listen), str(config.admin)) == ("0.0.0.0:11435", "0.0.0.0:11436")
    assert config.keys_of_admins  # beyond loopback nothing else opens the admin pages


@pytest.mark.parametrize("config", [mounted(), load_config(IMAGE, env={})], ids=["compose", "image"])
def test_what_is_written_is_in_the_volume(config: Config) -> None:
    """The root is read-only, and a new container finds what the last one has learned."""
    written = [path for path in (config.store.path, config.usage.path, config.audit.path) if path is not None]
    assert len(written) >= 2
    assert all(str(Path(path).parent) == STATE for path in written)
    assert STATE in [volume.split(":")[1] for volume in ROUTER["volumes"]]


def test_open_webui_is_a_team_by_its_address() -> None:
    """So the stack works before anybody has made a key; the gateway, by which the host's clients come, is not it."""
    (subnet,) = COMPOSE["networks"]["front"]["ipam"]["config"]
    address = ip_address(WEBUI["networks"]["front"]["ipv4_address"])
    teams = {file.section.team: file.section.networks for file in mounted().team_files}
    assert {name for name, networks in teams.items() if any(address in ip_network(one) for one in networks)} == {"web"}
    assert address in ip_network(subnet["subnet"])
    gateway = next(ip_network(subnet["subnet"]).hosts())
    assert not any(gateway in ip_network(one) for networks in teams.values() for one in networks)
    assert set(teams) == {"web", "jobs"}


def test_the_image_runs_without_any_configuration_of_its_user() -> None:
    """`docker run -p 11435:11435`: its own file listens on all addresses of the container."""
    lines = (ROOT / "Dockerfile").read_text()
    config = load_config(IMAGE, env={})
    assert (str(config.listen), str(config.admin)) == ("0.0.0.0:11435", "0.0.0.0:11436")
    assert "COPY config/examples/container.yaml /etc/ollama-router/router.yaml\n" in lines
    assert "ENV OLLAMA_ROUTER_CONFIG=/etc/ollama-router/router.yaml\n" in lines
    assert "!config" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "EXPOSE 11435 11436\n" in lines
    assert f"VOLUME {STATE}\n" in lines
    assert f"install --directory --owner router --mode 0700 {STATE}" in lines


MERGED = ["amd.yml", "cpu.yml", "without-webui.yml"]


@pytest.mark.parametrize("name", MERGED)
def test_a_variant_changes_services_that_there_are_and_no_port(name: str) -> None:
    """So nothing more is published; without NVIDIA's cards nothing is left that asks for its driver."""
    yaml = YAML(typ="safe", pure=True)
    for tag in ("!reset", "!override"):
        yaml.constructor.add_constructor(tag, lambda _loader, node: node.tag)
    services = yaml.load((ROOT / "config/examples/compose" / name).read_text())["services"]
    assert services.keys() <= SERVICES.keys()
    changed = {service: changes for service, changes in services.items() if isinstance(changes, dict)}
    assert all(not {"ports", "networks", "volumes"} & changes.keys() for changes in changed.values())
    assert all(changes["deploy"] == "!reset" for service, changes in changed.items() if "deploy" in SERVICES[service])
    assert changed.keys() == {"ollama", "router"} or services == {"open-webui": "!reset"}
    assert name in (ROOT / "docs/operations.md").read_text()


def merged(base: Any, change: Any) -> Any:
    """Return a value with a change, by the rules of compose: mappings are merged, lists appended."""
    if isinstance(change, dict) and "!override" in change:
        return change["!override"]
    if isinstance(base, dict) and isinstance(change, dict):
        both = {key: merged(base[key], change[key]) if key in base else change[key] for key in change}
        return {key: value for key, value in {**base, **both}.items() if value != "!reset"}
    return [*base, *change] if isinstance(base, list) and isinstance(change, list) else change


@pytest.mark.parametrize("name", MERGED)
def test_what_a_variant_makes_of_the_file_agrees_with_the_compose_specification(name: str, tmp_path: Path) -> None:
    """And nothing in it asks for what the variant has taken out."""
    yaml = YAML(typ="safe", pure=True)
    yaml.constructor.add_constructor("!reset", lambda _loader, node: node.tag)
    overriding = lambda loader, node: {"!override": loader.construct_mapping(node, deep=True)}  # noqa: E731
    yaml.constructor.add_constructor("!override", overriding)
    whole = merged(COMPOSE, yaml.load((ROOT / "config/examples/compose" / name).read_text()))
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(tmp_path / "whole.json")]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    services = whole["services"]
    assert {needed for one in services.values() for needed in one.get("depends_on", {})} <= services.keys()
    assert {net for one in services.values() for net in one.get("networks", [])} <= whole["networks"].keys()
    used = {volume.partition(":")[0] for one in services.values() for volume in one.get("volumes", [])}
    assert {volume for volume in used if not volume.startswith((".", "/"))} <= whole["volumes"].keys()


def test_the_image_has_the_paths_and_ports_that_the_compose_file_counts_on() -> None:
    """The configuration's place, the volume, the ports, and the page of its health check."""
    text = (ROOT / "Dockerfile").read_text()
    config = mounted()
    assert "OLLAMA_ROUTER_CONFIG=/etc/ollama-router/router.yaml" in text
    assert f"VOLUME {STATE}" in text
    assert f"EXPOSE {config.listen.port} {config.admin.port}" in text
    assert f"http://127.0.0.1:{config.admin.port}/readyz" in text
    assert {port.split(":")[-1] for port in ROUTER["ports"]} == {str(config.listen.port), str(config.admin.port)}
    assert any(volume.endswith(f":{STATE}") for volume in ROUTER["volumes"])


def test_the_drop_in_moves_ollama_and_takes_its_port() -> None:
    """Both overrides and the example agree, and the README shows the same."""
    units = ROOT / "config/systemd/drop-in"
    config = load_config(ROOT / "config/examples/drop-in.yaml", env={})
    ollama, sockets = (units / "ollama.conf").read_text(), (units / "ollama-router.socket.conf").read_text()
    address = config.backends["local"].url.removeprefix("http://")
    override = f'[Service]\nEnvironment="OLLAMA_HOST={address}"\n'
    assert ollama.endswith(override)
    assert override in (ROOT / "README.md").read_text()
    assert sockets.endswith(f"[Socket]\nListenStream=\nListenStream={config.listen}\n")
    assert config.listen.port == 11434


def test_the_property_list_for_launchd_is_one() -> None:
    """It serves, starts again, and leaves time for running requests."""
    (path,) = (ROOT / "config/launchd").glob("*.plist")
    found = plistlib.loads(path.read_bytes())
    assert found["Label"] == path.stem
    assert found["ProgramArguments"][1:3] == ["serve", "--config"]
    assert found["KeepAlive"] is True
    assert found["ExitTimeOut"] > load_config(env={}).timeouts.shutdown_s


def test_health_is_readiness() -> None:
    """A container is healthy when it can serve."""
    # On the admin address, which never speaks TLS, and needs no key for this.
    assert "http://127.0.0.1:11436/readyz" in ROUTER["healthcheck"]["test"][-1]
    assert OLLAMA["environment"]["OLLAMA_NO_CLOUD"] == "1"
