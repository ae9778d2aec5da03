"""Recorded memory plans: a folder of `memory.csv`, `decisions.csv` and `models/*.json`, or their gz forms."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from router.core.memory.options import MemoryOptions
from router.core.memory.placement import Card
from router.core.ollama.model import ModelFacts, Tensor
from router.core.units import MIB

Row = dict[str, str]


@dataclass(frozen=True)
class Recordings:
    """One folder. Facts are built once per model and quantization, as in the catalog."""

    folder: Path

    @cached_property
    def memory(self) -> list[Row]:
        return self._rows("memory.csv")

    @cached_property
    def decisions(self) -> list[Row]:
        return self._rows("decisions.csv")

    @cached_property
    def facts(self) -> dict[tuple[str, str], ModelFacts]:
        """Facts by model and quantization."""
        return {
            (name, quant): facts_of(model, quant) for name, model in self._models().items() for quant in model["quants"]
        }

    def _rows(self, name: str) -> list[Row]:
        return list(csv.DictReader(io.StringIO(self._text(name))))

    def _text(self, name: str) -> str:
        plain, packed = self.folder / name, self.folder / f"{name}.gz"
        return plain.read_text() if plain.exists() else gzip.decompress(packed.read_bytes()).decode()

    def _models(self) -> dict[str, Any]:
        if (self.folder / "models").is_dir():
            models = (json.loads(path.read_text()) for path in sorted((self.folder / "models").glob("*.json")))
            return {model["model"]: model for model in models}
        models_of_all: dict[str, Any] = json.loads(self._text("models.json"))
        return models_of_all


def facts_of(model: dict[str, Any], quant: str) -> ModelFacts:
    """Return the facts of one recorded model, as from `/api/show`."""
    kinds = model["quants"][quant]
    return ModelFacts(
        name=f"{model['model']}:{quant}",
        digest=f"{model['model']}:{quant}",
        size_bytes=kinds["file_bytes"],
        family=model["arch"],
        quantization=quant,
        capabilities=frozenset({"completion"}),
        weights=f"{model['model']}:{quant}",
        info={**model["model_info"], **model["arrays"]},
        tensors=tuple(
            Tensor(name, kind, tuple(shape))
            for (name, shape), kind in zip(model["tensors"], kinds["types"], strict=True)
        ),
        vocab=model["vocab"],
    )


def options_of(row: Row) -> MemoryOptions:
    """Return the options of the recorded run."""
    return MemoryOptions(
        num_ctx=int(row["num_ctx"]),
        num_batch=int(row["num_batch"]),
        num_parallel=int(row["num_parallel"]),
        kv_type=row["kv_type"],
        flash_attention=row["flash_attn"] != "off",
        is_embedding=row.get("embedding") == "1",
    )


def cards_of(row: Row) -> list[Card]:
    """Return a recorded decision's devices: no driver context, the recorded target, the projector on the first one."""
    free = [float(text) for text in row["dev_free_mib"].split("|")]
    free = free[:1] if "none" in row["split"] else free
    target, projector = float(row["fit_target_mib"] or 1024), float(row["mmproj_device_mib"] or 0)
    margins = [target + (projector if at == 0 else 0) for at in range(len(free))]
    return [Card(at, int(have * MIB), 0, int(margins[at] * MIB)) for at, have in enumerate(free)]


def is_whole(row: Row) -> bool:
    """Whether the cards have whole GiB; the others are exactly at the limit."""
    return all(float(text) % 1024 == 0 for text in row["dev_free_mib"].split("|"))
