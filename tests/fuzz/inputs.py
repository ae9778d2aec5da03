"""Inputs for fuzzing: mutations of what is kept in `corpus/`, of JSON as a tree and of anything as bytes."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import assume
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"

FRAGMENTS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\x00", b"\xff", b"\xf0\x9f",
    b"1e9999", b"-0", b"null", b"9" * 400, b'"model":"x",', b'"options":{},', b'"options":{"num_ctx":1},',
    b'"keep_alive":"1h1m1s",', b"{}", b"[[]]", b" ", b"\r\n", b"\r\n\r\n", b"\n", b"\t", b"%00", b"%2f",
    b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"data: ", b"\n\n", b'{"done":true}\n', b"nan", b"+Inf", b"# HELP x\n",
)  # fmt: skip

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**60, 0.5, -0.0, 1e308, "", "x", "0", "1h",
    "\x00", "\x1b[2J", "é" * 300, "9" * 300, [], {}, [[]], [{}], [None] * 100, {"": ""}, {"model": "x"},
    ["a", 1, None], "x" * 5000, [0] * 5000,
)  # fmt: skip

BIG_BYTES = 1 << 20


def kept(surface: str) -> list[bytes]:
    """Return the inputs that are kept for a surface."""
    return [zstandard.decompress(path.read_bytes()) for path in sorted((CORPUS / surface).glob("*.zst"))]


def keep(surface: str, data: bytes, folder: Path = CORPUS) -> None:
    """Keep an input by which something failed."""
    (folder / surface).mkdir(exist_ok=True, parents=True)
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.zst"
    (folder / surface / name).write_bytes(zstandard.compress(data, 19))


class Input(bytes):
    """An input that is not printed at full length."""

    def __repr__(self) -> str:
        return f"{bytes(self[:200])!r}… ({len(self)} bytes)" if len(self) > 200 else super().__repr__()


@st.composite
def changed_bytes(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw one of `seeds` with some bytes removed, replaced, inserted or repeated, now and then very often."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        how = draw(st.sampled_from(["remove", "insert", "junk", "repeat", "flood"]))
        if how == "remove":
            data = data[:start] + data[end:]
        elif how == "insert":
            data = data[:start] + draw(st.sampled_from(FRAGMENTS)) + data[start:]
        elif how == "junk":
            data = data[:start] + draw(st.binary(max_size=8)) + data[end:]
        elif how == "repeat":
            data = data[:start] + data[start:end] * draw(st.integers(0, 50)) + data[end:]
        elif len(data) < BIG_BYTES:
            part = data[start:end] or draw(st.sampled_from(FRAGMENTS))
            data = data[:start] + part * (BIG_BYTES // len(part)) + data[end:]
    return data


@st.composite
def changed_json(draw: st.DrawFn, seeds: list[Any]) -> bytes:
    """Draw one of `seeds` with some of its values replaced, doubled or removed, as JSON."""
    value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(1, 4))):
        found = places(value) or [(value, None)]
        holder, key = found[draw(st.integers(0, len(found) - 1))]
        if key is None:
            value = odd(draw)
            continue
        how = draw(st.sampled_from(["replace", "remove", "wrap", "deepen", "widen"]))
        if how == "replace":
            holder[key] = odd(draw)
        elif how == "remove":
            del holder[key]
        elif how == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}, {"model": holder[key]}]))
        elif how == "deepen":
            for _ in range(draw(st.sampled_from([5, 200]))):
                holder[key] = [holder[key]]
        else:
            holder[key] = [holder[key]] * draw(st.sampled_from([2, 1000]))
    data = json.dumps(value).encode()
    assume(len(data) <= 2 * BIG_BYTES)
    return data


def odd(draw: st.DrawFn) -> Any:
    return copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a JSON value as (what holds it, its key or index)."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += places(value[key])
    return found[:500]
