"""Which keys a running router takes over, and which need the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.config import Config, differences, load_config, prepare, summary, watched_files, way_of, way_to
from router.config.reload import IN_PLACE
from tests.config.keys.marks import keys


def config(**options: Any) -> Config:
    return load_config(env={}, options=options)


def way(before: Config, after: Config) -> str:
    return way_to(differences(before, after), prepare(before), prepare(after))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "in place"),
        ({"chains": {"a.b:1": ["x"]}}, "in place"),
        ({"defaults.nothing_fits": "wait", "clients.num_gpu": "refuse"}, "in place"),
        ({"defaults.num_ctx": 16384}, "next router"),
        ({"chains": {"a": ["x"]}, "queue.wait_s": 5}, "next router"),
        ({"fairness.window_s": 30, "fairness.age_bound_s": 5}, "in place"),
        ({"listen": "127.0.0.1:1"}, "next router"),
        ({"backends.local.url": "http://h.x:1"}, "next router"),
        ({"telemetry.log_buffer_bytes": 65536}, "next router"),
    ],
)
def test_how_a_reload_takes_over_depends_on_what_differs(options: dict[str, Any], expected: str) -> None:
    """What is of no rule needs the next router."""
    assert way(config(), config(**options)) == expected


def test_a_certificate_that_was_renewed_needs_the_next_router(tmp_path: Path) -> None:
    """Although no key differs; credentials towards Ollama as well."""
    file = tmp_path / "cert.pem"
    file.write_text("one")
    for key in ("tls.cert", "tls.client_ca", "backends.local.client_cert", "backends.local.bearer_file"):
        other = {"tls.cert": str(tmp_path / "other")} if key == "tls.client_ca" else {}
        before = prepare(config(**other, **{key: str(file)}))
        assert way_to([], before, prepare(before.config)) == "in place"
        file.write_text(f"other {key}")
        assert way_to([], before, prepare(before.config)) == "next router"


def test_other_keys_of_admins_need_the_next_router(tmp_path: Path) -> None:
    """Although their hashes are shown nowhere, or are in a file."""
    file = tmp_path / "hash"
    found = []
    for number in range(3):
        file.write_text(f"{number}" * 64)
        inline = [{"id": "a", "sha256": f"{min(number, 1) + 5}" * 64}]
        found.append(prepare(config(admin_keys=[*inline, {"id": "b", "sha256_file": str(file)}])))
    assert differences(found[0].config, found[1].config) == ["admin_keys"]
    assert [way(found[0].config, found[1].config), way(found[1].config, found[2].config)] == ["next router"] * 2
    assert len({one.book.digest for one in found}) == 3
    assert file in watched_files(found[0].config, None)


def test_the_tables_name_keys_that_exist() -> None:
    """A key that is renamed takes its place along."""
    known = keys() | {"team_files", "chains"}
    assert {*IN_PLACE} - known == set()
    assert way_of("chains.x.variants") == "in place"
    assert way_of("chainsaw") == "next router"


KEY = '{{ id: {}, sha256: "{}" }}'


def test_a_reload_says_in_one_line_what_it_has_changed(tmp_path: Path) -> None:
    """Teams with what differs in each, keys by their ids, chains by their names, other keys; never a hash."""

    def written(**teams: str) -> Config:
        for file in tmp_path.iterdir():
            file.unlink()
        for name, text in teams.items():
            (tmp_path / f"{name}.yaml").write_text(f"team: {name}\n{text}\n")
        return config(teams=str(tmp_path / "*.yaml"))

    def keys(**ids: int) -> str:
        return f"keys: [{', '.join(KEY.format(name, str(number) * 64) for name, number in ids.items())}]"

    before = written(one=keys(a=1, b=2), two="", three="share: 2")
    after = written(one=f"{keys(a=3, c=4)}\nfrom: [10.0.0.1]", three="share: 2", four="")
    text = summary(before, after, differences(before, after))
    changes = "one (from, key c added, key b removed, key a changed)"
    assert text == f"teams added: four; teams removed: two; teams changed: {changes}"
    more = config(chains={"x": ["a"], "y": ["b"]}, **{"defaults.nothing_fits": "wait"})
    other = config(chains={"y": ["c"], "z": ["b"]}, **{"queue.wait_s": 5})
    assert summary(more, other, differences(more, other)) == (
        "chains added: z; chains removed: x; chains changed: y; defaults.nothing_fits, queue.wait_s"
    )
    assert summary(before, before, []) == "nothing differs"
    assert summary(before, before, [], has_new_files=True) == "certificates or credentials"


def test_what_changed_is_one_line_however_much_it_is(tmp_path: Path) -> None:
    """Names beyond a few are counted."""
    for number in range(500):
        (tmp_path / f"t{number}.yaml").write_text(f"team: t{number}\n")
    many = config(teams=str(tmp_path / "*.yaml"))
    text = summary(config(), many, differences(config(), many))
    assert text.startswith("teams added: t0, t1, ")
    assert " and 492 more; " in text
    assert len(text) < 200
