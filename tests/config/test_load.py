"""Loading: the errors of a broken file, and which source wins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from router.config import Address, Config, effective, load_config
from router.errors import ConfigError

BROKEN = {
    "a key twice": ("chains:\n  a: [b]\n  a: [c]\n", "router.yaml:3: found the key a twice"),
    "a typing error in a key": (
        "queue:\n  max_waitin: 3\n",
        "router.yaml:2: queue.max_waitin: found the unknown key max_waitin (did you mean max_waiting?); "
        "allowed: max_waiting, wait_s, age_bound_s, cost_factor, affinity_count",
    ),
    "an unknown key at the top": ("colour: red\n", "router.yaml:1: colour: found the unknown key colour"),
    "an unknown key of a variant": (
        "chains:\n  a:\n    - { modle: b }\n",
        "router.yaml:3: chains.a[0].modle: found the unknown key modle (did you mean model?); allowed: model, num_ctx",
    ),
    "an unknown key of a static card": (
        "backends:\n  x:\n    probe:\n      kind: static\n      gpus: [{ total_mib: 1, fre: 2 }]\n",
        "router.yaml:5: backends.x.probe.gpus[0].fre: found the unknown key fre",
    ),
    "an unknown key of the server": (
        "backends: { x: { server: { parallel: 2 } } }\n",
        "backends.x.server.parallel: found the unknown key parallel (did you mean num_parallel?)",
    ),
    "a word that is not offered": (
        "defaults:\n  nothing_fits: maybe\n",
        'router.yaml:2: defaults.nothing_fits: found "maybe"; '
        'allowed: "refuse", "wait", "allow_partial" or "passthrough"',
    ),
    "a context that is not a number": (
        'chains:\n  "llama3.3:70b":\n    - a\n    - { model: b, num_ctx: big }\n',
        'router.yaml:4: chains."llama3.3:70b"[1].num_ctx: found "big"; allowed: a number of tokens',
    ),
    "an invalid model name": (
        "chains:\n  a: [x, 'b c']\n",
        'router.yaml:2: chains.a[1]: found "b c"; allowed: the name',
    ),
    "a cloud model in a chain": ("chains: { a: ['gpt-oss:120b-cloud'] }\n", "chains.a[0]: found"),
    "a variant that is a number": ("chains: { a: [5] }\n", "chains.a[0]: found 5; allowed: a model name"),
    "an invalid name of a chain": ("chains: { '!!': auto }\n", 'chains."!!": found "!!"; allowed: a model name'),
    "a chain that is a word": ("chains: { a: autto }\n", 'chains.a: found "autto"; allowed: "auto", "quantizations"'),
    "a chain that is a number": ("chains: { a: 5 }\n", 'chains.a: found 5; allowed: "auto"'),
    "an empty chain": ("chains: { a: [] }\n", "chains.a: found []; allowed:"),
    "a chain without variants": ("chains: { a: { preload: true } }\n", "chains.a: found no key variants"),
    "a variant twice": (
        "chains:\n  a: [b, c, 'b:latest']\n",
        'chains.a[2]: found "b:latest"; allowed: each variant once',
    ),
    "two chains for one model": ("chains:\n  a: [b]\n  A:latest: [c]\n", 'router.yaml:3: chains."A:latest": found'),
    "chains in a circle": ("chains:\n  a: [b]\n  b: [c]\n  c: [a]\n", "router.yaml:2: chains.a: found"),
    "a pattern to preload": (
        "chains: { 'q*': { variants: auto, preload: true } }\n",
        'chains."q*".preload: found true',
    ),
    "an invalid duration": (
        "queue:\n  wait_s: soon\n",
        'router.yaml:2: queue.wait_s: found "soon"; allowed: a duration',
    ),
    "a duration of nothing": ("switch: { poll_s: 0 }\n", "switch.poll_s: found 0; allowed: a duration above 0"),
    "a negative duration": (
        "queue: { age_bound_s: -1 }\n",
        "queue.age_bound_s: found -1; allowed: a duration of at least 0",
    ),
    "an endless duration": ("queue: { age_bound_s: .inf }\n", "queue.age_bound_s: found Infinity"),
    "an invalid keep-alive": ("defaults: { keep_alive_s: always }\n", 'found "always"; allowed: a duration: seconds'),
    "an address without port": (
        "listen: localhost\n",
        'router.yaml:1: listen: found "localhost"; allowed: an address such as',
    ),
    "an address that is a number": ("listen: 11435\n", "listen: found 11435"),
    "a port too high": ("listen: 127.0.0.1:65536\n", "listen: found"),
    "an IPv6 address without brackets": ("listen: '::1:11435'\n", "listen: found"),
    "an invalid host": ("listen: '-a:1'\n", "listen: found"),
    "both listeners on one address": ("listen: 127.0.0.1:1\nadmin: 127.0.0.1:1\n", "router.yaml:2: admin: found"),
    "the router as its own backend": ("backends: { a: { url: http://127.0.0.1:11435 } }\n", "not the router's own"),
    "two backends with one Ollama": ("backends:\n  a: {}\n  b: {}\n", "an Ollama of its own, not that of backends.a"),
    "no backend": ("backends: {}\n", "backends: found {}; allowed: at least 1"),
    "a URL with a path": ("backends: { a: { url: http://h/v1 } }\n", "backends.a.url: found"),
    "a URL that is not text": ("backends: { a: { url: 5 } }\n", "backends.a.url: found 5"),
    "a URL with a bad port": ("backends: { a: { url: 'http://h:x' } }\n", "backends.a.url: found"),
    "GPUs twice": ("backends: { a: { gpus: [0, 0] } }\n", "backends.a.gpus: found [0, 0]; allowed:"),
    "GPUs by weight": ("backends: { a: { gpus: [1.5] } }\n", "backends.a.gpus: found [1.5]; allowed:"),
    "a command probe without command": (
        "backends: { a: { probe: { kind: command } } }\n",
        "together with the key command",
    ),
    "a smallest context above the largest": ("defaults: { min_num_ctx: 65536 }\n", "allowed: at most num_ctx (32768)"),
    "a limit below the smallest context": ("defaults: { max_num_ctx: 4096 }\n", "allowed: at least min_num_ctx (8192)"),
    "odd steps": ("defaults: { num_ctx_steps: 1000 }\n", "allowed: a multiple of 256"),
    "a fraction of a byte": ("limits: { body_bytes: 1.5 }\n", "limits.body_bytes: found 1.5; allowed: a whole number"),
    "YAML 1.1's yes": ("insecure_no_auth: yes\n", 'found "yes"; allowed: true or false'),
    "a word for a list": ("hosts: a.example\n", 'hosts: found "a.example"; allowed: a list'),
    "a number for text": ("hosts: [5]\n", "hosts[0]: found 5; allowed: a host name such as"),
    "a list for a section": ("queue: []\n", "queue: found []; allowed: a mapping of keys"),
    "no file of a team": (
        "teams: nowhere/*.yaml\n",
        "router.yaml:1: teams: found no file that matches nowhere/*.yaml in",
    ),
    "a default team without a file": (
        "listen: 127.0.0.1:1\ndefault_team: coding\n",
        'router.yaml:2: default_team: found "coding"; allowed: anonymous',
    ),
    "a list at the top": ("- a\n", "router.yaml:1: found a list at the top; allowed: a mapping of keys"),
    "a word at the top": ("hello\n", "router.yaml:1: found 'hello' at the top"),
    "half a file": ("chains:\n  a: [b,\n", "invalid YAML"),
    "a tab": (
        "queue:\n\twait_s: 1\n",
        "found character '\\t' that cannot start any token; allowed: spaces, where there is a tab",
    ),
    "two documents": ("listen: 127.0.0.1:1\n---\nlisten: 127.0.0.1:2\n", "invalid YAML"),
    "a number as key": ("1: a\n", "router.yaml:1: found the key 1; allowed: text"),
    "an anchor within itself": ("chains: &a\n  x: *a\n", "chains.x: found null"),
    "brackets without end": ("[" * 1000, "invalid YAML"),
    "too many levels": ("chains: " + "{a: " * 50 + "1" + "}" * 50, "found more than 32 levels"),
    "a control character": ("listen: \x01\n", "invalid YAML"),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_broken_file_is_refused_with_line_key_and_what_is_allowed(case: str, tmp_path: Path) -> None:
    """The error of each broken file names its place and what is allowed there."""
    text, expected = BROKEN[case]
    file = tmp_path / "router.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, env={})
    assert expected in caught.value.message
    assert all(line.startswith(str(file)) for line in caught.value.message.splitlines())


def test_every_problem_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    """Two errors are two lines, each with its own place."""
    file = tmp_path / "router.yaml"
    file.write_text("queue: { wait_s: soon }\nlimits:\n  pool: 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, env={})
    lines = caught.value.message.splitlines()
    assert [line.removeprefix(str(file)).split(" ")[0] for line in lines] == [":1:", ":3:"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        (b"a: \xff\n", ":1: found bytes that are not text"),
        (b"#" * (5 << 20), "at most 4194304"),
    ],
)
def test_unreadable_file_is_refused(content: bytes | None, expected: str, tmp_path: Path) -> None:
    """A file that is missing, not text, or too large is reported as such."""
    file = tmp_path / "router.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(file, env={})


def test_secret_in_a_wrong_value_is_not_repeated(tmp_path: Path) -> None:
    """A URL with a password is refused without showing the password."""
    file = tmp_path / "router.yaml"
    file.write_text("backends: { a: { url: 'http://me:hunter2@host:1' } }\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, env={})
    assert "hunter2" not in caught.value.message


def test_effective_configuration_masks_secrets(tmp_path: Path) -> None:
    """Passwords in URLs and tokens in a probe's command are stars in the printed configuration."""
    file = tmp_path / "router.yaml"
    file.write_text(
        "backends: { a: { probe: { kind: prometheus, url: 'http://me:hunter2@host/metrics?token=hunter3',"
        " command: [curl, '--header=key: hunter4'] } } }\n"
    )
    shown = str(effective(load_config(file, env={})))
    assert "hunter" not in shown
    assert "http://***@host/metrics?token=***" in shown


def test_no_file_gives_the_defaults() -> None:
    """Without file and environment every key has its default."""
    assert load_config(env={}) == Config()
    assert Config().listen == Address("127.0.0.1", 11435)


@pytest.mark.parametrize("text", ["", "# nothing\n", "chains:\nqueue:\n", "\ufeffqueue: {}\n"])
def test_empty_sections_are_the_defaults(text: str, tmp_path: Path) -> None:
    """A file of comments, a section without entries and a byte order mark change nothing."""
    file = tmp_path / "router.yaml"
    file.write_text(text)
    assert load_config(file, env={}) == Config()


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    """The nearest source wins, key by key."""
    file = tmp_path / "router.yaml"
    file.write_text("queue: { wait_s: 1, max_waiting: 1, affinity_count: 1 }\n")
    env = {"OLLAMA_ROUTER_QUEUE__MAX_WAITING": "2", "OLLAMA_ROUTER_QUEUE__AFFINITY_COUNT": "2"}
    queue = load_config(file, env=env, options={"queue.affinity_count": 3}).queue
    assert (queue.wait_s, queue.max_waiting, queue.affinity_count) == (1.0, 2, 3)


def test_environment_reaches_every_kind_of_value() -> None:
    """Words, numbers, truth values, null, lists and mappings come from variables; names keep the file's case."""
    config = load_config(
        env={
            "OLLAMA_ROUTER_DEFAULTS__NOTHING_FITS": "wait",
            "OLLAMA_ROUTER_DEFAULTS__SAFETY_MIB": "300",
            "OLLAMA_ROUTER_DEFAULTS__DERIVED_TAGS": "false",
            "OLLAMA_ROUTER_DEFAULTS__MAX_NUM_CTX": "null",
            "OLLAMA_ROUTER_QUEUE__WAIT_S": "1.5",
            "OLLAMA_ROUTER_TIMEOUTS__CONNECT_S": "250ms",
            "OLLAMA_ROUTER_BACKENDS__LOCAL__URL": "http://gpu1:11434/",
            "OLLAMA_ROUTER_BACKENDS__LOCAL__GPUS": "[0, 1]",
            "OLLAMA_ROUTER_CHAINS": '{"llama3.3:70b": [a, b]}',
            "OLLAMA_HOST": "ignored",
        }
    )
    defaults = config.defaults
    assert (defaults.nothing_fits, defaults.safety_mib, defaults.derived_tags) == ("wait", 300, False)
    assert (config.queue.wait_s, config.timeouts.connect_s) == (1.5, 0.25)
    assert [(name, b.url, b.gpus) for name, b in config.backends.items()] == [("local", "http://gpu1:11434", (0, 1))]
    assert list(config.chains) == ["llama3.3:70b"]


def test_variable_finds_a_backend_whose_name_has_capitals(tmp_path: Path) -> None:
    """Names of variables have no case, so a backend is found by its name in any case."""
    file = tmp_path / "router.yaml"
    file.write_text("backends: { GPU1: {} }\n")
    config = load_config(file, env={"OLLAMA_ROUTER_BACKENDS__GPU1__URL": "http://h:1"})
    assert [(name, b.url) for name, b in config.backends.items()] == [("GPU1", "http://h:1")]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"OLLAMA_ROUTER_DEFALTS__NUM_CTX": "1"}, "environment: OLLAMA_ROUTER_DEFALTS__NUM_CTX: defalts: found"),
        ({"OLLAMA_ROUTER_QUEUE": "5"}, "environment: OLLAMA_ROUTER_QUEUE: queue: found 5; allowed: a mapping"),
        ({"OLLAMA_ROUTER_HOSTS": "[a"}, "environment: OLLAMA_ROUTER_HOSTS: found '\\[a'; allowed"),
        ({"OLLAMA_ROUTER_CONFIG": "/nowhere/r.yaml"}, "/nowhere/r.yaml: cannot be read"),
    ],
)
def test_wrong_variable_is_named(env: dict[str, str], expected: str) -> None:
    """A wrong variable is refused by its name."""
    with pytest.raises(ConfigError, match=expected):
        load_config(env=env)


def test_wrong_option_is_named() -> None:
    """A wrong command line value is refused by its option."""
    with pytest.raises(
        ConfigError, match="command line: --max-waiting: queue.max_waiting: found 0; allowed: at least 1"
    ):
        load_config(env={}, options={"queue.max_waiting": 0})


def test_option_for_the_upstream_means_the_backend_of_the_file(tmp_path: Path) -> None:
    """`--upstream` changes the one backend, whatever the file calls it."""
    file = tmp_path / "router.yaml"
    file.write_text("backends: { gpu1: { server: { num_parallel: 4 } } }\n")
    config = load_config(file, env={}, options={"backends.local.url": "http://h:1"})
    assert [(name, b.url) for name, b in config.backends.items()] == [("gpu1", "http://h:1")]
    assert config.backends["gpu1"].server.num_parallel == 4
    with pytest.raises(ConfigError, match="command line: --upstream: backends.local.url: found"):
        load_config(env={}, options={"backends.local.url": "ftp://h"})


def test_variable_names_the_file(tmp_path: Path) -> None:
    """OLLAMA_ROUTER_CONFIG is the file where none is given."""
    file = tmp_path / "router.yaml"
    file.write_text("hosts: [a.example]\n")
    assert load_config(env={"OLLAMA_ROUTER_CONFIG": str(file)}).hosts == ("a.example",)


def test_variables_of_the_command_line_are_not_keys() -> None:
    """The variable with which `explain` finds its router does not disturb `serve`."""
    assert load_config(env={"OLLAMA_ROUTER_ADMIN_URL": "http://h:1"}) == Config()


def test_origins_of_ollama_count_where_none_are_configured(tmp_path: Path) -> None:
    """OLLAMA_ORIGINS is the fallback of `origins`, not an addition."""
    env = {"OLLAMA_ORIGINS": "app://*, http://a.example"}
    file = tmp_path / "router.yaml"
    file.write_text("origins: [http://b.example]\n")
    assert load_config(env=env).origins == ("app://*", "http://a.example")
    assert load_config(file, env=env).origins == ("http://b.example",)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1.5", 1.5), ("250ms", 0.25), ("60s", 60.0), ("5m", 300.0), ("1h30m", 5400.0), ("0", 0.0)]
)
def test_durations_are_seconds_or_have_units(text: str, seconds: float, tmp_path: Path) -> None:
    """A bare number is seconds; units add up."""
    file = tmp_path / "router.yaml"
    file.write_text(f"switch: {{ settle_s: {text} }}\n")
    assert load_config(file, env={}).switch.settle_s == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "seconds"), [("-1", math.inf), ("forever", math.inf), ("5m", 300.0), ("0", 0.0)])
def test_keep_alive_may_be_forever(text: str, seconds: float, tmp_path: Path) -> None:
    """Negative means forever, as in Ollama's own API, and is printed as a word."""
    file = tmp_path / "router.yaml"
    file.write_text(f"defaults: {{ keep_alive_s: {text} }}\n")
    config = load_config(file, env={})
    assert config.defaults.keep_alive_s == seconds
    assert effective(config)["defaults"]["keep_alive_s"] == ("forever" if math.isinf(seconds) else seconds)


@pytest.mark.parametrize(
    ("text", "address", "is_loopback"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1), True),
        ("localhost:0", Address("localhost", 0), True),
        ("[::1]:1", Address("::1", 1), True),
        ("0.0.0.0:1", Address("0.0.0.0", 1), False),
        ("[::]:1", Address("::", 1), False),
        ("gpu1.example:1", Address("gpu1.example", 1), False),
    ],
)
def test_only_loopback_addresses_are_loopback(text: str, address: Address, is_loopback: bool) -> None:
    """That decides what anonymous clients may do, so it is never guessed from a name."""
    listen = load_config(env={}, options={"listen": text}).listen
    assert (listen, listen.is_loopback, str(listen)) == (address, is_loopback, text)


def test_ollamas_origins_are_read_as_ollama_reads_them() -> None:
    """With quotes around them, as in a unit file or an env file."""
    assert load_config(env={"OLLAMA_ORIGINS": ' "https://a.example, http://b.example/" '}).origins == (
        "https://a.example",
        "http://b.example",
    )
