"""Names of derived tags (see `router/backend/derived.py`), in a namespace of their own to overwrite no user's model.

    ollama-router-derived/mistral:7b-d0d3a5429-o5f0c1e-c32768-b512-gx

The name says from which manifest the tag was made (a piece of its digest), which router owns it, and with which
options. Tags of versions without owners lack the part `-o…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from router.core.ollama.names import ModelName, key_of
from router.core.ollama.runner import LoadOptions

NAMESPACE = "ollama-router-derived"
LONGEST_PART = 80  # characters in one part of a name, by Ollama's grammar
MOST_ALIKE = 16
"""Of the models whose digests begin alike, which are one model's names, so many may be what a tag was made from."""

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
    suffix = f"-d{_piece(digest)}{whose}-c{options.num_ctx or 0}-b{options.num_batch or 0}-g{card}"
    return f"{_PREFIX}{'-'.join(parts)[:LONGEST_PART]}:{name.tag[: LONGEST_PART - len(suffix)]}{suffix}"


def _piece(digest: str) -> str:
    text = digest.removeprefix("sha256").lstrip(":-")
    if text[:8].isalnum():  # each one of thousands
        return text[:8]
    return "".join(filter(str.isalnum, text))[:8]


def origin_of(name: str) -> Origin | None:
    """Return what the name of a derived tag says; None if it is not of this form."""
    found = _SUFFIX.search(name) if is_derived(name) else None
    if found is None:
        return None
    card = found["main_gpu"].lower()
    main_gpu = None if card == "x" else int(card)
    options = LoadOptions(num_ctx=int(found["num_ctx"]), num_batch=int(found["num_batch"]), main_gpu=main_gpu)
    return Origin(found["piece"], (found["owner"] or "").lower(), options)


def owner_in(name: str) -> str:
    """Return the owner that the name of a derived tag names, "" for none."""
    origin = origin_of(name)
    return origin.owner if origin is not None else ""


def usable(tags: Iterable[str], pieces: Mapping[str, Sequence[str]]) -> set[str]:
    """Return those of the derived tags that were made from a model as it is installed now, of those `by_piece`."""
    return {tag for tag in tags if made_from(tag, pieces)}


def by_piece(digests: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of models by the pieces of their digests that names of derived tags have.

    `digests` maps the names of the installed models to the digests of their manifests.
    """
    found: dict[str, list[str]] = {}
    for name, digest in digests.items():
        found.setdefault(_piece(digest).lower(), []).append(name)
    return found


def made_from(tag: str, pieces: Mapping[str, Sequence[str]]) -> str:
    """Return the model that a derived tag was made from, of those `by_piece`; "" if it is none of them.

    It is one from which the tag would get its name.
    """
    if (origin := origin_of(tag)) is None:
        return ""
    key = key_of(tag)
    for name in pieces.get(origin.piece.lower(), ())[:MOST_ALIKE]:
        if key_of(derived_name(name, origin.piece, origin.options, origin.owner)) == key:
            return name
    return ""


def without_suffix(tag: str) -> str:
    """Return the tag of the model from the tag of a derived name (both without the model's name)."""
    return _SUFFIX.sub("", tag)


def parameters_of(options: LoadOptions) -> dict[str, int]:
    """Return the parameters that the tag's Modelfile must set to share the runner; {} if no tag is needed."""
    named = {"num_ctx": options.num_ctx, "num_batch": options.num_batch, "main_gpu": options.main_gpu}
    return {key: value for key, value in named.items() if value is not None}
