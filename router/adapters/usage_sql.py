"""The statements on the usage of teams that are the same for every database, but for how it marks a value."""

from __future__ import annotations

from collections.abc import Sequence

from router.core.teams.usage import FIGURES, NAMES


def adding(table: str, mark: str) -> str:
    """Return the statement that adds the figures of a row to those of the same names; `mark` stands for a value."""
    columns, values = ", ".join((*NAMES, *FIGURES)), ", ".join([mark] * (len(NAMES) + len(FIGURES)))
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in FIGURES)
    return f"INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT ({', '.join(NAMES)}) DO UPDATE SET {sums}"


def summing(table: str, by: Sequence[str], mark: str, cast: str = "") -> str:
    """Return the statement for the figures summed by the names `by` and in their order; unknown names do not count.

    Its values are the first hour, the one after the last, and the most rows. `cast` makes a sum a whole number where
    the database would not.
    """
    names = [name for name in by if name in NAMES]
    order = f" GROUP BY {', '.join(names)} ORDER BY {', '.join(names)}" if names else ""
    columns = ", ".join([*names, *(f"COALESCE(SUM({name}), 0){cast} AS {name}" for name in FIGURES)])
    return f"SELECT {columns} FROM {table} WHERE hour >= {mark} AND hour < {mark}{order} LIMIT {mark}"
