"""The sections about who has used what: usage by hour, and the audit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from router.config.paths import FileName
from router.config.section import Section
from router.config.values import AtLeastOne, Count, Positive


class Usage(Section):
    path: FileName | None = None
    """SQLite file of what each team has used by hour; null = in memory, for a week at most"""
    keep_days: AtLeastOne = 400
    """older hours are deleted from it, at most a day of them in an hour, in case that the clock is wrong for a while"""
    every_s: Positive = 5.0
    """how often it is written, beside the requests: what a crash may lose"""
    postgres_file: FileName | None = None
    """file with the URL of a PostgreSQL database for the usage of several routers; null = the SQLite file of path"""
    outbox_mib: AtLeastOne = 64
    """most memory, or size of path.outbox, for what waits until the database can be reached; then the oldest is lost"""
    runner_hour: Annotated[float, Field(ge=0, le=1e9, strict=True)] = 0.0
    """price of an hour of a runner, in /router/usage?format=focus: the time of requests on it, and of loads"""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """currency of that price (ISO 4217)"""


class Audit(Section):
    path: FileName | None = None
    """file with a JSON line for each request (who, what, when, tokens; never a prompt, never a key); null = none"""
    max_mib: AtLeastOne = 64
    """at this size it becomes path.1, and so on"""
    keep: Count = 5
    """how many of these are kept"""
