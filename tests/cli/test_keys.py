"""`ollama-router keys`: a key is shown once and stored as its hash; files keep everything else that is in them."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from router.cli import main
from router.config import load_config
from router.core.teams.keys import FORM, digest_of, has_typo

TEAM = """\
# yaml-language-server: $schema=../team.schema.json
team: coding   # who writes code

keys:
  # the build machine
  - { id: ci, sha256: "{hash}", expires: 2027-03-01 }
rights: ['infer', "read"]   # quotes stay
models: { allow: ["qwen3-coder:*"] }
"""
HASH = "ab" * 32
SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@laptop"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "coding.yaml"
    path.write_text(TEAM.replace("{hash}", HASH))
    return path


class Keys:
    """Runs the command; `out` and `err` are what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        self.out = self.err = ""

    def __call__(self, *args: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["ollama-router", "keys", *map(str, args)])
        try:
            main.run()
            code = 0
        except SystemExit as exc:
            code = int(exc.code or 0)
        self.out, self.err = self._capfd.readouterr()
        return code


def bare(line: str) -> str:
    """Return a line without the spaces within its brackets."""
    return line.replace("{ ", "{").replace(" }", "}")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Keys:
    return Keys(monkeypatch, capfd)


def keys_of(file: Path):
    """Return the keys of the team, as the router reads them."""
    (team,) = load_config(env={}, options={"teams": str(file)}).team_files
    return {key.id: key for key in team.keys}


def test_a_new_key_is_printed_once_beside_the_line_for_its_file(keys: Keys) -> None:
    """On standard output only the key, so that it can go into a variable; the line holds the hash."""
    assert keys("new", "--team", "coding", "--id", "ci", "--expires", "2027-03-01") == 0
    key = keys.out.strip()
    assert FORM.fullmatch(key)
    assert not has_typo(key)
    assert key not in keys.err
    digest = digest_of(key.encode()).hex()
    assert f'- {{ id: ci, sha256: "{digest}", expires: "2027-03-01T00:00:00+00:00" }}' in keys.err
    assert keys("new", "--team", "coding") == 0
    assert keys.out.strip() != key


def test_a_new_key_is_added_to_its_file_which_stays_as_it_is(keys: Keys, file: Path) -> None:
    """Comments, order, quotes and permissions; the key itself is nowhere in it."""
    file.chmod(0o600)
    before = file.read_text().splitlines()
    assert keys("new", "--file", file, "--id", "laptops") == 0
    key = keys.out.strip()
    after = file.read_text().splitlines()
    assert [bare(line) for line in after if "laptops" not in line] == [bare(line) for line in before]
    assert len(after) == len(before) + 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in file.read_text()
    assert keys_of(file)["laptops"].sha256 == digest_of(key.encode())
    assert keys_of(file)["ci"].sha256.hex() == HASH
    assert [path.name for path in file.parent.iterdir()] == ["coding.yaml"]


def test_the_file_of_a_new_team_is_made(keys: Keys, tmp_path: Path) -> None:
    """With its name and its key: enough to begin."""
    file = tmp_path / "chat.yaml"
    assert keys("new", "--team", "chat", "--file", file) == 0
    assert keys.out.startswith("or_chat_")
    assert len(keys_of(file)) == 1
    assert keys("new", "--file", tmp_path / "other.yaml") == 2
    assert "--team" in keys.err


@pytest.mark.parametrize("expires", ["90d", "2160h", "7776000", "2999-01-01", "2999-01-01T10:00:00+02:00"])
def test_a_key_expires_at_a_date_or_after_a_time(expires: str, keys: Keys, file: Path) -> None:
    """Days, hours, a date, a date with time and zone."""
    assert keys("new", "--file", file, "--id", "x", "--expires", expires) == 0
    found = keys_of(file)["x"].expires_s
    assert found is not None
    if "-" not in expires:
        assert abs(found - time.time() - 90 * 86400) < 60
    else:
        assert found > 3e10


def test_a_key_is_rotated_with_both_valid_for_a_while(keys: Keys, file: Path) -> None:
    """The old one ends after the overlap, never later than it would have."""
    assert keys("new", "--file", file, "--id", "laptops") == 0
    old = keys.out.strip()
    assert keys("rotate", "--file", file, "--id", "laptops", "--new-id", "laptops-2", "--overlap", "2d") == 0
    new = keys.out.strip()
    found = keys_of(file)
    assert found["laptops"].sha256 == digest_of(old.encode())
    assert found["laptops-2"].sha256 == digest_of(new.encode())
    assert found["laptops-2"].expires_s is None
    assert abs((found["laptops"].expires_s or 0) - time.time() - 2 * 86400) < 60
    ends_s = found["laptops"].expires_s
    assert keys("rotate", "--file", file, "--id", "laptops", "--new-id", "laptops-3", "--overlap", "30d") == 0
    assert keys_of(file)["laptops"].expires_s == ends_s


def test_a_key_that_has_expired_already_is_warned_about(keys: Keys, file: Path) -> None:
    """It is made all the same."""
    assert keys("new", "--file", file, "--id", "x", "--expires", "2001-01-01") == 0
    assert "warning: the key x has expired already" in keys.err


def test_a_revoked_key_is_gone_and_the_others_stay(keys: Keys, file: Path) -> None:
    """Also the last one."""
    assert keys("new", "--file", file, "--id", "laptops") == 0
    assert keys("revoke", "--file", file, "--id", "ci") == 0
    assert list(keys_of(file)) == ["laptops"]
    assert keys("revoke", "--file", file, "--id", "laptops") == 0
    assert keys_of(file) == {}
    assert "team: coding   # who writes code" in file.read_text()


def test_keys_are_listed_without_their_hashes(keys: Keys, file: Path) -> None:
    """With their team, and whether they are valid."""
    assert keys("new", "--file", file, "--id", "old", "--expires", "2001-01-01") == 0
    assert keys("list", "--file", file) == 0
    rows = [line.split("\t") for line in keys.out.splitlines() if "\t" in line][1:]
    assert [(row[0], row[1], row[4].split()[0]) for row in rows] == [
        ("coding", "ci", "valid"),
        ("coding", "old", "expired"),
    ]
    assert not re.search(r"[0-9a-f]{16}", keys.out)


def test_an_admin_key_belongs_into_the_routers_configuration(keys: Keys, tmp_path: Path) -> None:
    """Under `admin_keys`."""
    file = tmp_path / "router.yaml"
    file.write_text("listen: 127.0.0.1:0  # here\n")
    assert keys("new", "--admin", "--file", file, "--id", "ops") == 0
    key = keys.out.strip()
    (found,) = load_config(file, env={}).keys_of_admins
    assert (found.id, found.sha256) == ("ops", digest_of(key.encode()))
    assert keys("list", "--config", file) == 0
    assert "admin\tops\tsecret\tnever\tvalid" in keys.out
    assert keys("rotate", "--admin", "--file", file, "--id", "ops", "--new-id", "ops-2") == 0
    assert keys("revoke", "--admin", "--file", file, "--id", "ops") == 0
    assert [one.id for one in load_config(file, env={}).keys_of_admins] == ["ops-2"]
    assert file.read_text().startswith("listen: 127.0.0.1:0  # here\n")


def test_an_ssh_key_is_added_without_its_comment(keys: Keys, file: Path, tmp_path: Path) -> None:
    """The ollama command's own key; nothing is printed on standard output."""
    public = tmp_path / "id_ed25519.pub"
    public.write_text(SSH + "\n")
    assert keys("new", "--file", file, "--id", "laptop", "--ssh", public) == 0
    assert keys.out == ""
    assert keys_of(file)["laptop"].is_ssh
    assert "me@laptop" not in file.read_text()
    assert keys("list", "--file", file) == 0
    assert "coding\tlaptop\tssh" in keys.out
    public.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert keys("new", "--file", file, "--id", "private", "--ssh", public) == 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["new"], "--team"),
        (["new", "--team", "a b"], "--team: found 'a b'"),
        (["new", "--team", "a", "--id", "a b"], "--id: found 'a b'"),
        (["new", "--team", "a", "--expires", "soon"], "--expires: found 'soon'"),
        (["new", "--team", "chat", "--file", "FILE"], "found the team coding; allowed: the file of team chat"),
        (["new", "--file", "FILE", "--id", "ci"], "there is a key ci already"),
        (["rotate", "--file", "FILE", "--id", "gone"], "found no key gone; allowed: ci"),
        (["revoke", "--file", "FILE", "--id", "gone"], "found no key gone; allowed: ci"),
        (["revoke", "--file", "nowhere.yaml", "--id", "x"], "no such file"),
        (["list", "--file", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["rotate", "--file", "FILE", "--id", "ci", "--overlap", "soon"], "--overlap: found 'soon'; allowed: seconds"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(args: list[str], expected: str, keys: Keys, file: Path) -> None:
    """And the file stays as it is."""
    before = file.read_text()
    assert keys(*(str(file) if arg == "FILE" else arg for arg in args)) == 2
    assert expected in keys.err
    assert keys.out == ""
    assert file.read_text() == before


@pytest.mark.parametrize("text", ["team: coding\nkeys: [\n", "team: coding\nkeys: x\n", "- a\n", "keys: []\n"])
def test_a_broken_file_is_not_changed(text: str, keys: Keys, file: Path) -> None:
    """It is for a person to mend."""
    file.write_text(text)
    assert keys("new", "--file", file) == 2
    assert file.read_text() == text
