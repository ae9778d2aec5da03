"""The names under which clients may reach the router: by themselves, by the configuration, and never."""

from __future__ import annotations

import pytest

from router.http.server.heads import judge
from router.http.server.hosts import HostRule, host_of, how_to_allow

HOSTS = ("gpu.corp.example", "*.below.example", "gpu-*.rack.example", "8.8.4.4", "2a00::5")
LOOPBACK = HostRule(HOSTS, is_loopback=True)
OPEN = HostRule(HOSTS, is_loopback=False)

ALLOWED_HOSTS = ["localhost", "LOCALHOST:11434", "127.0.0.1:1", "[::1]:80", "10.0.0.7", "192.168.1.5:99", "a.localhost"]
ALLOWED_HOSTS += ["x.local", "router.internal:80", "0.0.0.0:1", "gpu.corp.example", "GPU.corp.example:443", ""]
DENIED_HOSTS = [
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "local",
    "8.8.8.8",
]
DENIED_HOSTS += ["[2001:db8::1]:1".replace("2001:db8", "2a00"), "internal", "xlocal", "127.0.0.1@evil.example"]


ALLOWED_HOSTS += ["ollama.ai.svc:11434", "ollama.ai.svc.cluster.local", "gpu.lan", "nas.home.arpa:1", "a.tail1.ts.net"]
ALLOWED_HOSTS += ["localhost.", "LocalHost.:80", "gpu.corp.example.", "a.local.", "127.0.0.1.", "localhost:"]
ALLOWED_HOSTS += ["a.below.example", "a.b.Below.example:443", "gpu-7.rack.example", "gpu-.rack.example"]
ALLOWED_HOSTS += ["8.8.4.4:1", "[2a00::5]:1", "[2A00::5]", "::1", "[::ffff:127.0.0.1]:80", "[fe80::1%25eth0]:80"]
DENIED_HOSTS += [
    "below.example",
    "xbelow.example",
    "a.below.example.evil",
    "below.example.evil",
    "x.gpu-7.rack.example",
]
DENIED_HOSTS += ["gpu-7.x.rack.example", "rack.example", "lan.evil.example", "gpu.lan.evil.example", "svc", "xts.net"]
DENIED_HOSTS += ["ts.net", "home.arpa", "arpa", "a.arpa", "localhost..", "evil.example.", "[::ffff:8.8.8.8]", "127.1"]
HARMLESS_BEYOND_LOOPBACK = ("8.8.8.8", "local", "internal", "xlocal", "svc", "arpa")


@pytest.mark.parametrize("host", ALLOWED_HOSTS)
def test_local_names_and_addresses_are_allowed_e2(host: str) -> None:
    """On every bind address."""
    assert LOOPBACK.allows(host.encode())
    assert OPEN.allows(host.encode())


@pytest.mark.parametrize("host", DENIED_HOSTS)
def test_foreign_names_are_denied_e2(host: str) -> None:
    """On loopback as by Ollama; on other binds addresses and names without a dot are allowed."""
    assert not LOOPBACK.allows(host.encode())
    is_harmless = host in HARMLESS_BEYOND_LOOPBACK or host.startswith("[")
    assert OPEN.allows(host.encode()) is is_harmless


def test_any_name_is_allowed_by_a_star() -> None:
    """It is the operator's word."""
    assert HostRule(("*",), is_loopback=True).allows(b"evil.example:80")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("A.b:80", "a.b"), ("a.b.", "a.b"), ("a.b.:80", "a.b"), ("a:", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"),
        ("fe80::1", "fe80::1"), ("", ""), (".", "."), ("a:x", "a"), ("[::1].evil.example", "[::1].evil.example"),
    ],
)  # fmt: skip
def test_the_name_is_read_without_port_brackets_case_and_final_dot(value: str, name: str) -> None:
    """As a browser or a resolver would take it."""
    assert host_of(value.encode()) == name


MALFORMED = ["[::1].evil.example", "[::1]evil", "[::1]:80.evil.example", "[evil.example]", "[localhost]", "[127.0.0.1]"]
MALFORMED += ["[::1", "::1]", "a[::1]", "[]", "[::1]:x", "[[::1]]", "a b", "a/b", "a@b", "a#b", "[::1]@evil.example"]


@pytest.mark.parametrize("value", MALFORMED)
def test_brackets_around_anything_but_an_address_are_a_malformed_host_e2(value: str) -> None:
    """Two readers could take different names from it."""
    headers = [(b"host", value.encode())]
    assert judge(headers, dict(headers), "1.1") == (400, b"malformed Host header")
    assert not OPEN.allows(value.encode()) or value in ("a b", "a/b", "a@b", "a#b")


@pytest.mark.parametrize("value", ["[::1]", "[::1]:80", "[::1]:", "[fe80::1%25eth0]:1", "::1", "a:b:c", "", "a_b.c:1"])
def test_other_values_are_left_to_the_rule_as_by_go(value: str) -> None:
    """Also such as no browser sends."""
    headers = [(b"host", value.encode())]
    assert judge(headers, dict(headers), "1.1") is None


def test_a_refusal_says_what_to_configure() -> None:
    """Key and value; nothing is suggested for what is no name."""
    assert 'hosts: ["gpu.corp.example"]' in how_to_allow(b"GPU.corp.example.:11435")
    assert "hosts:" not in how_to_allow(b"!$&.example")
    assert len(how_to_allow(b"a" * 5000)) < 1000


def test_a_value_longer_than_any_name_is_refused_and_not_remembered() -> None:
    """Clients can make up any number of them."""
    rule = HostRule(("*", "*.x", "a*.b*.c"), is_loopback=False)
    assert not rule.allows(b"a" * 300)
    assert rule.allows(b"a" * 253)
    assert rule._cached.cache_info().currsize == 1


def test_no_value_makes_a_pattern_slow() -> None:
    """The longest names, made of what patterns repeat."""
    rule = HostRule(("*.a*.a*.a*.a*.a*.b", "a*a.a*a.b"), is_loopback=True)
    for value in (b"a." * 126, b"a" * 253, b"aa." * 84, b"-." * 126):
        assert not rule.allows(value)
