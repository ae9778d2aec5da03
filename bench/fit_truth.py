"""Public reports of memory use (`vram_truth.csv`) against the footprint: a table of errors by kind of source.

The reports are noisy: other versions, partial offload, rounded figures. Only models whose shape is recorded can be
compared; the number of the others is printed, and each outlier with the report's own note.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from statistics import median

from ollama_simulator.recorded.plans import MIB, Recordings, Row
from router.core.memory.footprint import footprint
from router.core.memory.options import MemoryOptions
from router.core.ollama.model import ModelFacts

# Patterns of names in the reports → names of the recorded shapes.
ALIASES = (
    (r"llama3(\.\d)?:70b", "llama3.3-70b"),
    (r"llama3(\.1)?:(8b|latest)", "llama3.1-8b"),
    (r"qwen2\.5-coder-14b|^qwen 14b", "qwen2.5-14b"),
    (r"qwen3\.[56]-35b-a3b", "qwen3.5-35b-a3b"),
    (r"qwen3\.5-27b", "qwen3.5-27b"),
    (r"qwen3[:-]32b", "qwen3-32b"),
    (r"qwen3 8b", "qwen3-8b"),
    (r"gpt-oss[:-]20b", "gpt-oss-20b"),
    (r"gemma3:12b", "gemma3-12b"),
    (r"gemma3:4b", "gemma3-4b"),
    (r"deepseek-coder-v2:16b", "deepseek-v2-lite"),
)
TERMS = (("weights_buffer_mib", "weights"), ("kv_buffer_mib", "cache"), ("compute_buffer_mib", "compute"))
OUTLIER = 0.05


def print_truth(recordings: Recordings) -> None:
    """Print the table, if there is a `vram_truth.csv` beside the recordings or one folder up."""
    found = [path for path in (recordings.folder, recordings.folder.parent) if (path / "vram_truth.csv").exists()]
    if not found:
        return
    rows = list(csv.DictReader((found[0] / "vram_truth.csv").open()))
    errors: dict[tuple[str, str], list[tuple[float, float, str]]] = defaultdict(list)
    compared = 0
    for row in rows:
        terms = _errors(recordings, row)
        compared += bool(terms)
        for term, (error, recorded) in terms.items():
            errors[_kind(row), term].append((error, recorded, f"{row['model']} {row['quant']}: {row['note']}"))
    print(
        f"\npublic reports: {compared} of {len(rows)} can be compared (shape recorded, and at least one term reported)"
    )
    print(f"{'kind of source':<18}{'term':<10}{'reports':>8}{'median':>10}{'worst':>10}  MiB (computed less reported)")
    for (kind, term), of_kind in sorted(errors.items()):
        sizes = [error for error, _, _ in of_kind]
        print(f"{kind:<18}{term:<10}{len(sizes):>8}{median(sizes):>10.0f}{max(sizes, key=abs):>10.0f}")
    for (kind, term), of_kind in sorted(errors.items()):
        for error, recorded, note in of_kind:
            if abs(error) > max(OUTLIER * recorded, 64):
                print(
                    f"  outlier, {kind} {term} {error:+.0f} of {recorded:.0f} MiB, {_reason(kind, note)}: {note[:90]}"
                )


def _reason(kind: str, note: str) -> str:
    """Return why a report differs, if its note explains it."""
    if kind == "estimate":
        return "an estimate by Ollama before 0.12, not measured"
    if "cpu-moe" in note:
        return "experts on the CPU: the graph is cut at each layer"
    return "split by tensor, which Ollama does not do" if "split-mode tensor" in note else "not explained"


def _kind(row: Row) -> str:
    match = re.search(r"kind=([\w-]+)", row["note"])
    return match[1] if match else "unknown"


def _errors(recordings: Recordings, row: Row) -> dict[str, tuple[float, float]]:
    facts, options = _facts(recordings, row), _options(row)
    if facts is None or options is None:
        return {}
    cards = int(row["gpu_count"] or 1)
    known = footprint(facts, options, copies=4 if cards > 1 else 1)
    computed = {"weights": known.weights_bytes, "cache": known.kv_bytes, "compute": known.compute_bytes * cards}
    terms = {name: float(row[column]) for column, name in TERMS if row[column]}
    if "cpu-moe" in row["note"] or not _is_same_quant(facts, row):
        terms.pop("weights", None)
    return {name: (computed[name] / MIB - recorded, recorded) for name, recorded in terms.items()}


def _facts(recordings: Recordings, row: Row) -> ModelFacts | None:
    names = [model for pattern, model in ALIASES if re.search(pattern, row["model"].lower())]
    quants = {quant: facts for (name, quant), facts in recordings.facts.items() if names and name == names[0]}
    return quants.get(row["quant"]) or next(iter(quants.values()), None)


def _is_same_quant(facts: ModelFacts, row: Row) -> bool:
    return facts.quantization == row["quant"]


def _options(row: Row) -> MemoryOptions | None:
    if not row["num_ctx"]:
        return None
    batch = re.search(r"n_ubatch[= ](\d+)", row["note"])
    slots = int(row["num_parallel"] or 1)
    return MemoryOptions(
        num_ctx=max(256, int(row["num_ctx"]) // max(1, slots)),
        num_batch=int(batch[1]) if batch else 512,
        num_parallel=slots,
        kv_type=row["kv_cache_type"] or "f16",
        flash_attention=row["flash_attention"] != "off",
    )
