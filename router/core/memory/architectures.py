"""Properties of model architectures that llama.cpp knows and the metadata does not state. One table, nothing else.

Keyed by `general.architecture`, never by a model's name. An architecture that is missing here gets the general rule:
every layer keeps the full context, the plain graph, and a larger safety. Sources: the architecture's file in
llama.cpp's `src/models/` (sync of 2026-08-04) for windows and caches; for the compute buffer the plans of b10434
(docs/memory.md, "Compute buffer").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the metadata leaves open. The defaults are a plain decoder: full attention, one KV cache, an LM head.

    `source` is "plans" if real plans of llama.cpp were compared, "code" if only its source was read, "none" for the
    general rule.

    Sliding windows. `period`: of each group of this many layers all but the last slide (`is_full_first`: all but the
    first). `window`: tokens, if the file names none; `is_window_fixed`: the file's figure is ignored. `needs_window`:
    it slides only if the file names a window. `sliding_blocks`: it slides only with exactly this number of blocks (0 =
    any).

    Caches. `has_cache` False: no KV cache at all. `kv_layers`: how many layers, from the first, own a KV cache (0 =
    all). `has_own_nextn_cache`: blocks for multi-token prediction get a KV cache even when unused. `is_calibrated`
    False: it keeps extra caches that are not modelled.

    Output. `has_lm_head`: it predicts tokens. `copies_embedding`: without an `output.weight` the token embedding is
    copied to the GPU as output.

    Compute buffer. `has_wide_attention`: the attention's output is alive together with the feed-forward (`attention` in
    `graph.py`); `extra_embeddings`: further vectors of `embedding_length` alive at the peak; `has_late_feed_forward`:
    with per-layer embeddings the feed-forward is still alive when they are added.
    """

    source: Literal["plans", "code", "none"] = "code"
    period: int = 0
    window: int = 0
    is_window_fixed: bool = False
    is_full_first: bool = False
    needs_window: bool = True
    sliding_blocks: int = 0
    has_cache: bool = True
    has_lm_head: bool = True
    copies_embedding: bool = True
    has_own_nextn_cache: bool = True
    kv_layers: int = 0
    is_calibrated: bool = True
    has_wide_attention: bool = True
    extra_embeddings: int = 0
    has_late_feed_forward: bool = False


_PLANS = Architecture("plans")
_CODE = Architecture("code")
_ENCODER = Architecture("plans", has_cache=False, has_lm_head=False, copies_embedding=False, has_wide_attention=False)
_READ_ENCODER = Architecture(
    "code", has_cache=False, has_lm_head=False, copies_embedding=False, has_wide_attention=False
)
_HYBRID = Architecture("plans", has_wide_attention=False)
_READ_HYBRID = Architecture("code", has_wide_attention=False)
_EXTRA_CACHES = Architecture("code", has_own_nextn_cache=False, is_calibrated=False)
_GPT_OSS = Architecture("plans", period=2, window=128, needs_window=False)
_GEMMA4 = Architecture("plans", needs_window=False, has_late_feed_forward=True)  # its pattern is always in the file

TABLE: dict[str, Architecture] = {
    **dict.fromkeys(
        (
            "llama", "mistral3", "qwen2", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "granite",
            "command-r", "olmoe", "deepseek2",
        ),
        _PLANS,
    ),
    **dict.fromkeys(
        (
            "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chatglm",
            "codeshell", "dbrx", "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "gemma",
            "glm4", "glm4moe", "gpt2", "gptj", "gptneox", "granitemoe", "grok", "grovemoe", "hunyuan-dense",
            "hunyuan-moe", "internlm2", "jais", "llada", "maincoder", "minicpm", "minicpm3", "minimax-m2", "mistral4",
            "mpt", "nemotron", "olmo", "openelm", "orion", "paddleocr", "pangu-embedded", "phimoe", "plamo", "plm",
            "qwen", "qwen2moe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2", "xverse",
        ),
        _CODE,
    ),
    # Sliding windows.
    "afmoe": Architecture(period=4),
    "cohere2": Architecture("plans", period=4, extra_embeddings=1),
    "cohere2moe": Architecture(period=4, is_full_first=True),
    "exaone-moe": Architecture(period=4, window=128, needs_window=False),
    "exaone4": Architecture("plans", period=4, window=4096, needs_window=False, sliding_blocks=64),
    "gemma2": Architecture("plans", period=2, window=4096, needs_window=False),
    "gemma3": Architecture("plans", period=6),
    "gemma3n": Architecture("plans", period=5, kv_layers=20, extra_embeddings=6),
    "gemma4": _GEMMA4,
    "gpt-oss": _GPT_OSS,
    "gptoss": _GPT_OSS,  # the name in files that Ollama itself made
    "laguna": Architecture(period=4, is_full_first=True),
    "llama4": Architecture("plans", period=4, window=8192, is_window_fixed=True, needs_window=False),
    "mellum": Architecture(period=4),
    "mimo2": Architecture(has_own_nextn_cache=False),
    "olmo2": Architecture("plans", period=4),
    "phi3": Architecture("plans", period=1, has_wide_attention=False),  # its window is switched off in llama.cpp
    "plamo3": Architecture(period=8),
    "smallthinker": Architecture(period=4, window=4096, is_window_fixed=True, is_full_first=True),
    "step35": Architecture(has_own_nextn_cache=False),
    # Small differences of the graph.
    "phi2": Architecture("plans", extra_embeddings=1),
    # No cache at all: encoders and models for embedding.
    "bert": _ENCODER,
    "nomic-bert": _ENCODER,
    **dict.fromkeys(("nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "eurobert"), _READ_ENCODER),
    "modern-bert": Architecture(period=3, is_full_first=True, has_cache=False, has_lm_head=False,
                                copies_embedding=False, has_wide_attention=False),
    "gemma-embedding": Architecture("plans", period=6, has_cache=False, has_lm_head=False),
    # Hybrids and recurrent models. Which of their layers attend is read from the tensors.
    **dict.fromkeys(("mamba2", "granitehybrid", "nemotron_h", "lfm2", "qwen35"), _HYBRID),
    **dict.fromkeys(("mamba", "jamba", "lfm2moe", "plamo2"), _READ_HYBRID),
    **dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "kimi-linear"),
                    Architecture(has_wide_attention=False, is_calibrated=False)),
    "falcon-h1": _PLANS,
    **dict.fromkeys(("qwen3next", "qwen35moe", "nemotron_h_moe"),
                    Architecture("plans", has_wide_attention=False, extra_embeddings=1)),
    # Indexer or compressed caches beside the KV cache, not modelled: the first load is measured.
    **dict.fromkeys(("deepseek32", "glm-dsa", "deepseek4", "minimax-m3", "kimi-k3", "bailingmoe3", "minimax-01"),
                    _EXTRA_CACHES),
}  # fmt: skip

UNKNOWN = Architecture("none", is_calibrated=False)


def architecture(name: str) -> Architecture:
    """Return the row of `name`, or the general rule."""
    return TABLE.get(name, UNKNOWN)
