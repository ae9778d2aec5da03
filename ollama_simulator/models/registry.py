"""A registry of models as pull and push reach it: its models, its speed, and what is wrong with some of them."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_simulator.models.library import Library
from router.core.ollama.names import ModelName

MANIFEST = -1
"""The step of a pull that reads the manifest; layers follow from 0, the check of the digests comes after the last."""


@dataclass(frozen=True, slots=True)
class PullFault:
    """A pull that fails with `text` at a step: `MANIFEST`, a layer's number, or the number of layers (the check)."""

    step: int
    text: str


class Registry(Library):
    """The models of one or more hosts. `bytes_per_s`: how fast a layer arrives; `tls`: whether it speaks HTTPS."""

    def __init__(self, *, bytes_per_s: float = 6e6, tls: bool = False) -> None:
        super().__init__()
        self.bytes_per_s = bytes_per_s
        self.tls = tls
        self.faults: dict[str, PullFault] = {}

    def has_host(self, host: str) -> bool:
        """Whether a model of that host is here."""
        return any(model.name.host == host for model in self.models.values())

    def fault(self, name: ModelName) -> PullFault | None:
        """Return what is wrong with a model, if anything."""
        return self.faults.get(name.key)
