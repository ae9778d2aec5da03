"""Names of derived tags (see `router/backend/derived.py`), in a namespace of their own to overwrite no user's model."""

from __future__ import annotations

from router.core.ollama.names import ModelName
from router.core.ollama.runner import LoadOptions

NAMESPACE = "ollama-router-derived"
LONGEST_PART = 80  # characters in one part of a name, by Ollama's grammar


def is_derived(name: str) -> bool:
    """Return whether `name` is that of a tag that a router has made."""
    return f"{NAMESPACE}/" in name


def derived_name(variant: str, digest: str, options: LoadOptions) -> str:
    """Return the tag for `variant` with `options`.

    Equal arguments give equal names, so that a second router finds the tag.

    The name contains a piece of the variant's manifest `digest`: a variant that was pulled or created again gets a new
    tag.
    """
    name = ModelName.parse(variant)
    parts = [name.namespace, name.model] if name.namespace != "library" else [name.model]
    card = "x" if options.main_gpu is None else options.main_gpu
    blob = "".join(char for char in digest.removeprefix("sha256") if char.isalnum())[:8]
    suffix = f"-d{blob}-c{options.num_ctx or 0}-b{options.num_batch or 0}-g{card}"
    return f"{NAMESPACE}/{'-'.join(parts)[:LONGEST_PART]}:{name.tag[: LONGEST_PART - len(suffix)]}{suffix}"


def parameters_of(options: LoadOptions) -> dict[str, int]:
    """Return the parameters that the tag's Modelfile must set to share the runner; {} if no tag is needed."""
    named = {"num_ctx": options.num_ctx, "num_batch": options.num_batch, "main_gpu": options.main_gpu}
    return {key: value for key, value in named.items() if value is not None}
