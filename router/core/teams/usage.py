"""Usage: what requests have used, summed by hour, team, key, model, backend and kind. Data only."""

from __future__ import annotations

from typing import NamedTuple

HOUR_S = 3600
NAMES = ("hour", "team", "key_id", "model", "backend", "kind")
FIGURES = ("requests", "errors", "tokens_in", "tokens_out", "card_ms", "load_ms", "queue_ms", "vram_mib_s")


class UsageKey(NamedTuple):
    """What a row is about. `hour` is the Unix time of its start, `kind` that of the route (chat, generate, …)."""

    hour: int
    team: str
    key_id: str
    model: str
    backend: str
    kind: str


class Figures(NamedTuple):
    """What was used. `card_ms` is the time on runners, `load_ms` that of switches, `queue_ms` that of waiting;
    `vram_mib_s` is MiB of VRAM times the seconds on runners."""

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    card_ms: int = 0
    load_ms: int = 0
    queue_ms: int = 0
    vram_mib_s: int = 0


class UsageBatch(NamedTuple):
    """Rows to add, in the order of their keys. A store adds the batch `seq` of a `writer` once, however often it is
    given."""

    writer: str
    seq: int
    rows: tuple[tuple[UsageKey, Figures], ...]


def kept_from(oldest: int, before: int, newest: int, keep_s: int) -> int:
    """Return the hour from which rows are kept when one of the hour `newest` comes, the first of it.

    `oldest` is the hour of the oldest row, `before` that of the newest one before. A clock may be wrong: nothing goes
    in the first hour after more than `keep_s` without usage, which may be a jump of it, and in any other hour at most a
    day of rows goes. So a clock that is years ahead for a while costs a few of the oldest days.
    """
    if newest - before > keep_s:
        return oldest
    return min(newest - keep_s, oldest + 24 * HOUR_S)


def hour_of(unix_s: float) -> int:
    """Return the start of the hour that `unix_s` is in, as Unix time."""
    return int(unix_s) // HOUR_S * HOUR_S


class Ledger:
    """Usage that is not written yet, of at most `most` keys; `lost` counts the requests that found no room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: dict[UsageKey, list[int]] = {}
        self.lost = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: UsageKey, figures: Figures) -> None:
        """Add to the row of `key`."""
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= self._most:
                self.lost += figures.requests
                return
            row = self._rows[key] = [0] * len(FIGURES)
        for at, value in enumerate(figures):
            row[at] += value

    def take(self, most: int) -> tuple[tuple[UsageKey, Figures], ...]:
        """Remove and return at most `most` rows, in the order of their keys."""
        keys = sorted(self._rows)[:most]
        return tuple((key, Figures(*self._rows.pop(key))) for key in keys)
