"""How the values of a team's file are written: names, hashes of keys, dates, amounts, parts of the cards' memory."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, StrictInt, WithJsonSchema
from pydantic_core import PydanticCustomError

from router.config.values import allowed
from router.core.teams.signature import raw_public_key
from router.core.teams.team import Memory

HASH_ALLOWED = (
    "the SHA-256 of a key, 64 hex digits; `printf %s KEY | sha256sum` makes it of a key, and "
    "`ollama-router keys new` makes a key with its hash"
)
TEAM_ALLOWED = "a name of at most 40 letters, digits, - and _, which begins with a letter or digit"
SIZE_ALLOWED = 'a size such as "8GiB" or "512MiB", or a part of all the memory such as "80%"'

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)
_HASH = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)([kKMG])", re.ASCII)
_AMOUNT_UNIT = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?([KMGT])(iB|i|B)", re.ASCII)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)
_MOST = 2**62


def parse_team(value: object) -> str:
    """Parse the name of a team."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise allowed(TEAM_ALLOWED)


def parse_key_id(value: object) -> str:
    """Parse the name of a key, which logs and usage show."""
    if isinstance(value, str) and _KEY_ID.fullmatch(value):
        return value
    raise allowed("a name of at most 32 letters, digits, -, _ and ., by which people know the key; never the key")


def parse_hash(value: object) -> str:
    """Parse the SHA-256 of a key; the key itself is an error that says how to hash it."""
    if isinstance(value, str) and _HASH.fullmatch(value.strip()):
        return value.strip().lower()
    raise allowed(HASH_ALLOWED)


def parse_ssh(value: object) -> str:
    """Parse an SSH public key as in ~/.ollama/id_ed25519.pub; the comment after it is dropped."""
    words = value.split() if isinstance(value, str) else []
    if len(words) >= 2 and words[0] == "ssh-ed25519":
        with suppress(ValueError):
            if raw_public_key(base64.b64decode(words[1], validate=True)) is not None:
                return f"{words[0]} {words[1]}"
    raise allowed('an SSH public key "ssh-ed25519 AAAA…", such as in ~/.ollama/id_ed25519.pub; never the private one')


def ssh_blob_of(key: str) -> bytes:
    """Return the binary form of a parsed SSH public key, which clients show."""
    return base64.b64decode(key.split()[1])


def parse_moment(value: object) -> float:
    """Parse a date, which means its first moment, or a date with time, in UTC if it names no zone; in Unix time."""
    error = allowed('a date such as 2027-03-01, or one with time such as "2027-03-01T18:00:00+01:00"; UTC if no zone')
    if isinstance(value, float):  # parsed before
        return value
    if not isinstance(value, (str, date)):
        raise error
    try:
        moment = datetime.fromisoformat(str(value).strip())
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise error from None


def shown_moment(unix_s: float) -> str:
    """Return Unix time as a date with time."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


def parse_amount(value: object) -> int:
    """Parse a number of at least 1: 600, "1.5k", "20M"."""
    error = allowed('a whole number of at least 1, or "500k", "20M", "1.5G"')
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif isinstance(value, str) and (found := _AMOUNT.fullmatch(value.strip())):
        count = round(float(found[1]) * _AMOUNT_UNIT[found[2]])
    else:
        raise error
    if not 1 <= count <= _MOST:
        raise error
    return count


def parse_memory(value: object) -> Memory:
    """Parse a size with its unit, or a part of a backend's memory in percent."""
    if isinstance(value, Memory):
        return value
    error: PydanticCustomError = allowed(SIZE_ALLOWED)
    if not isinstance(value, str):
        raise error
    if found := _PERCENT.fullmatch(value.strip()):
        if float(found[1]) > 100:
            raise error
        return Memory(share=float(found[1]) / 100)
    if found := _SIZE.fullmatch(value.strip()):
        unit = (1000 if found[3] == "B" else 1024) ** ("KMGT".index(found[2]) + 1)
        return Memory(round(float(found[1]) * unit))
    raise error


def shown_memory(memory: Memory) -> str:
    """Return the memory as it may be written."""
    if memory.size_bytes is None:
        return f"{100 * memory.share:.10g}%"
    return f"{memory.size_bytes / 2**20:.10g}MiB"


_AMOUNT_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?[kKMG]$"}]
}
_MEMORY_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]+)? ?[KMGT](iB|i|B)|[0-9]{1,3}(\.[0-9]+)? ?%)$",
}

TeamName = Annotated[
    str,
    BeforeValidator(parse_team),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"}),
]
KeyId = Annotated[
    str, BeforeValidator(parse_key_id), WithJsonSchema({"type": "string", "pattern": f"^{_KEY_ID.pattern}$"})
]
Hash = Annotated[
    str,
    BeforeValidator(parse_hash),
    PlainSerializer(lambda _: "***"),
    WithJsonSchema({"type": "string", "pattern": f"^{_HASH.pattern}$"}),
]
SshKey = Annotated[
    str, BeforeValidator(parse_ssh), WithJsonSchema({"type": "string", "pattern": "^ssh-ed25519 [A-Za-z0-9+/=]+"})
]
Moment = Annotated[
    float,
    BeforeValidator(parse_moment),
    PlainSerializer(shown_moment),
    WithJsonSchema({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}"}),
]
Amount = Annotated[StrictInt, BeforeValidator(parse_amount), WithJsonSchema(_AMOUNT_SCHEMA)]
MemoryPart = Annotated[
    Memory, BeforeValidator(parse_memory), PlainSerializer(shown_memory), WithJsonSchema(_MEMORY_SCHEMA)
]
Weight = Annotated[float, Field(gt=0, le=1000, strict=True)]
