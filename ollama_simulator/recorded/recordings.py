"""Scheduler recordings as files: reading them, and their models as `SimModel`.

A ``models.json`` row has bytes per layer, not tensors. The tensors built here have the right names, sizes per layer and
largest member, which every arithmetic needs. The remainder of a layer becomes one tensor ``rest``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollama_simulator.machine.arithmetic import SimModel
from router.core.memory.weights import tensor_bytes
from router.core.ollama.model import ModelFacts, Tensor

BASE = {"MXFP4": "MXFP4", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q5_K_M": "Q5_K"}
DOWN = {
    "Q2_K": ("Q3_K",),
    "Q3_K_M": ("Q5_K", "Q4_K"),
    "Q3_K_L": ("Q5_K",),
    "Q4_K_S": ("Q5_K",),
    "Q4_K_M": ("Q6_K",),
    "Q5_K_M": ("Q6_K",),
}
"""Types that llama.cpp chooses for the down projection of some layers, largest first."""


def read_scenarios(folder: Path) -> Iterator[dict[str, Any]]:
    """Every recorded scenario of a folder, sorted by name: ``<id>.json`` files, or all in one ``scenarios.json.gz``."""
    packed = folder / "scenarios.json.gz"
    if packed.exists():
        yield from json.loads(gzip.decompress(packed.read_bytes()))["scenarios"]
        return
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        if isinstance(found, dict) and "steps" in found:
            yield found


def pack(folder: Path) -> bytes:
    """Pack a folder's scenarios and models into small files, without logs, time lines and free memory."""
    kept = []
    for scenario in read_scenarios(folder):
        drop = {"log", "timeline", "free_mib_after"}
        steps = [{key: value for key, value in step.items() if key not in drop} for step in scenario["steps"]]
        kept.append({**{k: v for k, v in scenario.items() if k != "start_log"}, "steps": steps})
    models = json.loads((folder / "models.json").read_text())
    text = json.dumps({"scenarios": kept, "models": models}, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_models(folder: Path) -> dict[str, SimModel]:
    """Return the models of a folder by tag (``models.json``, or the packed file)."""
    packed = folder / "scenarios.json.gz"
    if packed.exists():
        rows = json.loads(gzip.decompress(packed.read_bytes()))["models"]
    else:
        rows = json.loads((folder / "models.json").read_text())
    return {name: model_of(name, row) for name, row in rows.items()}


def model_of(name: str, row: Mapping[str, Any]) -> SimModel:
    """Return the model of one row of ``models.json``."""
    tower = int(row["bytes"].get("vision") or 0)
    capabilities = {"embedding"} if row.get("embedding_model") else {"completion"}
    facts = ModelFacts(
        name=name,
        digest=row["blob"],
        size_bytes=int(row["blob_bytes"]),
        family=row["arch"],
        quantization=row["quantization"],
        capabilities=frozenset(capabilities | ({"vision"} if tower else set())),
        weights=row["blob"],
        info=_metadata(row),
        tensors=tuple(_tensors(row)),
    )
    return SimModel(facts, row["blob"], int(row["blob_bytes"]), tower)


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    arch = row["arch"]
    named = {
        "block_count": row["block_count"],
        "context_length": row["context_length"],
        "embedding_length": row["embedding_length"],
        "feed_forward_length": row["feed_forward_length"],
        "attention.head_count": row["head_count"],
        "attention.head_count_kv": row["head_count_kv"],
        "attention.key_length": row["key_length"],
        "attention.value_length": row["value_length"],
        "vocab_size": row["vocab"],
    }
    if row.get("sliding_window"):
        named["attention.sliding_window"] = row["sliding_window"]
        named["attention.sliding_window_pattern"] = row["swa_pattern"]
    if row.get("experts"):
        named |= {"expert_count": row["experts"], "expert_used_count": row["experts_used"]}
        named["expert_feed_forward_length"] = row["feed_forward_length"]
    if row.get("embedding_model"):
        named["pooling_type"] = 1
    info: dict[str, Any] = {f"{arch}.{key}": value for key, value in named.items() if value is not None}
    return {"general.architecture": arch, **info}


def _tensors(row: Mapping[str, Any]) -> Iterator[Tensor]:
    sizes, vocab, embedding = row["bytes"], int(row["vocab"]), int(row["embedding_length"])
    yield _sized("token_embd.weight", int(sizes["token_embd"]), (embedding, vocab))
    experts = sizes.get("experts_of_layers") or []
    for il, size in enumerate(sizes["layers"]):
        yield from _layer(row, il, int(size), int(experts[il]) if il < len(experts) else 0)
    output = int(sizes["output_on_gpu"])
    if row.get("tied_output"):
        output -= int(sizes["token_embd"])
        yield _sized("output_norm.weight", output, (output // 4,))
    else:
        yield _sized("output.weight", output, (embedding, vocab))
    if sizes.get("vision"):
        yield _sized("v.tower.weight", int(sizes["vision"]), (int(sizes["vision"]) // 2,))


def _layer(row: Mapping[str, Any], il: int, size: int, expert_bytes: int) -> Iterator[Tensor]:
    """Return the tensors of one block, `size` bytes in all."""
    base = BASE.get(row["quantization"], row["quantization"])
    head, kv = int(row["key_length"]), int(row["head_count_kv"]) * int(row["key_length"])
    embedding, wide = int(row["embedding_length"]), int(row["head_count"]) * head
    block = f"blk.{il}."
    found = []
    if not row.get("embedding_model"):
        kind = "BF16" if expert_bytes else base
        found += [Tensor(f"{block}attn_q.weight", kind, (embedding, wide))]
        found += [Tensor(f"{block}attn_k.weight", kind, (embedding, kv))]
        found += [Tensor(f"{block}attn_output.weight", kind, (wide, embedding))]
    found += list(
        _experts(row, block, base, expert_bytes) if expert_bytes else _feed_forward(row, block, base, size, found)
    )
    rest = size - sum(tensor_bytes(tensor) for tensor in found)
    yield from found
    yield _sized(f"{block}rest.weight", rest, (rest // 4,))


def _experts(row: Mapping[str, Any], block: str, base: str, size: int) -> Iterator[Tensor]:
    """Gate, up and down of all experts, their biases as the remainder."""
    shape = (int(row["embedding_length"]), int(row["feed_forward_length"]), int(row["experts"]))
    found = [Tensor(f"{block}ffn_{name}_exps.weight", base, shape) for name in ("gate", "up", "down")]
    yield from found
    yield Tensor(f"{block}ffn_bias_exps.bias", "I8", (size - sum(tensor_bytes(tensor) for tensor in found),))


def _feed_forward(row: Mapping[str, Any], block: str, base: str, size: int, before: list[Tensor]) -> list[Tensor]:
    """Gate, up and down; down in the largest type that leaves room for the known tensors of the layer."""
    shape = (int(row["embedding_length"]), int(row["feed_forward_length"]))
    pair = [Tensor(f"{block}ffn_{name}.weight", base, shape) for name in ("gate", "up")]
    room = size - sum(tensor_bytes(tensor) for tensor in [*before, *pair])
    kinds = (*DOWN.get(row["quantization"], ()), base)
    downs = [Tensor(f"{block}ffn_down.weight", kind, shape[::-1]) for kind in kinds]
    return [*pair, next((down for down in downs if tensor_bytes(down) <= room), downs[-1])]


def _sized(name: str, size: int, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of exactly `size` bytes: of `shape` if some type gives that size, else a row of bytes."""
    for kind in ("F16", "BF16", "F32", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "MXFP4"):
        if tensor_bytes(Tensor(name, kind, shape)) == size:
            return Tensor(name, kind, shape)
    return Tensor(name, "I8", (size,))
