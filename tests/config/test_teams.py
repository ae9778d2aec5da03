"""The files of teams: what they say, and the errors of broken ones and of those that disagree."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest

from router.config import (
    ChainRules,
    Config,
    Knowledge,
    Places,
    Rulebook,
    config_warnings,
    effective,
    load_config,
    rulebook_of,
)
from router.core.decision.chain import Variant
from router.core.teams.team import ANYONE, Caps, Memory, Team, TeamLimits
from router.errors import ConfigError

SECRET = "or_coding_" + "k3y" * 10 + "Zz" + "_AbC123"
HASH, OTHER_HASH = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"other").hexdigest()
WHOLE = f"""\
team: coding
keys:
  - {{ id: ci, sha256: "{HASH}", expires: 2027-03-01 }}
  - {{ id: laptops, sha256_file: laptops.sha256 }}
from: [10.20.0.0/16, "fd00::/8"]
rights: [infer, read, manage]
models: {{ allow: ["qwen3-coder:*", "llama3.3:*"], deny: ["*:cloud"] }}
manage_models: ["coding/*"]
chains: {{ "llama3.3:70b": [llama3.3:70b-instruct-q3_K_L, qwen3-coder:30b] }}
share: 3
limits: {{ concurrent: 32, requests_per_minute: 600, tokens_per_day: 20M, waiting: 64, evictions_per_minute: 4 }}
vram: {{ floor: 8GiB, cap: 80% }}
caps: {{ num_ctx: 65536, keep_alive: 30m }}
nothing_fits: wait
"""


def written(folder: Path, *, root: str = "", **teams: str) -> Path:
    """Write router.yaml and the files of teams; return the first."""
    (folder / "teams").mkdir(exist_ok=True)
    for name, text in teams.items():
        (folder / "teams" / f"{name}.yaml").write_text(text)
    file = folder / "router.yaml"
    file.write_text(f"teams: teams/*.yaml\n{root}")
    return file


def loaded(folder: Path, *, root: str = "", env: dict[str, str] | None = None, **teams: str) -> Config:
    return load_config(written(folder, root=root, **teams), env=env or {})


def book(folder: Path, *, root: str = "", env: dict[str, str] | None = None, **teams: str) -> Rulebook:
    return rulebook_of(loaded(folder, root=root, env=env, **teams))


def the(rules: Rulebook, name: str) -> Team:
    team = rules.team(name)
    assert team is not None
    return team


def refusal(folder: Path, *, root: str = "", env: dict[str, str] | None = None, **teams: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, root=root, env=env, **teams)
    return caught.value.message


def variants(rules: ChainRules, model: str) -> list[str] | None:
    found = rules.rule_for(model).variants
    return None if found is None else [variant.model for variant in found]


def test_a_team_is_what_its_file_says(tmp_path: Path) -> None:
    """Every key of a file arrives in the team; sizes, shares, amounts and durations in each of their forms."""
    (tmp_path / "teams").mkdir()
    (tmp_path / "teams" / "laptops.sha256").write_text(f"{OTHER_HASH}  -\n")
    team = the(book(tmp_path, coding=WHOLE), "coding")
    assert [(key.id, key.sha256.hex(), key.expires_s) for key in team.keys] == [
        ("ci", HASH, datetime(2027, 3, 1, tzinfo=UTC).timestamp()),
        ("laptops", OTHER_HASH, None),
    ]
    assert team.networks == (ip_network("10.20.0.0/16"), ip_network("fd00::/8"))
    assert team.rights == {"infer", "read", "manage"}
    assert (team.allow, team.deny, team.manage_models) == (("qwen3-coder:*", "llama3.3:*"), ("*:cloud",), ("coding/*",))
    assert (team.share, team.nothing_fits) == (3.0, "wait")
    assert team.limits == TeamLimits(32, 600, 20_000_000, 64, 4)
    assert (team.memory.floor, team.memory.cap) == (Memory(8 << 30), Memory(share=0.8))
    assert team.caps == Caps(65536, 1800.0)


def test_a_file_needs_a_name_only(tmp_path: Path) -> None:
    """Then the team may infer and read, without limits; a section without entries is as if it were not there."""
    team = the(book(tmp_path, a="team: a\nlimits:\nkeys:\n"), "a")
    assert (team.rights, team.limits, team.caps) == ({"infer", "read"}, TeamLimits(), Caps())
    assert (team.memory.floor, team.memory.cap, team.nothing_fits, team.share) == (None, None, None, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-03-01T18:00:00+01:00", datetime(2027, 3, 1, 17, tzinfo=UTC)),
        ("'2027-03-01'", datetime(2027, 3, 1, tzinfo=UTC)),
        ("2027-03-01 18:00:00", datetime(2027, 3, 1, 18, tzinfo=UTC)),
        ("'2027-03-01T18:00:00Z'", datetime(2027, 3, 1, 18, tzinfo=UTC)),
    ],
)
def test_a_key_ends_at_a_date_or_at_a_time(tmp_path: Path, text: str, expected: datetime) -> None:
    """In quotes or not; UTC where no zone is named."""
    team = the(book(tmp_path, a=f"team: a\nkeys: [{{ id: x, sha256: {HASH}, expires: {text} }}]\n"), "a")
    assert team.keys[0].expires_s == expected.timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512MiB", Memory(512 << 20)),
        ("1.5 GiB", Memory(3 << 29)),
        ("8Gi", Memory(8 << 30)),
        ("8GB", Memory(8 * 10**9)),
        ("12.5%", Memory(share=0.125)),
        ("100 %", Memory(share=1.0)),
    ],
)
def test_memory_is_a_size_or_a_part(tmp_path: Path, text: str, expected: Memory) -> None:
    """With its unit."""
    assert the(book(tmp_path, a=f"team: a\nvram: {{ floor: {text} }}\n"), "a").memory.floor == expected


@pytest.mark.parametrize(("text", "expected"), [("600", 600), ("1.5k", 1500), ("20M", 20_000_000), ("1G", 10**9)])
def test_amounts_may_be_written_short(tmp_path: Path, text: str, expected: int) -> None:
    """As in 20M."""
    assert (
        the(book(tmp_path, a=f"team: a\nlimits: {{ tokens_per_day: {text} }}\n"), "a").limits.tokens_per_day == expected
    )


@pytest.mark.parametrize(
    ("text", "expected"), [("30m", 1800.0), ("90", 90.0), ("0", 0.0), ("forever", None), ("-1", None)]
)
def test_a_cap_on_keep_alive_is_a_duration(tmp_path: Path, text: str, expected: float | None) -> None:
    """One without end is no cap."""
    assert the(book(tmp_path, a=f"team: a\ncaps: {{ keep_alive: {text} }}\n"), "a").caps.keep_alive_s == expected


# --- chains ----------------------------------------------------------------------------------------------------------

CHAINS = """\
chains: { big: [a:70b, a:8b], "q*": [q:1b], other: [o:8b] }
defaults: { nothing_fits: allow_partial }
"""


def test_the_chains_of_a_team_go_before_those_of_all(tmp_path: Path) -> None:
    """Its patterns too; what it does not name is as for everybody."""
    text = "team: x\nchains: { big: [b:70b, b:8b], 'o*': [p:8b], own: [z:8b] }\n"
    rules = book(tmp_path, root=CHAINS, x=text, y="team: y\n")
    own, others = rules.chains_of(the(rules, "x")), rules.chains_of(the(rules, "y"))
    names = ("big", "BIG:latest", "qwen", "other", "own", "m:1b")
    assert [variants(own, name) for name in names] == [
        ["b:70b", "b:8b"], ["b:70b", "b:8b"], ["q:1b"], ["p:8b"], ["z:8b"], None,
    ]  # fmt: skip
    assert [variants(others, name) for name in names] == [
        ["a:70b", "a:8b"], ["a:70b", "a:8b"], ["q:1b"], ["o:8b"], None, None,
    ]  # fmt: skip
    assert own.named == (
        ("big", (Variant("b:70b"), Variant("b:8b"))), ("own", (Variant("z:8b"),)), ("other", (Variant("p:8b"),)),
    )  # fmt: skip
    assert [name for name, _ in others.named] == ["big", "other"]


def test_the_rule_of_a_team_goes_before_those_of_all(tmp_path: Path) -> None:
    """After that of its own chain; a team that says nothing has the chain's, or the defaults'."""
    text = (
        "team: x\nnothing_fits: wait\nchains: { own: { variants: [z:8b], nothing_fits: passthrough }, two: [z:8b] }\n"
    )
    root = CHAINS.replace("other: [o:8b]", "other: { variants: [o:8b], nothing_fits: refuse }")
    rules = book(tmp_path, root=root, x=text, y="team: y\n")
    names = ("own", "two", "big", "other", "m:1b")
    found = [[rules.chains_of(the(rules, team)).rule_for(name).nothing_fits for name in names] for team in "xy"]
    assert found == [
        ["passthrough", "wait", "wait", "wait", "wait"],
        ["allow_partial", "allow_partial", "allow_partial", "refuse", "allow_partial"],
    ]


def test_a_team_of_another_rulebook_has_the_chains_of_its_successor(tmp_path: Path) -> None:
    """And those of all, if it is gone."""
    first = book(tmp_path, root=CHAINS, x="team: x\nchains: { big: [b:70b] }\n")
    second = book(tmp_path, root=CHAINS, x="team: x\nchains: { big: [c:70b] }\n")
    assert variants(second.chains_of(the(first, "x")), "big") == ["c:70b"]
    assert second.chains_of(Team("gone")) is second.chains
    assert first.digest != second.digest


def test_the_default_team_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Without a name it is the built-in one, which a file may replace."""
    assert book(tmp_path, x="team: x\n").default_team is ANYONE.team
    assert book(tmp_path, root="default_team: x\n", x="team: x\n").default_team.name == "x"
    assert book(tmp_path, x="team: x\n", anonymous="team: anonymous\nshare: 2\n").default_team.share == 2


# --- broken files ----------------------------------------------------------------------------------------------------

KEY_HINT = "sha256sum` makes it of a key, and `ollama-router keys new` makes a key with its hash"
BROKEN = {
    "no name": ("share: 2\n", "a.yaml:1: found no key team; allowed: a mapping with this key"),
    "an empty file": ("", "a.yaml:1: found no key team"),
    "an invalid name": ("team: a b\n", 'a.yaml:1: team: found "a b"; allowed: a name of at most 40'),
    "an unknown key": (
        "team: a\nrigths: [read]\n",
        "a.yaml:2: rigths: found the unknown key rigths (did you mean rights?)",
    ),
    "networks by another name": (
        "team: a\nnetworks: [10.0.0.0/8]\n",
        "found the unknown key networks; allowed: team, keys, from",
    ),
    "an unknown limit": (
        "team: a\nlimits: { concurent: 2 }\n",
        "a.yaml:2: limits.concurent: found the unknown key concurent (did you mean concurrent?)",
    ),
    "an unknown key of a chain": (
        "team: a\nchains:\n  big: { variants: [b], prelaod: true }\n",
        "a.yaml:3: chains.big.prelaod: found the unknown key prelaod (did you mean preload?)",
    ),
    "admin rights": (
        "team: a\nrights: [admin]\n",
        'rights[0]: found "admin"; allowed: "infer", "read" or "manage"; "admin" is never',
    ),
    "a key itself": (
        f"team: a\nkeys:\n  - id: ci\n    sha256: {SECRET}\n",
        "a.yaml:4: keys[0].sha256: found text that is not shown, because it may be a key; allowed: the SHA-256",
    ),
    "a list of keys": (f"team: a\nkeys: [{SECRET}]\n", "a.yaml:2: keys[0]: found text that is not shown"),
    "keys by id": (f"team: a\nkeys: {{ ci: {SECRET} }}\n", "a.yaml:2: keys: found a mapping that is not shown"),
    "a key as a word": (f"team: a\nkeys: {SECRET}\n", "a.yaml:2: keys: found text that is not shown"),
    "a key by another name": (
        f"team: a\nkeys: [{{ id: ci, key: {SECRET} }}]\n",
        "a.yaml:2: keys[0].key: found the unknown key key; allowed: id, sha256, sha256_file, expires",
    ),
    "a key as a name": (f"team: a\nkeys: [{{ {SECRET}: ci }}]\n", "keys[0]: found an unknown key; allowed: id, sha256"),
    "a key as an id": (
        f"team: a\nkeys: [{{ id: {SECRET}, sha256: {HASH} }}]\n",
        "keys[0].id: found text that is not shown",
    ),
    "a key as the name of a file": (
        f"team: a\nkeys: [{{ id: ci, sha256_file: {SECRET} }}]\n",
        "keys[0].sha256_file: found",
    ),
    "a key as a team": (f"team: {SECRET}\n", 'a.yaml:1: team: found "***"'),
    "a key as a network": (f"team: a\nfrom: [{SECRET}]\n", 'from[0]: found "***"'),
    "a key at the top": (f"team: a\n{SECRET}: x\n", "found the unknown key ***"),
    "a key as a name twice": (f"team: a\n{SECRET}: x\n{SECRET}: y\n", "a.yaml:3: found the key *** twice"),
    "no hash": (
        "team: a\nkeys: [{ id: ci }]\n",
        "keys[0]: found a mapping that is not shown, because it may be a key; allowed: one of",
    ),
    "two hashes": (
        f"team: a\nkeys: [{{ id: ci, sha256: {HASH}, sha256_file: x }}]\n",
        "allowed: one of sha256, sha256_file and ssh",
    ),
    "a missing file of a hash": (
        "team: a\nkeys:\n  - { id: ci, sha256_file: gone }\n",
        "a.yaml:3: keys[0].sha256_file: found",
    ),
    "an id twice": (
        f"team: a\nkeys: [{{ id: x, sha256: {HASH} }}, {{ id: x, sha256: {OTHER_HASH} }}]\n",
        'keys[1].id: found "x"; allowed: each id once',
    ),
    "a key twice": (
        f"team: a\nkeys: [{{ id: x, sha256: {HASH} }}, {{ id: y, sha256: {HASH} }}]\n",
        "keys[1]: found the key x again",
    ),
    "an invalid date": (
        f"team: a\nkeys: [{{ id: x, sha256: {HASH}, expires: soon }}]\n",
        'keys[0].expires: found "soon"; allowed: a date',
    ),
    "a network with host bits": (
        "team: a\nfrom: [10.0.0.1/8]\n",
        'a.yaml:2: from[0]: found "10.0.0.1/8"; allowed: an IP address or network',
    ),
    "a network twice": ("team: a\nfrom: [10.0.0.0/8, 10.0.0.0/8]\n", "allowed: each network once"),
    "an invalid model": ("team: a\nmodels: { allow: ['a b'] }\n", 'models.allow[0]: found "a b"'),
    "memory without a unit": ("team: a\nvram: { floor: 8 }\n", 'vram.floor: found 8; allowed: a size such as "8GiB"'),
    "more than all memory": ("team: a\nvram: { cap: 120% }\n", 'vram.cap: found "120%"'),
    "a floor above the cap": ("team: a\nvram: { floor: 80%, cap: 50% }\n", "allowed: a floor of at most the cap"),
    "a limit of none": (
        "team: a\nlimits: { concurrent: 0 }\n",
        "limits.concurrent: found 0; allowed: a whole number of at least 1",
    ),
    "a share of none": ("team: a\nshare: 0\n", "a.yaml:2: share: found 0; allowed: above 0"),
    "a share without end": ("team: a\nshare: .inf\n", "a.yaml:2: share: found Infinity"),
    "an endless cap as a word": ("team: a\ncaps: { keep_alive: always }\n", 'caps.keep_alive: found "always"'),
    "a rule that does not exist": ("team: a\nnothing_fits: maybe\n", 'nothing_fits: found "maybe"'),
    "chains in a circle": ("team: a\nchains:\n  x: [y]\n  y: [x]\n", "a.yaml:3: chains.x: found"),
    "a circle over router.yaml": ("team: a\nchains:\n  x: [main]\n", "a.yaml:3: chains.x: found"),
    "a variant twice": ("team: a\nchains: { x: [b, c, b] }\n", "chains.x[2]: found"),
    "half a file": ("team: a\nkeys:\n  - { id: x, sha", "a.yaml:3: invalid YAML"),
    "a key of a mapping twice": ("team: a\nteam: b\n", "a.yaml:2: found the key team twice"),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_a_broken_file_of_a_team_is_refused_with_file_line_and_key(case: str, tmp_path: Path) -> None:
    """And nothing that may be a key is shown."""
    text, expected = BROKEN[case]
    found = refusal(tmp_path, root="chains: { main: [x] }\n", a=text)
    assert expected in found
    assert all(line.startswith(str(tmp_path / "teams/a.yaml")) for line in found.splitlines())
    assert SECRET not in found


def test_a_key_in_place_of_a_hash_says_how_to_hash_it(tmp_path: Path) -> None:
    """In the file of the team, and in a file that it names."""
    assert KEY_HINT in refusal(tmp_path, a=f"team: a\nkeys: [{{ id: x, sha256: {SECRET} }}]\n")
    (tmp_path / "teams" / "plain").write_text(SECRET)
    found = refusal(tmp_path, a="team: a\nkeys: [{ id: x, sha256_file: plain }]\n")
    assert "keys[0].sha256_file: found" in found
    assert KEY_HINT in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "text",
    ["[{ id: x, key: abc }]", "[{ id: x, sha256: abc }]", "[abc]", "{ ci: abc }", "abc", "[{ id: x, kee: abc }]"],
)
def test_wherever_a_key_may_have_been_put_the_error_says_how_to_hash_it(text: str, tmp_path: Path) -> None:
    """One that the router has not made cannot be told from other text, and is not shown either."""
    found = refusal(tmp_path, a=f"team: a\nkeys: {text}\n")
    assert "sha256sum`" in found
    assert "abc" not in found.removeprefix(str(tmp_path))


def test_every_broken_file_is_reported_at_once(tmp_path: Path) -> None:
    """In the order of their names."""
    found = refusal(tmp_path, a="team: a\nshare: 0\n", b="team: [\n", c="team: c\ncolour: red\n")
    assert [Path(line.partition(":")[0]).name for line in found.splitlines()] == ["a.yaml", "b.yaml", "c.yaml"]


DISAGREEMENTS = {
    "a name": ("team: x\n", "share: 2\nteam: X\n", "b.yaml:2: team: found \"X\", which is the team of", "a.yaml:1"),
    "a key": (
        f"team: x\nkeys:\n  - {{ id: ci, sha256: {HASH} }}\n",
        f"team: y\nkeys:\n  - {{ id: z, sha256: {OTHER_HASH} }}\n  - {{ id: bot, sha256: {HASH.upper()} }}\n",
        "b.yaml:4: keys[1]: found the key ci of the team x (",
        "a.yaml:3",
    ),
    "a network": (
        "team: x\nfrom: [10.1.0.0/16]\n",
        "team: y\nfrom:\n  - 10.0.0.0/8\n  - 10.1.0.0/16\n",
        'b.yaml:4: from[1]: found "10.1.0.0/16", which is of the team x (',
        "a.yaml:2",
    ),
    "a network in both families": (
        "team: x\nfrom: [10.1.0.0/16]\n",
        'team: y\nfrom: ["::ffff:10.1.0.0/112"]\n',
        'b.yaml:2: from[0]: found "10.1.0.0/16", which is of the team x (',
        "a.yaml:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DISAGREEMENTS, ids=str)
def test_what_is_in_two_teams_is_refused_with_both_places(case: str, tmp_path: Path) -> None:
    """Each in its file and line."""
    one, other, expected, first = DISAGREEMENTS[case]
    found = refusal(tmp_path, a=one, b=other)
    assert expected in found
    assert first in found
    assert HASH not in found.lower()


@pytest.mark.parametrize("where", ["admin_keys", "node.key_sha256_file"])
def test_a_key_of_a_team_opens_nothing_else(where: str, tmp_path: Path) -> None:
    """It would make whoever has it an admin, or a front that may speak for every team."""
    (tmp_path / "front").write_text(f"{OTHER_HASH}\n{HASH}\n")
    root = {
        "admin_keys": f"admin_keys: [{{ id: me, sha256: {HASH} }}]\n",
        "node.key_sha256_file": "node: { name: a, key_sha256_file: front }\n",
    }[where]
    found = refusal(tmp_path, root=root, a=f"team: a\nkeys:\n  - {{ id: ci, sha256: {HASH} }}\n")
    assert "a.yaml:3: keys[0]: found " in found
    assert where in found
    assert HASH not in found


@pytest.mark.parametrize("name", ["b\nc", "b\x1b[31m", "b\udcff"])
def test_a_file_whose_name_cannot_be_shown_is_refused(name: str, tmp_path: Path) -> None:
    """It would be two lines of the log, or change the colours of a terminal."""
    found = refusal(tmp_path, a="team: a\n", **{name: "team: b\n"})
    assert found.isprintable()
    assert "router.yaml:1: teams: found the file" in found


def test_a_network_may_be_within_that_of_another_team(tmp_path: Path) -> None:
    """The smaller one counts."""
    assert len(book(tmp_path, a="team: a\nfrom: [10.0.0.0/8]\n", b="team: b\nfrom: [10.1.0.0/16]\n").teams) == 2


def test_ipv4_addresses_within_ipv6_are_those_of_ipv4(tmp_path: Path) -> None:
    """As which they connect; a wider network of IPv6 has none of IPv4."""
    rules = book(tmp_path, a='team: a\nfrom: ["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::/0", "::fffe:0:0/95"]\n')
    assert [str(network) for network in the(rules, "a").networks] == [
        "10.0.0.0/8",
        "192.0.2.1/32",
        "::/0",
        "::fffe:0:0/95",
    ]


def test_files_of_editors_are_no_teams(tmp_path: Path) -> None:
    """Hidden ones are left out."""
    written(tmp_path, a="team: a\n")
    (tmp_path / "teams" / ".#a.yaml").symlink_to("nowhere")
    (tmp_path / "teams" / ".b.yaml").write_text("team: [")
    assert [team.name for team in rulebook_of(load_config(tmp_path / "router.yaml", env={})).teams] == ["a"]


def test_the_default_team_must_exist(tmp_path: Path) -> None:
    """The error names those that do."""
    found = refusal(tmp_path, root="default_team: codign\n", coding="team: coding\n")
    assert 'router.yaml:2: default_team: found "codign"; allowed: anonymous, coding' in found


# --- the environment, and what is shown ------------------------------------------------------------------------------


def test_the_environment_overrides_keys_of_teams(tmp_path: Path) -> None:
    """`OLLAMA_ROUTER_TEAMS__<team>__<key>`, in any case; the file and the default team as for other keys."""
    env = {
        "OLLAMA_ROUTER_TEAMS__CODING__LIMITS__CONCURRENT": "7",
        "OLLAMA_ROUTER_TEAMS__CODING__CHAINS": "{ big: [x:1b] }",
        "OLLAMA_ROUTER_DEFAULT_TEAM": "Coding",
    }
    rules = book(
        tmp_path, root="chains: { big: [y:1b] }\n", env=env, a="team: Coding\nlimits: { waiting: 3 }\n", b="team: b\n"
    )
    assert rules.default_team.limits == TeamLimits(concurrent=7, waiting=3)
    assert variants(rules.chains_of(rules.default_team), "big") == ["x:1b"]
    assert the(rules, "b").limits == TeamLimits()


def test_the_environment_may_name_the_files(tmp_path: Path) -> None:
    """A pattern without a file of its own is relative to the working directory, or absolute."""
    written(tmp_path, a="team: a\n")
    config = load_config(env={"OLLAMA_ROUTER_TEAMS": str(tmp_path / "teams" / "*.yaml")})
    assert [file.section.team for file in config.team_files] == ["a"]


def test_an_override_of_no_team_is_refused(tmp_path: Path) -> None:
    """It names the variable; one that is wrong names it as well."""
    unknown = {"OLLAMA_ROUTER_TEAMS__CODNIG__SHARE": "2"}
    assert refusal(tmp_path, env=unknown, a="team: coding\n").startswith(
        "environment: OLLAMA_ROUTER_TEAMS__CODNIG__SHARE: found"
    )
    wrong = {"OLLAMA_ROUTER_TEAMS__CODING__SHARE": "0"}
    assert refusal(tmp_path, env=wrong, a="team: coding\n").startswith(
        "environment: OLLAMA_ROUTER_TEAMS__CODING__SHARE: share: found 0"
    )
    secret = {"OLLAMA_ROUTER_TEAMS__CODING__KEYS": f"[{SECRET}"}
    assert SECRET not in refusal(tmp_path, env=secret, a="team: coding\n")
    with pytest.raises(ConfigError, match="together with the key teams"):
        load_config(env={"OLLAMA_ROUTER_TEAMS__A__SHARE": "2"})


def test_the_effective_configuration_shows_teams_without_hashes(tmp_path: Path) -> None:
    """With every key of each team, and where it is from."""
    text = json.dumps(effective(loaded(tmp_path, a=f"team: a\nkeys: [{{ id: ci, sha256: {HASH} }}]\nshare: 2\n")))
    (shown,) = json.loads(text)["team_files"]
    assert HASH not in text
    assert (shown["team"], shown["share"], shown["keys"]) == (
        "a",
        2.0,
        [{"id": "ci", "sha256": "***", "expires": None}],
    )
    assert shown["file"] == str(tmp_path / "teams" / "a.yaml")
    assert HASH not in repr(loaded(tmp_path).team_files)


# --- warnings -------------------------------------------------------------------------------------------------------

WARNED = {
    "bigger": ("chains:\n  a: [x:8b, x:70b]\n", 3, "chain a: x:70b is bigger than x:8b before it"),
    "finer": ("chains:\n  a: [x:8b-q4_0, x:8b-q8_0]\n", 3, "x:8b-q8_0 is bigger than x:8b-q4_0"),
    "mixture": ("chains:\n  a: [x:14b, x:8x7b]\n", 3, "x:8x7b is bigger than x:14b"),
    "cloud": ("chains:\n  'x:120b-cloud': [x:8b]\n", 3, "is never used: cloud models are passed on"),
    "shadowed": ("chains:\n  'a*': [x:8b]\n  'a?': [x:3b]\n", 4, "the chain a? is never used: a* is looked up first"),
    "denied": ("models: { deny: ['q*'] }\nchains:\n  'q:1b': [x:8b]\n", 4, "models.deny has q*"),
    "manages nothing": ("rights:\n  - infer\n  - manage\n", 4, "the right manage allows nothing"),
    "manages without right": ("manage_models: ['a/*']\n", 2, "manage_models has no effect: rights does not have"),
    "expired": (f"keys:\n  - {{ id: old, sha256: {HASH}, expires: 2001-01-01 }}\n", 3, "the key old has expired"),
}


@pytest.mark.parametrize("case", WARNED, ids=str)
def test_what_helps_nobody_is_a_warning_with_its_line(case: str, tmp_path: Path) -> None:
    """The configuration is valid."""
    text, line, expected = WARNED[case]
    file = written(tmp_path, t=f"team: t\n{text}")
    (found,) = config_warnings(load_config(file, env={}), Places(file), unix_s=1e9)
    assert found.startswith(f"{tmp_path / 'teams/t.yaml'}:{line}: ")
    assert expected in found


def test_patterns_that_match_nothing_installed_are_warned_about(tmp_path: Path) -> None:
    """By `check --live`, with file and line. A chain of any file counts; the cloud installs nothing."""
    allow = ["qwen3-coder:*", "lama3.3:70b", "LLAMA3.3", "own:x", "all:x", "*:cloud", "gpt:20b-cloud"]
    text = "\n".join(
        ["team: t", "models:", "  allow:", *(f"    - '{one}'" for one in allow), "  deny: ['gemma*', 'q*']"]
    )
    text += "\nmanage_models: [t/*]\nrights: [manage]\nchains: { 'own:x': [x:8b], 'p*': [x:8b] }\n"
    file = written(tmp_path, root="chains: { 'all:x': [x:8b] }\n", t=text)
    known = Knowledge(installed=("qwen3:8b", "llama3.3:latest", "llama3.3:70b"))
    config = load_config(file, env={})
    found = config_warnings(config, Places(file), 0.0, known)
    place = tmp_path / "teams/t.yaml"
    assert found == [
        f"{place}:4: models.allow: qwen3-coder:* matches no installed model and no chain",
        f"{place}:5: models.allow: lama3.3:70b matches no installed model and no chain (did you mean llama3.3:70b?)",
        f"{place}:11: models.deny: gemma* matches no installed model and no chain",
    ]
    for unknown in (Knowledge(), Knowledge(installed=())):
        assert config_warnings(config, Places(file), 0.0, unknown) == []


def test_chains_of_all_are_warned_about_too(tmp_path: Path) -> None:
    """In router.yaml."""
    file = written(tmp_path, root="chains:\n  a: [x:8b, x:70b, x:13b]\n", t="team: t\n")
    found = config_warnings(load_config(file, env={}), Places(file), unix_s=0.0)
    assert [line.partition(": ")[0] for line in found] == [f"{file}:3", f"{file}:3"]


def test_what_has_changed_is_read_again(tmp_path: Path) -> None:
    """A file, a variable, and a file with a hash; what has not is the same team as before."""
    file = written(tmp_path, a="team: a\nkeys: [{ id: x, sha256_file: hash }]\n", b="team: b\n")
    (tmp_path / "teams" / "hash").write_text(HASH)

    def read(**env: str) -> list[tuple[str, float, list[str]]]:
        files = load_config(file, env=env).team_files
        return [(one.section.team, one.section.share, [key.sha256.hex() for key in one.keys]) for one in files]

    assert read() == [("a", 1.0, [HASH]), ("b", 1.0, [])]
    assert load_config(file, env={}).team_files[1] is load_config(file, env={}).team_files[1]
    (tmp_path / "teams" / "hash").write_text(OTHER_HASH)
    assert read() == [("a", 1.0, [OTHER_HASH]), ("b", 1.0, [])]
    assert read(OLLAMA_ROUTER_TEAMS__B__SHARE="3") == [("a", 1.0, [OTHER_HASH]), ("b", 3.0, [])]
    (tmp_path / "teams" / "b.yaml").write_text("team: b\nshare: 2\n")
    assert read() == [("a", 1.0, [OTHER_HASH]), ("b", 2.0, [])]
    (tmp_path / "teams" / "hash").unlink()
    with pytest.raises(ConfigError, match=r"keys\[0\].sha256_file"):
        read()
