"""Names of derived tags (see `router/backend/derived.py`), in a namespace of their own to overwrite no user's model.

    ollama-router-derived/mistral:7b-d0d3a5429-o5f0c1e-c32768-b512-gx

The name says from which manifest the tag was made (a piece of its digest), which router owns it, and with which
options. Tags of versions without owners lack the part `-o…`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from router.core.ollama.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName, is_name, key_of
from router.core.ollama.runner import LoadOptions

NAMESPACE = "ollama-router-derived"
LONGEST_PART = 80  # characters in one part of a name, by Ollama's grammar

_PREFIX = f"{NAMESPACE}/"
_SUFFIX = re.compile(
    r"-d(?P<piece>[0-9a-z]*)(?:-o(?P<owner>[0-9a-z]+))?-c(?P<num_ctx>\d+)-b(?P<num_batch>\d+)-g(?P<main_gpu>x|\d+)$",
    re.IGNORECASE,
)


class Origin(NamedTuple):
    """What a derived tag's name says: `piece` of the manifest's digest, `owner` ("" = none named), and its options."""

    piece: str
    owner: str
    options: LoadOptions


def is_derived(name: str) -> bool:
    """Return whether `name` is that of a tag that a router has made, whichever router it was."""
    return _PREFIX in name.lower()


def derived_name(variant: str, digest: str, options: LoadOptions, owner: str = "") -> str:
    """Return the tag of the router `owner` for `variant` with `options`.

    Equal arguments give equal names, so that a router that was killed finds its tags again.

    The name contains a piece of the variant's manifest `digest`: a variant that was pulled or created again gets a new
    tag.
    """
    name = ModelName.parse(variant)
    parts = [name.namespace, name.model] if name.namespace != "library" else [name.model]
    card = "x" if options.main_gpu is None else options.main_gpu
    whose = f"-o{owner}" if owner else ""
    suffix = f"-d{digest_piece(digest)}{whose}-c{options.num_ctx or 0}-b{options.num_batch or 0}-g{card}"
    return f"{_PREFIX}{'-'.join(parts)[:LONGEST_PART]}:{name.tag[: LONGEST_PART - len(suffix)]}{suffix}"


def digest_piece(digest: str) -> str:
    """Return the piece of a manifest's digest that names contain."""
    return "".join(char for char in digest.removeprefix("sha256") if char.isalnum())[:8]


def origin_of(name: str) -> Origin | None:
    """Return what the name of a derived tag says; None if it is not of this form."""
    found = _SUFFIX.search(name) if is_derived(name) else None
    if found is None:
        return None
    card = found["main_gpu"].lower()
    main_gpu = None if card == "x" else int(card)
    options = LoadOptions(num_ctx=int(found["num_ctx"]), num_batch=int(found["num_batch"]), main_gpu=main_gpu)
    return Origin(found["piece"], (found["owner"] or "").lower(), options)


def is_made_from(name: str, variant: str, digest: str) -> bool:
    """Return whether the derived tag `name` was made from `variant` when its manifest had this digest."""
    origin = origin_of(name)
    if origin is None:
        return False
    return key_of(derived_name(variant, digest, origin.options, origin.owner)) == key_of(name)


def parameters_of(options: LoadOptions) -> dict[str, int]:
    """Return the parameters that the tag's Modelfile must set to share the runner; {} if no tag is needed."""
    named = {"num_ctx": options.num_ctx, "num_batch": options.num_batch, "main_gpu": options.main_gpu}
    return {key: value for key, value in named.items() if value is not None}


# --- texts that mention a tag ----------------------------------------------------------------------------------

# Ollama prints a name as it was sent, in full (`registry.ollama.ai/…`), or as the path of its manifest; the path with
# the separators of its system, and all of them inside JSON.
_SEPARATOR = rb"(?:\\?/|\\{1,4}|%2[Ff])"
_PART = rb"\w(?:[\w.-]*\w)?"
_MENTION = re.compile(
    rb"(?P<host>[\w.-]+(?::\d+)?%(sep)s)?%(namespace)s(?P<first>%(sep)s)(?P<model>%(part)s)"
    rb"(?:(?P<colon>:|%%3[Aa])(?P<tag>%(part)s)|(?P<middle>%(sep)s(?:manifests%(sep)s)?)(?P<file>%(part)s))?"
    % {b"sep": _SEPARATOR, b"namespace": NAMESPACE.encode(), b"part": _PART},
    re.IGNORECASE,
)
_NAMESPACE = NAMESPACE.encode()


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

    return _MENTION.sub(replacement, text)


def display_base(name: str) -> str:
    """Return the model's name that the name of a derived tag begins with; any other name unchanged."""
    return without_derived(name.encode()).decode() if is_derived(name) else name


def _replacement(found: re.Match[bytes], shown: str) -> bytes:
    host, middle = found["host"] or b"", found["middle"]
    tag = (found["tag"] or found["file"] or b"").decode("utf-8", "replace")
    own = found["model"].decode("utf-8", "replace") + (f":{_SUFFIX.sub('', tag)}" if tag else "")
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
