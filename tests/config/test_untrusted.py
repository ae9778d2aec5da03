"""Files that were not written to be configurations end in one line, quickly."""

import os

import pytest

from router.config import load_config
from router.errors import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}], {new}1: *{old}}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "a tag that makes a Python object": ("a: !!python/object/apply:os.system ['true']", ":1: found the tag !!python"),
    "a tag of its own": ("hosts:\n  - !secret x", ":2: found the tag !secret"),
    "a tag of a mapping": ("queue: !include {}", ":1: found the tag !include"),
    "a tag that is declared": ("%TAG ! tag:x,2000:\n---\nhosts: !b [c]", "found the tag tag:x,2000:b"),
    "a tag of another kind": ("watch_files: !!bool x", "a value that is not what its tag says"),
    "a tag of no number": ("limits: {headers: !!int x}", "invalid YAML"),
    "a tag of no fraction": ("limits: {headers: !!float x}", "invalid YAML"),
    "a list that is tagged as text": ("hosts: !!str [a]", ":1: found the tag !!str"),
    "text that is tagged as a list": ("hosts: !!seq a", ":1: found the tag !!seq"),
    "a mapping that is tagged as a number": ("hosts: !!int {a: 1}", ":1: found the tag !!int"),
    "nothing that is tagged as truth": ("watch_files: !!bool", "a value that is not what its tag says"),
    "bytes": ("hosts: [!!binary aGk=]", "found the tag !!binary"),
    "aliases that multiply": (LAUGHS, "found more than 200000 values"),
    "mappings that multiply": (MERGES, "unknown key"),
    "a list within itself": ("hosts: &a [*a]", "allowed"),
    "very many aliases": ("hosts: &a x\n" + "\n".join(f"k{i}: *a" for i in range(1500)), "more than 1000 aliases"),
    "very many levels": ("hosts: " + "[" * 3000, "nested too deeply"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_hostile_yaml_is_refused_in_one_line(case, tmp_path):
    """Before anything is built from it."""
    text, expected = BAD[case]
    file = tmp_path / "router.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(file, env={})
    assert expected in refused.value.message


def test_plain_tags_anchors_and_merges_are_yaml(tmp_path):
    """They mean what they say."""
    file = tmp_path / "router.yaml"
    file.write_text(
        "chains:\n  a: &one {variants: [x:8b, !!str y], nothing_fits: wait}\n"
        "  b: *one\n  c: {<<: *one, upgrade: never}\n"
    )
    chains = load_config(file, env={}).chains
    assert chains["a"] == chains["b"]
    assert (chains["c"].nothing_fits, chains["c"].upgrade) == ("wait", "never")


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "endless device", "missing", "no path"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    """A pipe that nobody writes to is never waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    places = {"pipe": pipe, "device": "/dev/null", "directory": tmp_path, "endless device": "/dev/zero"}
    with pytest.raises(ConfigError, match="a readable YAML file"):
        load_config(places.get(kind, tmp_path / ("none" if kind == "missing" else "a\0b")), env={})


def test_a_tag_in_the_environment_is_refused():
    """Its values are YAML, too."""
    with pytest.raises(ConfigError, match="found the tag !x"):
        load_config(env={"OLLAMA_ROUTER_HOSTS": "[!x y]"})
