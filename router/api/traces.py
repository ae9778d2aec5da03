"""The id of the trace that a client's request is part of (W3C Trace Context, level 1 and 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from router.http.headers import Header

TRACEPARENT = b"traceparent"
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16


def trace_id_of(headers: Sequence[Header], by_name: Mapping[bytes, bytes]) -> str:
    """Return the trace id of the `traceparent` header; "" if there is none, or more than one, or an invalid one.

    `by_name` is `headers` as a dict. A version that is not known yet is read by the form of version 00, which it
    extends; version ff is none. The header itself is passed on unchanged: the router adds no span to the trace.
    """
    value = by_name.get(TRACEPARENT)
    if value is None or (len(by_name) != len(headers) and [name for name, _ in headers].count(TRACEPARENT) > 1):
        return ""
    found = _FORM.fullmatch(value.strip(b" \t"))
    if found is None:
        return ""
    version, trace_id, parent, rest = found.groups()
    if version == b"ff" or trace_id == _NO_TRACE or parent == _NO_PARENT or (version == b"00" and rest is not None):
        return ""
    return trace_id.decode()
