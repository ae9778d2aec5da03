"""Paths in the configuration are relative to the file that names them, all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from router.config import load_config, outside_files, watched_files
from router.config.paths import FileName, StoreName
from router.config.root import Config
from router.config.team_section import TeamSection
from router.errors import ConfigError

DIGEST, OTHER = "9f" * 32, "8e" * 32
PATHS = {
    "store.path": "state/learned.sqlite",
    "usage.path": "state/usage.sqlite",
    "audit.path": "audit.jsonl",
    "tls.cert": "tls/cert.pem",
    "tls.key": "./tls/key.pem",
    "backends.local.ca": "../ca.pem",
    "backends.local.bearer_file": "token",
    "backends.local.probe.root": "sys-of-a-container",
}


def fields(root: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of all fields that are texts of the file, with their annotations."""
    for name, field in root.model_fields.items():
        path = f"{key}{field.alias or name}"
        found = [one for one in _kinds(field.annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
        for section in found:
            yield from fields(section, f"{path}.")
        if not found:
            yield path, (field.annotation, field.metadata)


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for one in get_args(annotation):
        yield from _kinds(one)


def named(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = config
    for part in key.split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found


def keys_of_files(*roots: Any) -> set[str]:
    """Return the keys that name a file, by their own names."""
    named = re.compile(r"(.*[._])?(path|file|cert|ca|root|key)")
    return {key for root in roots for key, _ in fields(root) if named.fullmatch(key)}


WITH_THE_CONFIGURATION = {"admin_keys.sha256_file", "node.key_sha256_file"}
WRITTEN = {"store.path", "usage.path", "audit.path"}
A_DIRECTORY = {"backends.probe.root"}
OUTSIDE = {
    "tls": {"cert": "cert", "key": "tls-key", "client_ca": "ca-of-clients"},
    "usage": {"postgres_file": "pg"},
    "shared": {"valkey": "valkeys://h:1", "password_file": "password", "ca": "ca-of-valkey"},
    "backends": {
        "one": {
            "url": "https://h",
            "ca": "ca",
            "bearer_file": "bearer",
            "client_cert": "own-cert",
            "client_key": "own-key",
        },
        "other": {"basic_file": "basic"},
    },
}
OF_A_FRONT = {"backends": {"pool": {"kind": "node", "key_file": "key", "discover": {"static": ["http://h:1"]}}}}


def test_every_file_that_is_read_when_a_router_starts_is_known_as_one(tmp_path: Path) -> None:
    """By the names of their keys. So `check` reads it, and a reload follows it; both routers have all of theirs."""
    found = set()
    for config in (OUTSIDE, OF_A_FRONT):
        file = tmp_path / "router.yaml"
        file.write_text(json.dumps(config))
        loaded = load_config(file, env={})
        outside = dict(outside_files(loaded))
        assert {Path(name) for name in outside.values()} < set(watched_files(loaded, file))
        found |= {".".join(path[:1] + path[2:] if path[0] == "backends" else path) for path in outside}
    assert found == keys_of_files(Config) - WITH_THE_CONFIGURATION - WRITTEN - A_DIRECTORY


def test_every_key_that_names_a_file_has_the_rule() -> None:
    """By their names: whoever adds one finds it here. `command` is run as a shell would."""
    files = keys_of_files(Config, TeamSection)
    kinds = (FileName, StoreName)
    have = {
        key
        for root in (Config, TeamSection)
        for key, (annotation, _) in fields(root)
        if any(kind in _kinds(annotation) for kind in kinds)
    }
    assert files == have | {"backends.probe.root"}  # which has no null, so that its rule is among the metadata


def test_a_path_is_relative_to_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the router was started, and however it was told of the file."""
    folder, elsewhere = tmp_path / "etc", tmp_path / "elsewhere"
    for one in (folder, elsewhere):
        one.mkdir()
    file = folder / "router.yaml"
    text = {section: {} for section in ("store", "usage", "audit", "tls")}
    for key, value in PATHS.items():
        if not key.startswith("backends"):
            text[key.partition(".")[0]][key.partition(".")[2]] = value
    lines = [f"{section}: {{ {', '.join(f'{k}: {v}' for k, v in keys.items())} }}" for section, keys in text.items()]
    lines.append(
        "backends: { local: { url: 'https://h', ca: ../ca.pem, bearer_file: token, "
        "probe: { root: sys-of-a-container } } }"
    )
    file.write_text("\n".join(lines))
    expected = {key: str(folder / value) for key, value in PATHS.items()}
    monkeypatch.chdir(elsewhere)
    assert {key: named(load_config(file, env={}), key) for key in PATHS} == expected
    monkeypatch.chdir(folder)
    for env, given in (({}, Path("router.yaml")), ({"OLLAMA_ROUTER_CONFIG": "router.yaml"}, None)):
        found = load_config(given, env=env)
        assert {key: named(found, key) for key in PATHS} == expected
    file.write_text("usage: { path: /var/usage.sqlite }\naudit: { path: ~/audit.jsonl }\nstore: { path: ':memory:' }\n")
    monkeypatch.setenv("HOME", "/home/ops")
    found = load_config(file, env={"OLLAMA_ROUTER_TLS__CERT": "cert.pem"})
    assert (found.usage.path, found.audit.path) == ("/var/usage.sqlite", "/home/ops/audit.jsonl")
    assert (found.store.path, found.tls.cert) == (":memory:", str(folder / "cert.pem"))
    assert load_config(env={"OLLAMA_ROUTER_USAGE__PATH": "u.sqlite"}).usage.path == str(folder / "u.sqlite")


def test_a_path_in_a_teams_file_is_relative_to_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the names of folders have characters of patterns; and these files are watched."""
    folder = tmp_path / "etc [a] *"
    (folder / "teams").mkdir(parents=True)
    (folder / "teams" / "coding.yaml").write_text("team: coding\nkeys: [{ id: k, sha256_file: ../hash }]\n")
    (folder / "hash").write_text(DIGEST)
    (folder / "hash-of-admins").write_text(OTHER)
    file = folder / "router.yaml"
    file.write_text("teams: teams/*.yaml\nadmin_keys: [{ id: ops, sha256_file: hash-of-admins }]\n")
    monkeypatch.chdir(tmp_path)
    found = load_config(file, env={})
    assert found.team_files[0].keys[0].sha256.hex() == DIGEST
    assert found.keys_of_admins[0].sha256.hex() == OTHER
    watched = {path.resolve() for path in watched_files(found, file)}
    assert watched == {file, folder / "hash", folder / "hash-of-admins", folder / "teams" / "coding.yaml"}


@pytest.mark.parametrize("value", ['""', '" "', '"a\\0b"', "~nobody-of-that-name/x"])
@pytest.mark.parametrize("key", ["usage", "store"])
def test_what_is_no_path_is_refused(key: str, value: str, tmp_path: Path) -> None:
    """With the line, instead of by an error of the system later."""
    file = tmp_path / "router.yaml"
    file.write_text(f"{key}: {{ path: {value} }}\n")
    with pytest.raises(ConfigError, match=rf"router\.yaml:1: {key}\.path: .* allowed: (the|a) path"):
        load_config(file, env={})
