"""`ollama-router init`: a commented configuration from what is installed, and which of it fits the cards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from router.cli.fit import GPU, UPSTREAM
from router.cli.question import DEFAULT_UPSTREAM, Site, read_site
from router.cli.shipped import shipped
from router.config import Defaults
from router.core.advice.examine import Fit, examine
from router.core.advice.order import bigger_entries, size_by_name
from router.core.decision.chain import auto_chain
from router.core.ollama.model import ModelFacts
from router.core.units import GIB
from router.errors import ConfigError

HEAD = """\
# Written by `ollama-router init` for Ollama {version} with {cards}.
# `ollama-router check {file}` checks it, `ollama-router serve --config {file}` serves it.

listen: 127.0.0.1:11435  # clients connect here, instead of to Ollama: OLLAMA_HOST=127.0.0.1:11435
admin: 127.0.0.1:11436  # the dashboard, metrics, and what the other commands ask

backends:
  local: {{ url: {url} }}

# What may serve a model, biggest first: the first one that runs fully on the GPU now does.
# A model without a chain has one by itself: its smaller quantizations, then smaller models of its series.
"""


def init(
    file: Annotated[Path, typer.Argument(help="File to write; - prints it.")] = Path("ollama-router.yaml"),
    gpu: GPU = [],  # noqa: B006 (typer copies it)
    upstream: UPSTREAM = DEFAULT_UPSTREAM,
    examples: Annotated[bool, typer.Option("--examples", help="Print the folder of the shipped examples.")] = False,
) -> None:
    """Write a commented configuration for the models that are installed and the cards of this machine.

    An existing file is not overwritten (exit code 2).
    """
    if examples:
        typer.echo(shipped("examples"))
        return
    if str(file) != "-" and file.exists():
        raise ConfigError(f"{file} exists; name another file, or print to standard output with -")
    text = configuration(read_site(upstream, gpu), "ollama-router.yaml" if str(file) == "-" else str(file))
    if str(file) == "-":
        typer.echo(text, nl=False)
        return
    try:
        with file.open("x") as target:
            target.write(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    typer.echo(f"wrote {file}; next: ollama-router serve --config {file}")
    typer.echo(f"examples for one card, two cards and teams: {shipped('examples')}")


def configuration(site: Site, file: str) -> str:
    """Return the text of the file."""
    cards = ", ".join(f"{gpu.name} ({gpu.free_bytes / GIB:.1f} GiB)" for gpu in site.gpus) or "no GPU"
    head = HEAD.format(version=site.version or "?", cards=cards, file=file, url=site.url)
    return head + "\n".join(_chains(site)) + "\n"


def _chains(site: Site) -> Iterator[str]:
    """Yield the lines of `chains`: models that fit as comments, those that do not with what may serve them."""
    fits = [(facts, _fit(site, facts)) for facts in site.installed if facts.tensors or facts.size_bytes]
    lacking = [(facts, fit) for facts, fit in fits if not fit.fits]
    yield "chains: {}" if not any(_substitutes(site, facts) for facts, _ in lacking) else "chains:"
    for facts, fit in lacking:
        yield from _chain(site, facts, fit)
    yield ""
    whole = [facts.name for facts, fit in fits if fit.fits]
    yield f"# These run fully on the GPU by themselves, with at least {Defaults().min_num_ctx} tokens of context:"
    yield from (f"#   {name}" for name in whole or ("none",))


def _fit(site: Site, facts: ModelFacts) -> Fit:
    question = site.question(facts, Defaults().min_num_ctx)
    return examine(facts, question.options, question.cards, largest=False)


def _substitutes(site: Site, facts: ModelFacts) -> list[str]:
    """Return what may serve instead, without what is bigger than one before it: `check` would warn of that."""
    names = [variant.model for variant in auto_chain(facts, site.installed).variants]
    useless = {index for index, _ in bigger_entries(names, size_by_name)}
    return [name for index, name in enumerate(names) if index and index not in useless]


def _chain(site: Site, facts: ModelFacts, fit: Fit) -> Iterator[str]:
    short = sum(-device.spare_bytes for device in fit.devices if device.spare_bytes < 0) / GIB
    why = f"does not fit: {short:.1f} GiB are missing"
    if not (others := _substitutes(site, facts)):
        yield f"  # {facts.name} {why}, and nothing installed may serve instead. Try: ollama-router advise {facts.name}"
        return
    yield f"  {json.dumps(facts.name)}:  # {why}"
    yield from (f"    - {json.dumps(name)}" for name in (facts.name, *others))
