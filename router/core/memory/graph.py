"""Widths of a model's graph: how many elements per token are alive at its peaks (docs/memory.md, "Compute buffer").

`compute.compute_bytes` turns them into the compute buffer. Everything here is f32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router.core.memory.architectures import Architecture
from router.core.memory.caches import head_size, is_mla, largest
from router.core.ollama.model import ModelFacts


@dataclass(frozen=True, slots=True)
class GraphWidths:
    """Widths of the graph of one model, in elements.

    `body` is the A of docs/memory.md, `mixer` its state-space term, `attention` the width of the attention's output;
    `attention_off` is what is alive beside the KQ matrix without flash attention, `parallel_mixer` what is alive beside
    attention where a mixer works in the same block.
    """

    embedding: int
    vocabulary: int
    body: int
    mixer: int
    attention: int
    heads: int
    query_rows: int
    attention_off: int
    parallel_mixer: int


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The feed-forward of one block: `width` elements, alive `copies` times (3 gated: gate, up, product; else 1)."""

    width: int
    copies: int

    def peak(self, embedding: int, attention: int, out: int = 0) -> int:
        """Return the elements alive at the peak; `out` is the joined output of several experts."""
        inside = self.copies * self.width - (self.width if self.width <= attention else 0)
        return inside + attention + 2 * embedding + (out if out > (self.copies - 1) * self.width else 0)


def graph_widths(facts: ModelFacts, arch: Architecture) -> GraphWidths:
    """Return the widths of `facts`, from its tensors if they are known, else from metadata."""
    embedding = int(facts.value("embedding_length", 0))
    heads = largest(facts.value("attention.head_count", 0))
    attention = _attention_width(facts, heads) if arch.has_wide_attention else 0
    extra = arch.extra_embeddings * embedding + _per_layer_embeddings(facts)
    if arch.has_late_feed_forward and _per_layer_embeddings(facts):
        extra += max(0, _feed_forwards(facts)[0].width - 2 * embedding - attention // 2)
    return GraphWidths(
        embedding=embedding,
        vocabulary=vocabulary(facts),
        body=_body(facts, embedding, attention) + extra + _deepstack(facts, embedding),
        mixer=_mixer(facts, embedding),
        attention=attention,
        heads=heads,
        query_rows=heads * head_size(facts, "key"),
        attention_off=max(
            3 * embedding + attention + _latent_off(facts, heads) + (_joined_off(facts, embedding) if attention else 0),
            _gated_off(facts),
        )
        + extra,
        parallel_mixer=_parallel_mixer(facts, embedding),
    )


def vocabulary(facts: ModelFacts) -> int:
    """Return the entries of the vocabulary; if they are unknown, more than any model has had."""
    for tensor in facts.tensors:
        if tensor.shape and tensor.name in {"token_embd.weight", "output.weight"}:
            return tensor.shape[-1]
    return facts.vocab or int(facts.value("vocab_size", 0)) or 262_144


def _attention_width(facts: ModelFacts, heads: int) -> int:
    """Return the width of the attention's output, for the widest kind of layer."""
    sizes = (head_size(facts, "value"), head_size(facts, "value", is_sliding=True))
    return heads * int(facts.value("attention.value_length_mla", 0) or max(sizes))


def _body(facts: ModelFacts, embedding: int, attention: int) -> int:
    dense, experts, shared = _feed_forwards(facts)
    used = int(facts.value("expert_used_count", 0))
    peaks = [dense.peak(embedding, attention)]
    if experts.width:
        joined = FeedForward(used * experts.width, experts.copies)
        peaks.append(joined.peak(embedding, attention, out=used * embedding))
    if shared.width:
        peaks.append(shared.copies * shared.width + 3 * embedding + attention)
    if is_mla(facts):
        peaks.append(_latent_attention(facts) + 3 * embedding)
    return max(peaks)


def _latent_attention(facts: ModelFacts) -> int:
    names = ("key_length", "value_length", "key_length_mla", "value_length_mla")
    heads = largest(facts.value("attention.head_count", 0))
    key, value, key_mla, _ = (int(facts.value(f"attention.{name}", 0)) for name in names)
    return heads * (key + value + key_mla + int(facts.value("rope.dimension_count", 0)))


def _latent_off(facts: ModelFacts, heads: int) -> int:
    """Return what latent attention keeps without flash attention (deepseek2 in its old and its compressed form)."""
    sizes = head_size(facts, "key") + head_size(facts, "value")
    if is_mla(facts):
        return heads * (sizes + int(facts.value("attention.value_length_mla")))
    return 2 * heads * sizes if facts.value("attention.kv_lora_rank") else 0


def _joined_off(facts: ModelFacts, embedding: int) -> int:
    """Return what the routed experts of the block before have put out, beside a shared expert and plain attention.

    Their joined output waits for the shared expert's (qwen2moe, ernie4_5-moe); one of them is the residual stream.
    """
    if is_mla(facts) or facts.value("attention.kv_lora_rank") or not _feed_forwards(facts)[2].width:
        return 0
    return max(0, int(facts.value("expert_used_count", 0)) - 1) * embedding


def _parallel_mixer(facts: ModelFacts, embedding: int) -> int:
    """Return what a Mamba-2 mixer keeps while attention works in the same block (falcon-h1)."""
    inner, groups = int(facts.value("ssm.inner_size", 0)), int(facts.value("ssm.group_count", 0))
    return 3 * max(inner, embedding) + 2 * groups * int(facts.value("ssm.state_size", 0)) if inner else 0


def _gated_off(facts: ModelFacts) -> int:
    """Return what gated attention of the delta-net hybrids (qwen35) keeps: query, gate and product at once."""
    return 5 * int(facts.value("ssm.inner_size", 0)) if facts.value("full_attention_interval") else 0


def _feed_forwards(facts: ModelFacts) -> tuple[FeedForward, FeedForward, FeedForward]:
    """Return the dense, the routed and the shared feed-forward; a width of 0 if the model has none."""
    rows = _rows(facts, ("ffn_up", "ffn_gate", "ffn_up_exps", "ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_shexp"))
    width = largest(facts.value("feed_forward_length", 0))
    expert = largest(facts.value("expert_feed_forward_length", 0))
    shared = largest(facts.value("expert_shared_feed_forward_length", 0))
    if not rows:
        has_experts = bool(facts.value("expert_count"))
        expert = (expert or width) if has_experts else 0
        shared = shared or expert * int(facts.value("expert_shared_count", 0))
        return FeedForward(width, 3), FeedForward(expert, 3), FeedForward(shared, 3)
    # A fused gate and up is one tensor of twice the width (phi3, glm4).
    is_fused = "ffn_gate" not in rows and rows.get("ffn_up", 0) == 2 * width > 0
    dense = FeedForward(rows.get("ffn_up", 0) // (2 if is_fused else 1), 3 if "ffn_gate" in rows or is_fused else 1)
    expert_rows = rows.get("ffn_up_exps", 0) or rows.get("ffn_gate_up_exps", 0) // 2
    is_gated = "ffn_gate_exps" in rows or "ffn_gate_up_exps" in rows
    return dense, FeedForward(expert_rows, 3 if is_gated else 1), FeedForward(rows.get("ffn_up_shexp", 0), 3)


def _rows(facts: ModelFacts, kinds: Iterable[str]) -> dict[str, int]:
    """Return the most rows of each named kind of tensor over all blocks."""
    wanted, found = frozenset(kinds), dict[str, int]()
    for tensor in facts.tensors:
        parts = tensor.name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in wanted and parts[3] == "weight":
            found[parts[2]] = max(found.get(parts[2], 0), tensor.shape[1] if len(tensor.shape) > 1 else 0)
    return found


def _mixer(facts: ModelFacts, embedding: int) -> int:
    """Return the width of a Mamba-2 mixer; 0 without one, and for gated delta nets, whose peak lies elsewhere."""
    inner, size = int(facts.value("ssm.inner_size", 0)), int(facts.value("ssm.state_size", 0))
    if not inner or facts.value("full_attention_interval"):
        return 0
    groups = int(facts.value("ssm.group_count", 0)) * size
    rank = int(facts.value("ssm.time_step_rank", 0))
    return 2 * inner + 2 * groups + rank + inner + 2 * (inner + 2 * groups) + 3 * embedding


def _per_layer_embeddings(facts: ModelFacts) -> int:
    """Return the elements of per-layer embeddings (gemma3n, gemma4 E2B/E4B): they stay alive for the whole graph."""
    return int(facts.value("embedding_length_per_layer_input", 0)) * int(facts.value("block_count", 0))


def _deepstack(facts: ModelFacts, embedding: int) -> int:
    """Return the elements of vision features that are added on the first layers (qwen3vl), beside the embedding."""
    return int(facts.value("n_deepstack_layers", 0)) * embedding
