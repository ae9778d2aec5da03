"""Model facts for tests of the decision: plain llama-shaped metadata, sized by their layers."""

from typing import Any

from router.core.decision.chain import Chain, Variant
from router.core.decision.snapshot import Resident
from router.core.ollama.model import ModelFacts, Tensor
from router.core.ollama.names import key_of
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import GIB, MIB


def facts_of(name, gib=4.0, *, context_length=131072, capabilities=("completion",), family="llama", **info):
    """Return a model whose tensors take `gib` on the GPU, with a KV cache of 64 KiB per token (f16)."""
    blocks, width = 16, 2048
    rows = int(gib * GIB / blocks / 2 / width)
    tensors = [Tensor("token_embd.weight", "F16", (width, 32000)), Tensor("output.weight", "F16", (width, 64))]
    tensors += [Tensor(f"blk.{i}.ffn_up.weight", "F16", (width, rows)) for i in range(blocks)]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": blocks,
        "llama.embedding_length": width,
        "llama.feed_forward_length": 4096,
        "llama.attention.head_count": 16,
        "llama.attention.head_count_kv": 8,
        "llama.attention.key_length": 128,
        "llama.attention.value_length": 128,
        "llama.context_length": context_length,
        "llama.vocab_size": 32000,
        **info,
    }
    return ModelFacts(
        name=name,
        digest="d-" + name,
        size_bytes=int(gib * GIB) + 131_000_000,
        family=family,
        parameter_size=f"{gib:.0f}B",
        capabilities=frozenset(capabilities),
        weights="sha256-" + name,
        info=metadata,
        tensors=tuple(tensors),
    )


def bare_model(name: str, billions: float, gigabytes: float, **changes: Any) -> ModelFacts:
    """Return a model with this many billions of parameters in a blob of this many GB, without metadata or tensors."""
    facts: dict[str, Any] = {
        "name": name,
        "digest": name,
        "size_bytes": int(gigabytes * 1e9),
        "family": "llama",
        "parameter_size": f"{billions}B",
        "capabilities": frozenset({"completion", "tools"}),
        "weights": f"sha256-{name}",
    }
    return ModelFacts(**{**facts, **changes})


def catalog_of(*all_facts):
    """Return a catalog like the world's: by canonical name."""
    return {key_of(facts.name): facts for facts in all_facts}


def chain_of(*names):
    """Return a chain whose first variant is what clients ask for."""
    return Chain(names[0], tuple(Variant(name) for name in names))


def gpu_of(index=0, total_gib=24.0, free_gib=None, context_mib=264):
    """Return a card; `free_gib` None = all of it is free."""
    free = total_gib if free_gib is None else free_gib
    return Gpu(index, f"GPU-{index}", "card", int(total_gib * GIB), int(free * GIB), context_mib * MIB, "8.6")


def resident_of(facts, *, held_gib=None, card=0, num_ctx=32768, order=1, free_at_load_gib=24.0, **more):
    """Return `facts` as loaded by the router on one card."""
    size = facts.size_bytes
    held_bytes = int(held_gib * GIB) if held_gib is not None else size + GIB
    values = {
        "name": facts.name,
        "weights": facts.weights,
        "size_bytes": size,
        "size_vram_bytes": size,
        "context_length": num_ctx,
        "held_bytes": {card: held_bytes},
        "free_at_load_bytes": {card: int(free_at_load_gib * GIB)},
        "options": LoadOptions(num_ctx=num_ctx, num_batch=512),
        "order": order,
    }
    return Resident(**(values | more))
