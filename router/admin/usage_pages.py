"""`GET /router/usage`: what teams have used, as JSON, CSV or FOCUS: the query's meaning, the answer's form. Pure."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from router.admin.focus import BY, Price, as_focus
from router.core.teams.usage import FIGURES, HOUR_S, NAMES, hour_of
from router.errors import BadRequest

Row = Mapping[str, int | str]
END_OF_TIME = 253_402_300_800
"""The end of the year 9999, beyond which there are no dates."""

FORMATS = ("json", "csv", "focus")


class UsageQuery(NamedTuple):
    """The hours from `since` up to but without `until` (Unix times), summed by the names `by`."""

    since: int = 0
    until: int = END_OF_TIME
    by: tuple[str, ...] = ("team", "model")
    form: str = "json"


def usage_query(parameters: Mapping[str, str]) -> UsageQuery:
    """Return the meaning of the parameters from, to, by and format. Raises BadRequest."""
    unknown = sorted(set(parameters) - {"from", "to", "by", "format"})
    if unknown:
        raise BadRequest(f"unknown query parameter {unknown[0]!r}: allowed are from, to, by, format")
    by = tuple(dict.fromkeys(name for name in parameters.get("by", "team,model").split(",") if name))
    if wrong := [name for name in by if name not in NAMES]:
        near = difflib.get_close_matches(wrong[0].lower(), NAMES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        allowed = ", ".join(NAMES)
        raise BadRequest(f"by={wrong[0]!r} is not a name{hint}: allowed are {allowed}, separated by commas")
    form = parameters.get("format", "json")
    if form not in FORMATS:
        raise BadRequest(f"format must be one of {', '.join(FORMATS)}")
    if form == "focus":  # which says itself what a row is about
        by = BY
    since, until = parameters.get("from"), parameters.get("to")
    return UsageQuery(
        max(0, hour_of(_unix_s("from", since))) if since else 0,
        -(-_unix_s("to", until) // HOUR_S) * HOUR_S if until else END_OF_TIME,
        by,
        form,
    )


def rendered(query: UsageQuery, rows: Sequence[Row], problem: str, price: Price) -> tuple[bytes, str]:
    """Return the answer to a query, and its content type. `problem` is why rows may be missing, "" if none are.

    Meant for a thread, as there may be many rows: each is encoded by itself, because nothing interrupts an encoder.
    """
    if query.form == "focus":
        return as_focus(rows, price), "text/csv; charset=utf-8"
    if query.form == "csv":
        return _as_csv(rows, query.by).encode(), "text/csv; charset=utf-8"
    encoded = msgspec.Raw(b"[%b]" % b",".join(map(msgspec.json.encode, _shown(rows))))
    page = {"from": _when(query.since), "to": _when(query.until), "by": query.by, "usage": encoded}
    if problem:
        page["problem"] = problem
    return msgspec.json.encode(page), "application/json; charset=utf-8"


def _shown(rows: Iterable[Row]) -> Iterator[dict[str, int | str]]:
    """Yield rows with their hour, if they have one, in ISO 8601."""
    for row in rows:
        yield {name: _iso(value) if name == "hour" else value for name, value in row.items()}


def _as_csv(rows: Sequence[Row], by: Sequence[str]) -> str:
    """Return rows as CSV with a line of titles."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*by, *FIGURES], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(_shown(rows))
    return text.getvalue()


def _when(unix_s: int) -> str | None:
    """Return an end of a period in ISO 8601, None for one that was not asked for."""
    return _iso(unix_s) if 0 < unix_s < END_OF_TIME else None


def _iso(hour: int | str) -> str:
    return datetime.fromtimestamp(int(hour), UTC).strftime("%Y-%m-%dT%H:%MZ")


def _unix_s(name: str, text: str) -> int:
    """Return the Unix time of a date, or date and time, in ISO 8601; UTC unless it says otherwise."""
    try:
        found = datetime.fromisoformat(text)
        moment = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        unix_s = int(moment.timestamp())
        if unix_s > END_OF_TIME:
            raise ValueError(text)
        return unix_s
    except (ValueError, OverflowError):
        raise BadRequest(f"{name} must be a date as 2027-01-31, or with a time as 2027-01-31T15:00Z") from None
