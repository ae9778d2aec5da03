"""Texts of Ollama that mention a derived tag, and the same texts with the name of the model instead."""

from __future__ import annotations

import re

from router.core.ollama.derived_names import NAMESPACE, is_derived, without_suffix
from router.core.ollama.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName, is_name

# Ollama prints a name as it was sent, in full (`registry.ollama.ai/…`), or as the path of its manifest; the path with
# the separators of its system, and all of them inside JSON.
_SEPARATOR = rb"(?:\\?/|\\{1,4}|%2[Ff])"
_PART = rb"\w(?:[\w.-]*\w)?"
# A host begins at the beginning of a word only: tried at each letter of a long one, it would be read as often.
_MENTION = re.compile(
    rb"(?P<host>(?<![\w.-])[\w.-]++(?::\d++)?%(sep)s)?%(namespace)s(?P<first>%(sep)s)(?P<model>%(part)s)"
    rb"(?:(?P<colon>:|%%3[Aa])(?P<tag>%(part)s)|(?P<middle>%(sep)s(?:manifests%(sep)s)?)(?P<file>%(part)s))?"
    % {b"sep": _SEPARATOR, b"namespace": NAMESPACE.encode(), b"part": _PART},
    re.IGNORECASE,
)
_NAMESPACE = NAMESPACE.encode()

MOST_MENTIONS = 1000
"""In one text: more are none of Ollama's, which repeats a client's text in some errors."""


def mentions_derived(text: bytes) -> bool:
    """Return whether the text contains the namespace of derived tags."""
    return _NAMESPACE in text.lower()


def without_derived(text: bytes, shown: str = "", *, has_names: bool = True) -> bytes:
    """Return Ollama's text with `shown` in place of each derived tag, in the form in which the tag is mentioned.

    Without `shown` it is the name that the tag's own name begins with. With `has_names` False only the paths of
    manifests are replaced, and names are kept: the client may have sent them itself. The characters that JSON escapes
    are none of a name's, so the text may be JSON.
    """
    if not mentions_derived(text):
        return text

    def replacement(found: re.Match[bytes]) -> bytes:
        if found["middle"] is None and not has_names:
            return found[0]
        return _replacement(found, shown)

    return _MENTION.sub(replacement, text, MOST_MENTIONS)


def display_base(name: str) -> str:
    """Return the model's name that the name of a derived tag begins with; any other name unchanged."""
    return without_derived(name.encode()).decode() if is_derived(name) else name


def _replacement(found: re.Match[bytes], shown: str) -> bytes:
    host, middle = found["host"] or b"", found["middle"]
    tag = (found["tag"] or found["file"] or b"").decode("utf-8", "replace")
    own = found["model"].decode("utf-8", "replace") + (f":{without_suffix(tag)}" if tag else "")
    full = _full(own, shown)
    is_full = b"." in host or b":" in host
    if middle is None:
        return full.full.encode() if is_full else host + (shown or own).encode()
    first = found["first"]
    where = full.host.encode() + first if is_full else host
    return b"".join((where, full.namespace.encode(), first, full.model.encode(), middle, full.tag.encode()))


def _full(own: str, shown: str) -> ModelName:
    """Return the name to print in full: Ollama prints an installed model as it is spelled on its disk."""
    base, name = _parsed(own), _parsed(shown)
    if base is None or name is None:
        return name or base or ModelName(DEFAULT_HOST, DEFAULT_NAMESPACE, own, DEFAULT_TAG)
    return base if name.key == base.key else name


def _parsed(name: str) -> ModelName | None:
    return ModelName.parse(name) if name and is_name(name) else None
