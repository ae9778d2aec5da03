"""Nodes by a list and by a name."""

from __future__ import annotations

import asyncio
import socket

from ollama_simulator.clock import run_virtual
from router.adapters.discovery.dns import DnsNodes, resolve
from router.adapters.discovery.found import MOST_NODES, bounded
from router.adapters.discovery.static import StaticNodes


def told_by(discovery, seconds):
    """Return what a discovery tells within some virtual seconds."""
    seen = []

    async def run():
        task = asyncio.create_task(discovery.watch(lambda nodes: seen.append(dict(nodes))))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtual(run())
    return seen


def test_listed_nodes_are_told_once():
    """By their URLs."""
    assert told_by(StaticNodes(("http://a:1", "http://b:1")), 60) == [
        {"http://a:1": "http://a:1", "http://b:1": "http://b:1"}
    ]


def test_the_addresses_of_a_name_are_followed():
    """A change is told at the next look; what stays is not told again."""
    answers = [["10.0.0.1"], ["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["fd00::2"]]
    asked = []

    async def look(name, port):
        asked.append((name, port))
        return answers[min(len(asked), len(answers)) - 1]

    seen = told_by(DnsNodes("nodes.llm", 11435, 5.0, print, look), 16)
    assert seen == [
        {"10.0.0.1": "http://10.0.0.1:11435"},
        {"10.0.0.1": "http://10.0.0.1:11435", "10.0.0.2": "http://10.0.0.2:11435"},
        {"fd00::2": "http://[fd00::2]:11435"},
    ]
    assert asked == [("nodes.llm", 11435)] * 4


def test_nodes_with_certificates_are_told_with_https():
    """Of IPv6 as well."""

    async def look(_name, _port):
        return ["10.0.0.1", "fd00::2"]

    assert told_by(DnsNodes("nodes", 1, 5.0, print, look, is_tls=True), 1) == [
        {"10.0.0.1": "https://10.0.0.1:1", "fd00::2": "https://[fd00::2]:1"}
    ]


def test_a_name_that_cannot_be_resolved_takes_no_node_away():
    """It is reported once until it can be again."""
    said = []
    answers = [
        ["10.0.0.1"],
        socket.gaierror(-2, "not known"),
        socket.gaierror(-2, "not known"),
        ["10.0.0.1"],
        OSError(),
    ]

    async def look(_name, _port):
        found = answers.pop(0) if answers else ["10.0.0.1"]
        if isinstance(found, OSError):
            raise found
        return found

    assert told_by(DnsNodes("nodes", 1, 5.0, said.append, look), 30) == [{"10.0.0.1": "http://10.0.0.1:1"}]
    assert len(said) == 2
    assert said[0].startswith("the name nodes of the nodes cannot be resolved")


def test_the_system_resolves_names():
    """Without a server for names, those of this machine."""
    assert "127.0.0.1" in asyncio.run(resolve("localhost", 1)) or "::1" in asyncio.run(resolve("localhost", 1))


def test_no_discovery_brings_nodes_without_bound():
    """Each has a connection of its own."""
    many = {f"{number:06}": f"http://{number}:1" for number in range(MOST_NODES + 10)}
    assert len(bounded(many)) == MOST_NODES
    assert bounded(many) == bounded(dict(reversed(many.items())))
