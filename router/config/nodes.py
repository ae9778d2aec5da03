"""The section `node`: this router owns the cards of one Ollama, and fronts send it requests."""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from router.config.keys import hashes_in
from router.config.paths import FileName
from router.config.section import Section
from router.config.values import allowed

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


def parse_node(value: object) -> str:
    """Parse the name of a node."""
    if isinstance(value, str) and _NAME.fullmatch(value.strip()):
        return value.strip()
    raise allowed("a name such as gpu-a or gpu-a.lan: letters, digits, dots, hyphens and underscores")


NodeName = Annotated[
    str, BeforeValidator(parse_node), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]


class NodeSection(Section):
    name: NodeName | None = None
    """name of this node for its fronts; null = this router is not a node"""
    key_sha256_file: FileName | None = None
    """file with the SHA-256 of the key of its fronts, one a line, so that a next one may be added; read by a reload"""

    @model_validator(mode="after")
    def _is_whole(self) -> NodeSection:
        if (self.name is None) != (self.key_sha256_file is None):
            raise allowed("name and key_sha256_file together, or neither")
        return self

    def read_keys(self) -> tuple[bytes, ...]:
        """Return the hashes of the keys of its fronts, none if it is not a node. Raises NoHash."""
        return () if self.key_sha256_file is None else hashes_in(FilePath(self.key_sha256_file))
