"""How single values are written, and what is said of one that cannot stand."""

import math
from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from router.config import load_config, names, values
from router.config.sections import LogField
from router.config.values import Address
from router.errors import ConfigError
from router.telemetry.log import RequestLine

GOOD = [
    (values.parse_address, "127.0.0.1:80", Address("127.0.0.1", 80)),
    (values.parse_address, " [::1]:0 ", Address("::1", 0)),
    (values.parse_address, Address("a", 1), Address("a", 1)),
    (values.parse_duration, "1h30m", 5400.0),
    (values.parse_duration, "250ms", 0.25),
    (values.parse_duration, 0, 0.0),
    (values.parse_positive, 0.5, 0.5),
    (values.parse_keep_alive, "forever", math.inf),
    (values.parse_keep_alive, -1, math.inf),
    (values.parse_keep_alive, math.inf, math.inf),
    (values.parse_keep_alive, "5m", 300.0),
    (values.parse_url, "http://gpu.lan:11434/", "http://gpu.lan:11434"),
    (values.parse_url, "https://gpu.lan/ollama/v2/", "https://gpu.lan/ollama/v2"),
    (values.parse_model, " llama3:8b ", "llama3:8b"),
    (values.parse_pattern, "qwen3:*", "qwen3:*"),
    (values.parse_num_ctx, None, None),
    (values.parse_num_ctx, "max", "max"),
    (values.parse_num_ctx, 4096, 4096),
    (names.parse_host, " GPU.Lan. ", "gpu.lan"),
    (names.parse_host, "*.gpu.lan", "*.gpu.lan"),
    (names.parse_host, "gpu-*.lan", "gpu-*.lan"),
    (names.parse_host, "*", "*"),
    (names.parse_host, "[2A00::5]", "2a00::5"),
    (names.parse_host, "münchen.lan", "xn--mnchen-3ya.lan"),
    (names.parse_origin, " https://Chat.example/ ", "https://chat.example"),
    (names.parse_origin, "http://*.lan", "http://*.lan"),
    (names.parse_origin, "app://*", "app://*"),
    (names.parse_origin, "*", "*"),
    (values.parse_gpus, "none", "none"),
    (values.parse_gpus, [0, "GPU-8f3c"], (0, "GPU-8f3c")),
]
BAD = [
    (values.parse_address, ["80", "a b:80", "::1:80", "[127.0.0.1]:80", "host:70000", "host:x", ":80", 80, None]),
    (values.parse_duration, ["5", "5 m", "-5s", "", -1, math.nan, math.inf, True, None]),
    (values.parse_positive, [0, "0s"]),
    (values.parse_keep_alive, ["always", True, None]),
    (
        values.parse_url,
        [
            "ftp://h",
            "http://",
            "http://u:p@h",
            "http://h/../x",
            "http://h//x",
            "http://h/a b",
            "http://h/%41",
            "http://h?q",
            "http://h?",
            "http://h/x#",
            "http://h:0",
            "http://h:x",
            "http://gpü.lan",
            "http://a b:1",
            "http://[",
            7,
        ],
    ),
    (values.parse_model, ["", "a b", "x:cloud", 7]),
    (values.parse_pattern, ["a b*", 7, None]),
    (values.parse_num_ctx, [0, -1, True, 1.5, "many"]),
    (
        names.parse_host,
        [
            "http://gpu.lan",
            "gpu.lan:80",
            "gpu.*",
            "**",
            "a*b*.lan",
            "-a.lan",
            "a-.lan",
            "10.0.0.0/8",
            ".lan",
            "a..b",
            "a b",
            "",
            "gpu/x",
            5,
        ],
    ),
    (names.parse_origin, ["chat.example", "https://a/b", "http://*:*", "https://", "", 5]),
    (values.parse_gpus, ["all", [], [0, 0], [-1], [True], [" "], [1.5], None]),
]


@pytest.mark.parametrize(("parse", "text", "value"), GOOD)
def test_a_value_is_read_as_it_is_meant(parse, text, value):
    """In each way in which it may be written."""
    assert parse(text) == value


@pytest.mark.parametrize(("parse", "text"), [(parse, text) for parse, texts in BAD for text in texts])
def test_a_value_that_cannot_stand_is_answered_with_what_can(parse, text):
    """The error is the documentation that its reader needs."""
    with pytest.raises(PydanticCustomError) as refused:
        parse(text)
    assert refused.value.type == "allowed"
    assert len(refused.value.message()) > 10


PARSERS = [parse for parse, _, _ in GOOD]


@given(
    st.sampled_from(PARSERS),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers())),
)
def test_no_value_raises_anything_else(parse, value):
    """Whatever stands in a file."""
    with suppress(PydanticCustomError):
        parse(value)


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("localhost", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("h", False)]
)
def test_an_address_knows_whether_only_this_machine_can_reach_it(host, is_loopback):
    """Names that are not known do not count."""
    assert Address(host, 1).is_loopback is is_loopback


def test_an_address_is_written_so_that_it_can_be_read_again():
    """IPv6 in brackets."""
    for text in ("127.0.0.1:80", "[::1]:80"):
        assert str(values.parse_address(text)) == text


def test_fields_of_the_log_are_those_of_a_requests_line():
    """The configuration cannot import them."""
    assert get_args(LogField) == RequestLine.__struct_fields__


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("trusted_proxies: [10.0.0.1/8]", "an IP address or network"),
        ("trusted_proxies: [proxy.lan]", "an IP address or network"),
        ("trusted_proxies: [5]", "an IP address or network"),
        ("proxy_protocol: true", "false, or trusted_proxies that say who sends it"),
        ("{ proxy_protocol: true, trusted_proxies: [::1], tls: { cert: a } }", "false: with tls"),
        ("tls: { client_ca: a }", "null, or tls.cert"),
        ("backends: { a: { client_key: a } }", "client_key together with client_cert"),
        ("telemetry: { log_fields: [prompt] }", '"ts", "level"'),
        ("clients: { num_gpu: no }", '"allow", "ignore" or "refuse"'),
        ("clients: { nothing_fits: [spill] }", '"refuse", "wait"'),
        ("backends: { a: { bearer_file: a, basic_file: b } }", "one of bearer_file and basic_file"),
    ],
)
def test_what_the_listener_must_not_be_is_one_clear_line(tmp_path, text, allowed):
    """With key, value and what is allowed."""
    file = tmp_path / "router.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, env={})
    assert f"allowed: {allowed}" in caught.value.message
    assert "\n" not in caught.value.message
