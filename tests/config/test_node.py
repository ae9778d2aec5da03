"""The section `node`: what is refused, and what a reload does with its keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import Config, differences, load_config, way_of
from router.config.reload import watched_files
from router.errors import ConfigError

HASH = "ab" * 32


def loaded(tmp_path: Path, text: str | bytes = HASH, **more: object) -> Config:
    file = tmp_path / "fronts"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(env={}, options={"node.name": "gpu-a", "node.key_sha256_file": str(file), **more})


def test_a_router_is_not_a_node_unless_it_is_configured() -> None:
    assert load_config(env={}).node_keys == ()


def test_the_hashes_are_read_one_a_line(tmp_path: Path) -> None:
    assert loaded(tmp_path, f"{HASH}\n# old\n{'cd' * 32} *key\n").node_keys == (b"\xab" * 32, b"\xcd" * 32)


@pytest.mark.parametrize("text", ["", "# none\n", "secret-key", "ab", f"{HASH}\nsecret-key", b"\xff\xfe", "ab\n" * 17])
def test_what_is_no_hash_is_refused_and_not_shown(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.key_sha256_file") as failed:
        loaded(tmp_path, text)
    assert "secret-key" not in str(failed.value)


@pytest.mark.parametrize("key", ["node.name", "node.key_sha256_file"])
def test_one_key_of_the_section_without_the_other_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="name and key_sha256_file together"):
        load_config(env={}, options={key: "x"})


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 300, "ä"])
def test_a_name_is_one_of_a_host(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.name"):
        loaded(tmp_path, **{"node.name": name})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_config(env={}, options={"node.name": "a", "node.key_sha256_file": str(tmp_path / "nowhere")})


def test_other_keys_in_the_file_are_taken_over_by_a_reload(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    after = loaded(tmp_path, "cd" * 32)
    assert differences(before, after) == ["node.key_sha256_file"]
    assert way_of("node.key_sha256_file") == "next router"
    assert Path(before.node.key_sha256_file or "") in set(watched_files(before, None))
