"""Names of derived tags (see `router/backend/derived.py`): a namespace of ours, so no user's model is overwritten."""

from __future__ import annotations

from router.core.ollama.names import ModelName
from router.core.ollama.runner import LoadOptions

NAMESPACE = "ollama-router-derived"
LONGEST_PART = 80  # of a name's part, by Ollama's grammar


def is_derived(name: str) -> bool:
    """True for the name of a tag that a router has made."""
    return f"{NAMESPACE}/" in name


def derived_name(variant: str, digest: str, options: LoadOptions) -> str:
    """The tag for `variant` with `options`: the same for the same, so that a second router finds it.

    A piece of the variant's manifest `digest` is in it: a variant that was pulled or created anew gets a new tag.
    """
    name = ModelName.parse(variant)
    parts = [name.namespace, name.model] if name.namespace != "library" else [name.model]
    card = "x" if options.main_gpu is None else options.main_gpu
    blob = "".join(char for char in digest.removeprefix("sha256") if char.isalnum())[:8]
    suffix = f"-d{blob}-c{options.num_ctx or 0}-b{options.num_batch or 0}-g{card}"
    return f"{NAMESPACE}/{'-'.join(parts)[:LONGEST_PART]}:{name.tag[: LONGEST_PART - len(suffix)]}{suffix}"


def parameters_of(options: LoadOptions) -> dict[str, int]:
    """What the tag's Modelfile must say to share the runner; {} when no tag is needed."""
    named = {"num_ctx": options.num_ctx, "num_batch": options.num_batch, "main_gpu": options.main_gpu}
    return {key: value for key, value in named.items() if value is not None}
