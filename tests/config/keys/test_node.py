"""The section `node`: what fronts may ask of this router, and who is one."""

from __future__ import annotations

import hashlib

import pytest

from tests.config.keys.play import SMALL, hello
from tests.routing.nodes.stage import KEY, call_for, play


@pytest.mark.key("node.name")
def test_name_is_what_a_node_says_of_itself():
    """Without one the router is not a node."""

    async def story(node):
        return (await node.view()).name

    async def other(node):
        return (await node.get("/router/node")).status

    assert [play(story, {"node.name": name}) for name in ("gpu-a", "gpu-b.lan")] == ["gpu-a", "gpu-b.lan"]
    assert play(other, is_node=False) == 404


@pytest.mark.key("node.key_sha256_file")
def test_key_sha256_file_says_who_is_a_front(tmp_path):
    """Each line is the hash of a key that counts; a next one is added before the fronts change theirs."""
    one, two = tmp_path / "one", tmp_path / "two"
    hashes = {key: hashlib.sha256(key.encode()).hexdigest() for key in (KEY, "the-next-key")}
    one.write_text(f"{hashes[KEY]}\n")
    two.write_text(f"# until Friday\n{hashes[KEY]}  -\n\n{hashes['the-next-key'].upper()}\n")

    async def story(node):
        found = [await node.ask(call_for(SMALL), hello(SMALL), key=key) for key in (*hashes, "third")]
        return [reply.status for reply in found]

    results = [play(story, {"node.key_sha256_file": str(file)}) for file in (one, two)]
    assert results == [[200, 401, 401], [200, 200, 401]]
