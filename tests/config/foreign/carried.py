"""Reads a configuration of another proxy, and loads what is written for it."""

from router.config import Config, load_config
from router.config.foreign import read, write


def carried(folder, text) -> tuple[Config, str]:
    """The configuration that `text` becomes, which is valid, and the comments above it."""
    file, found = folder / "other.yaml", folder / "router.yaml"
    file.write_text(text)
    written = write(read(file), file.name)
    found.write_text(written)
    comments = "\n".join(line for line in written.splitlines() if line.startswith("#"))
    return load_config(found, env={}), comments


def chain_of(config, name) -> list:
    """The variants of a chain as (model, num_ctx)."""
    return [(one.model, one.num_ctx) for one in config.chains[name].variants]
