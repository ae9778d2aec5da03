"""`ollama-router keys`: makes, lists, replaces and revokes keys.

A key is printed once, on standard output, when it is made; everything else goes to standard error. Only its hash is
kept.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from router.cli.table import print_table
from router.config import load_config
from router.config.key_files import KeyFile, line_of
from router.config.team_values import parse_key_id, parse_moment, parse_ssh, parse_team, shown_moment
from router.config.values import parse_duration
from router.core.teams.keys import ALPHABET, SECRET_CHARS, digest_of, make_key
from router.core.teams.team import Key
from router.errors import ConfigError

T = TypeVar("T")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make, list, replace and revoke the keys of teams and admins.",
)

ADMIN, DAY_S = "admin", 86400.0
RELOAD = "a running router reads it within two seconds (watch_files: false: with its next reload)"
MOMENT = 'seconds, "5m", "12h" or "90d" from now'
DATE = f"a date such as 2027-03-01, or {MOMENT}"
File = Annotated[
    Path | None, typer.Option("--file", "-f", help="The team's YAML file, with --admin the router's; it is changed.")
]
Changed = Annotated[Path, typer.Option("--file", "-f", help="The team's YAML file, with --admin the router's.")]
Team = Annotated[str | None, typer.Option(help="Name of the team; default: the one of --file.")]
Admin = Annotated[bool, typer.Option("--admin", help="For the admin address, instead of a team.")]
Id = Annotated[str | None, typer.Option("--id", help="Name of the key in logs and usage; default: by date and time.")]
OldId = Annotated[str, typer.Option("--id", help="Name of the key.")]
Expires = Annotated[
    str | None,
    typer.Option(help="When it ends to be valid: a date such as 2027-03-01, or a time from now such as 90d."),
]


@app.command()
def new(
    team: Team = None,
    admin: Admin = False,
    file: File = None,
    key_id: Id = None,
    expires: Expires = None,
    ssh: Annotated[
        Path | None, typer.Option(help="Accept this SSH public key (the ollama command's) instead of making a key.")
    ] = None,
) -> None:
    """Make a key, print it once, and write its hash into --file, or print the entry for it."""
    now_s = float(int(time.time()))
    entry = {
        "id": _parsed("--id", parse_key_id, key_id or datetime.fromtimestamp(now_s, UTC).strftime("k%Y%m%d-%H%M%S"))
    }
    opened = None if file is None else _opened(file, team, admin=admin)
    name = ADMIN if admin else _team(team, opened)
    key = ""
    if ssh is not None:
        entry["ssh"] = _parsed("--ssh", parse_ssh, _read(ssh))
    else:
        key, entry["sha256"] = _made(name)
    if expires is not None:
        end_s = _moment("--expires", expires, now_s, DATE)
        entry["expires"] = shown_moment(end_s)
        if end_s <= now_s:
            typer.echo(f"warning: the key {entry['id']} has expired already: {entry['expires']}", err=True)
    if opened is not None:
        opened.add(entry)
        opened.write()
        typer.echo(f"added key {entry['id']} to {file}; {RELOAD}", err=True)
    else:
        place = "admin_keys: of the router's configuration" if admin else f"keys: of the file of team {name}"
        typer.echo(f"put this line under {place}:\n{line_of(entry)}", err=True)
    if key:
        typer.echo(key)


@app.command("list")
def show(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The router's YAML file; default: $OLLAMA_ROUTER_CONFIG.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="One team's YAML file instead.")] = None,
) -> None:
    """List the keys of all teams and of the admins, and when they expire."""
    if file is not None and not file.is_file():
        raise ConfigError(f"{file}: no such file")
    options = {} if file is None else {"teams": str(file.absolute())}
    loaded = load_config(config, options=options)
    now_s = time.time()
    rows = [(one.section.team, *_row(key, now_s)) for one in loaded.team_files for key in one.keys]
    rows += [(ADMIN, *_row(key, now_s)) for key in loaded.keys_of_admins]
    print_table(Console(), ("team", "key", "kind", "expires", "state"), rows, title="keys", names=("team", "key"))


@app.command()
def rotate(
    file: Changed,
    key_id: OldId,
    admin: Admin = False,
    new_id: Annotated[str | None, typer.Option(help="Name of the new key; default: by date and time.")] = None,
    overlap: Annotated[str, typer.Option(help="How long the old key stays valid beside the new one.")] = "7d",
) -> None:
    """Make a key that replaces another one, which expires after --overlap; until then both are valid."""
    now_s = float(int(time.time()))
    opened = _opened(file, None, admin=admin)
    old = opened.entry(key_id)
    end_s = _moment("--overlap", overlap, now_s, MOMENT)
    if old.get("expires") is not None:
        end_s = min(end_s, _parsed("expires", parse_moment, old["expires"]))
    opened.change(key_id, expires=shown_moment(end_s))
    name = ADMIN if admin else _team(None, opened)
    key, digest = _made(name)
    fresh = _parsed("--new-id", parse_key_id, new_id or datetime.fromtimestamp(now_s, UTC).strftime("k%Y%m%d-%H%M%S"))
    opened.add({"id": fresh, "sha256": digest})
    opened.write()
    typer.echo(f"added key {fresh}; {key_id} expires {shown_moment(end_s)}; {RELOAD}", err=True)
    typer.echo(key)


@app.command()
def revoke(file: Changed, key_id: OldId, admin: Admin = False) -> None:
    """Remove a key, which fails on the next request after the router's reload."""
    opened = _opened(file, None, admin=admin)
    opened.remove(key_id)
    opened.write()
    typer.echo(f"removed key {key_id} from {file}; {RELOAD}", err=True)


def _opened(file: Path, team: str | None, *, admin: bool) -> KeyFile:
    if admin:
        return KeyFile(file, "admin_keys")
    opened = KeyFile(file, "keys", _parsed("--team", parse_team, team) if team else "")
    if not opened.team or (team and team.lower() != opened.team.lower()):
        found = f"the team {opened.team}" if opened.team else "no team"
        raise ConfigError(f"{file}: found {found}; allowed: the file of {f'team {team}' if team else 'one team'}")
    return opened


def _team(team: str | None, opened: KeyFile | None) -> str:
    if opened is not None:
        return opened.team
    if not team:
        raise ConfigError("found neither --team nor --file nor --admin; allowed: one of them, for whom the key is")
    return _parsed("--team", parse_team, team)


def _made(name: str) -> tuple[str, str]:
    """Return a new key of the team, and its hash in hex."""
    key = make_key(name, "".join(secrets.choice(ALPHABET) for _ in range(SECRET_CHARS)))
    return key, digest_of(key.encode()).hex()


def _moment(option: str, text: str, now_s: float, allowed: str) -> float:
    """Return Unix time from a date, or from a time from now. Raise ConfigError, which says what is `allowed`."""
    if days := re.fullmatch(r"(\d{1,5})d", text.strip()):
        return now_s + int(days[1]) * DAY_S
    if re.match(r"\d+-", text.strip()):
        return _parsed(option, parse_moment, text)
    try:
        return now_s + parse_duration(int(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else text)
    except ValueError:
        raise ConfigError(f"{option}: found {text!r}; allowed: {allowed}") from None


def _row(key: Key, now_s: float) -> tuple[str, str, str, str]:
    kind = "ssh" if key.is_ssh else "secret"
    if key.expires_s is None:
        return key.id, kind, "never", "valid"
    left_s = key.expires_s - now_s
    state = (
        "expired" if left_s <= 0 else f"valid for {left_s / DAY_S:.0f} days" if left_s > 2 * DAY_S else "expires soon"
    )
    return key.id, kind, shown_moment(key.expires_s), state


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--ssh: {path} cannot be read: {getattr(exc, 'strerror', None) or 'not text'}") from None


def _parsed(option: str, parse: Callable[[object], T], value: object) -> T:
    """Return the parsed value of an option. Raise ConfigError."""
    try:
        return parse(value)
    except ValueError as exc:
        raise ConfigError(f"{option}: found {value!r}; allowed: {exc}") from None
