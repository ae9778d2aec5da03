"""Addresses of this machine count as local ones, if they can be had."""

import socket

import pytest

from router.http.server.hosts import HostRule, _own_addresses


@pytest.fixture(autouse=True)
def _way():
    """Nothing here is taken by an edge: once is enough."""


@pytest.fixture(autouse=True)
def _forget():
    _own_addresses.cache_clear()
    yield
    _own_addresses.cache_clear()


def test_the_machines_own_address_is_let_in(monkeypatch):
    """A public one of somebody else is not."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", ("8.8.4.4", 0))])
    rule = HostRule((), is_loopback=True)
    assert rule.allows(b"8.8.4.4:11434")
    assert not rule.allows(b"8.8.8.8")


def test_a_machine_that_does_not_know_itself_lets_in_local_addresses_only(monkeypatch):
    """Its name cannot be resolved: no error."""

    def fail(*_):
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    rule = HostRule((), is_loopback=True)
    assert rule.allows(b"127.0.0.1")
    assert not rule.allows(b"8.8.4.4")
