"""How single values of the configuration are written: addresses, durations, URLs, model names, GPU lists.

Each type is parsed by one function that raises `allowed(...)` with a text that says what is allowed.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer, StrictInt, WithJsonSchema
from pydantic_core import PydanticCustomError

from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")
_AUTHORITY = re.compile(r"[!-~]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
WILDCARDS = re.compile(r"[*?]")
MAPPED_BITS = 96
"""Of an IPv6 address in front of an IPv4 address within it."""


def allowed(text: str) -> PydanticCustomError:
    """Return the error for a value that is not allowed; `text` says what is."""
    return PydanticCustomError("allowed", "{allowed}", {"allowed": text})


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on. With port 0 the system chooses one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Parse ``host:port``, with an IPv6 host in brackets."""
    if isinstance(value, Address):
        return value
    error = allowed('an address such as "127.0.0.1:11435", "[::1]:11435" or "0.0.0.0:11435", port 0 to 65535')
    if not isinstance(value, str):
        raise error
    host, colon, port = value.strip().rpartition(":")
    is_v6 = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_v6 else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or is_v6 != _is_ipv6(host):
        raise error
    if not is_v6 and not _HOST_NAME.fullmatch(host):
        raise error
    return Address(host, int(port))


def parse_duration(value: object) -> float:
    """Parse seconds, from a number or from "250ms", "60s", "5m", "1h30m"."""
    error = allowed('a duration of at least 0: seconds, or "250ms", "60s", "5m", "1h30m"')
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value) or value < 0:
            raise error
        return float(value)
    if isinstance(value, str) and _DURATION.fullmatch(value.strip()):
        return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(value))
    raise error


def parse_window(value: object) -> float | str:
    """Parse seconds, or "auto"."""
    if value == "auto":
        return "auto"
    if value == 0 or not isinstance(value, (int, float, str)):
        raise allowed('auto, or a duration above 0: seconds, or "250ms", "60s", "5m", "1h30m"')
    return parse_duration(value)


def parse_positive(value: object) -> float:
    """Parse a duration above 0, in seconds."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise allowed('a duration above 0: seconds, or "250ms", "60s", "5m", "1h30m"')
    return seconds


def parse_keep_alive(value: object) -> float:
    """Parse a duration in seconds; negative or "forever" is infinite, as in Ollama's API."""
    if value == "forever" or (isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0):
        return math.inf
    if isinstance(value, float) and value == math.inf:
        return value
    try:
        return parse_duration(value)
    except PydanticCustomError:
        raise allowed('a duration: seconds, "60s", "5m"; "forever" or -1 keeps the model loaded') from None


def parse_url(value: object) -> str:
    """Parse the URL of an Ollama: http or https, host, port and perhaps a path; credentials are rejected."""
    error = allowed(
        'a URL such as "http://127.0.0.1:11434" or "https://h/path", without /v1, query, user name or password'
    )
    if not isinstance(value, str):
        raise error
    try:
        parts = urlsplit(value.strip())
        port = parts.port
    except ValueError:
        raise error from None
    bare = parts.scheme in ("http", "https") and not (parts.query or parts.fragment or value.strip()[-1:] in "?#")
    if not bare or not parts.hostname or "@" in parts.netloc or port == 0 or not _PATH.fullmatch(parts.path):
        raise error
    if not _AUTHORITY.fullmatch(parts.netloc):  # names beyond ASCII are written as they are sent: xn--…
        raise error
    if parts.path.rstrip("/").endswith(("/v1", "/api")):  # a client's base URL, to which these belong
        raise error
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def parse_network(value: object) -> Network:
    """Parse an IP address or a network in CIDR notation; one of IPv4 addresses within IPv6 is that of IPv4."""
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return value
    try:
        if isinstance(value, str):
            return _plain_network(ipaddress.ip_network(value.strip()))
    except ValueError:
        pass
    raise allowed('an IP address or network such as "127.0.0.1", "10.0.0.0/8" or "fd00::/8"')


def _plain_network(network: Network) -> Network:
    """Return a network as clients are compared with it: an IPv4 address within IPv6 counts as itself."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < MAPPED_BITS:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - MAPPED_BITS))


def parse_model(value: object) -> str:
    """Parse the name of a local model."""
    error = allowed('the name of a local model such as "llama3.1:8b" or "team/name:tag"')
    if not isinstance(value, str):
        raise error
    try:
        name = ModelName.parse(value)
    except BadRequest:
        raise error from None
    if name.source is Source.CLOUD:
        raise allowed("the name of a local model: cloud models have no footprint and cannot be part of a chain")
    return value.strip()


def parse_pattern(value: object) -> str:
    """Parse a model name that may contain the wildcards * and ?."""
    if not isinstance(value, str):
        raise allowed('a model name, perhaps with * or ?, such as "llama3.3:70b" or "qwen3:*"')
    try:
        ModelName.parse(WILDCARDS.sub("x", value))
    except BadRequest:
        raise allowed('a model name, perhaps with * or ?, such as "llama3.3:70b" or "qwen3:*"') from None
    return value.strip()


def parse_num_ctx(value: object) -> int | Literal["max"] | None:
    """Parse a context in tokens, or "max" for the largest that fits."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or value == "max" or is_count:
        return value  # type: ignore[return-value]
    raise allowed('a number of tokens of at least 1, or "max" for the largest context that fits')


def parse_gpus(value: object) -> Literal["auto", "none"] | tuple[int | str, ...]:
    """Parse "auto", "none", or a list of indexes and UUIDs."""
    if value in ("auto", "none"):
        return value
    if isinstance(value, (list, tuple)) and value and all(map(_is_gpu, value)) and len(set(value)) == len(value):
        return tuple(value)
    raise allowed('"auto", "none", or a list of different GPU indexes or UUIDs such as [0, "GPU-8f3c…"]')


def _is_gpu(item: object) -> bool:
    if isinstance(item, str):
        return bool(item.strip())
    return isinstance(item, int) and not isinstance(item, bool) and item >= 0


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _shown_keep_alive(seconds: float) -> float | str:
    return "forever" if seconds == math.inf else seconds


_DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|s|m|h))+$"}]
}
_KEEP_ALIVE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"const": "forever"}, _DURATION_SCHEMA["anyOf"][1]],
}
_NUM_CTX_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "max"}, {"type": "null"}]}
_GPUS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["auto", "none"]},
        {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}]},
        },
    ]
}

Listen = Annotated[
    Address, BeforeValidator(parse_address), PlainSerializer(str), WithJsonSchema({"type": "string", "pattern": ":"})
]
Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
Window = Annotated[
    float | Literal["auto"],
    BeforeValidator(parse_window),
    WithJsonSchema({"anyOf": [{"const": "auto"}, _DURATION_SCHEMA]}),
]
Positive = Annotated[float, BeforeValidator(parse_positive), WithJsonSchema(_DURATION_SCHEMA)]
KeepAlive = Annotated[
    float, BeforeValidator(parse_keep_alive), PlainSerializer(_shown_keep_alive), WithJsonSchema(_KEEP_ALIVE_SCHEMA)
]
Url = Annotated[str, BeforeValidator(parse_url), WithJsonSchema({"type": "string", "pattern": "^https?://"})]
ModelRef = Annotated[str, BeforeValidator(parse_model), WithJsonSchema({"type": "string", "minLength": 1})]
ModelPattern = Annotated[str, BeforeValidator(parse_pattern), WithJsonSchema({"type": "string", "minLength": 1})]
NumCtx = Annotated[int | Literal["max"] | None, BeforeValidator(parse_num_ctx), WithJsonSchema(_NUM_CTX_SCHEMA)]
Gpus = Annotated[
    Literal["auto", "none"] | tuple[int | str, ...], BeforeValidator(parse_gpus), WithJsonSchema(_GPUS_SCHEMA)
]
ProxyNetwork = Annotated[
    Network, BeforeValidator(parse_network), PlainSerializer(str), WithJsonSchema({"type": "string", "minLength": 1})
]
Count = Annotated[StrictInt, Field(ge=0)]
Factor = Annotated[float, Field(ge=0, le=100, strict=True)]
AtLeastOne = Annotated[StrictInt, Field(ge=1)]
