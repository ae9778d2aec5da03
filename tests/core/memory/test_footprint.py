"""The footprint against recorded plans of the real llama.cpp, and its bounds if metadata is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_simulator.recorded.plans import Recordings, facts_of, options_of
from router.core.memory.footprint import MemoryOptions, footprint, is_embedding, safety_bytes_of
from router.core.memory.shape import shape_of
from router.core.memory.weights import Weights, row_bytes, tensor_bytes
from router.core.ollama.model import ModelFacts, Tensor
from router.core.units import MIB

RECORDED = Recordings(Path(__file__).parents[2] / "data" / "fit")


def recorded(model: str, quant: str = "Q4_K_M") -> ModelFacts:
    """Return the facts of one recorded model."""
    return RECORDED.facts[model, quant]


def without(facts: ModelFacts, **changes: Any) -> ModelFacts:
    """Return the same facts with metadata keys (after the architecture) changed; None removes one."""
    info = {**facts.info, **{f"{facts.arch}.{key}": value for key, value in changes.items()}}
    return replace(facts, info={key: value for key, value in info.items() if value is not None})


def as_architecture(facts: ModelFacts, arch: str) -> ModelFacts:
    """Return the same model under another `general.architecture`."""
    info = {key.replace(facts.arch, arch, 1): value for key, value in facts.info.items()}
    return replace(facts, info={**info, "general.architecture": arch})


def test_weights_and_caches_are_exact_in_every_recorded_plan() -> None:
    """Recorded MiB are rounded down, so the computed figure lies within the MiB above."""
    for row in RECORDED.memory:
        known = footprint(recorded(row["model"], row["quant"]), options_of(row), backend="plain")
        assert -1 <= known.weights_bytes / MIB - float(row["model_mib"]) <= 1, row
        assert -1 <= (known.kv_bytes + known.state_bytes) / MIB - float(row["context_mib"]) <= 1, row


def test_compute_buffer_is_within_a_tenth_or_64_mib_of_every_recorded_plan() -> None:
    """Flash attention on and off, quantised caches and embedding runs included."""
    for row in RECORDED.memory:
        known = footprint(recorded(row["model"], row["quant"]), options_of(row), backend="plain")
        expected = float(row["compute_mib"])
        assert abs(known.compute_bytes / MIB - expected) <= max(64, 0.1 * expected), row


def test_every_recorded_architecture_is_exact_and_has_no_notes() -> None:
    """Notes are for what is not known."""
    for facts in RECORDED.facts.values():
        known = footprint(facts, MemoryOptions(4096))
        assert (known.exactness, known.notes) == ("exact", ())


def test_an_unknown_architecture_gets_the_general_rule_and_a_wider_safety() -> None:
    """It is never less than with the table, and a note gives the reason."""
    facts = recorded("gemma3-4b")
    renamed = as_architecture(facts, "newarch")
    known, unknown = footprint(facts, MemoryOptions(32768)), footprint(renamed, MemoryOptions(32768))
    assert unknown.exactness == "general"
    assert "newarch is not in the table" in unknown.notes[0]
    assert unknown.kv_bytes > known.kv_bytes
    assert unknown.safety_bytes >= 512 * MIB


def test_an_architecture_with_unmodelled_caches_has_a_note() -> None:
    """It is in the table, but its figures are a floor for the first load."""
    facts = ModelFacts("x", "d", 1, info={"general.architecture": "glm-dsa", "glm-dsa.block_count": 1,
                                          "glm-dsa.embedding_length": 64},
                       tensors=(Tensor("blk.0.attn_k.weight", "F16", (64, 64)),))  # fmt: skip
    known = footprint(facts, MemoryOptions(4096))
    assert known.exactness == "general"
    assert "not modelled" in known.notes[0]


def test_layers_with_unknown_tensor_names_are_taken_to_attend() -> None:
    """In an unknown architecture only layers known to be recurrent keep no KV."""
    names = ("blk.0.ssm_in.weight", "blk.1.attn_k.weight", "blk.2.mystery.weight")
    tensors = tuple(Tensor(name, "F16", (64, 64)) for name in names)
    facts = replace(decoder("novel", blocks=3), tensors=tensors)
    assert [layer.k_width > 0 for layer in shape_of(facts).layers] == [False, True, True]
    known = replace(decoder("nemotron_h", blocks=3), tensors=tensors)
    assert [layer.k_width > 0 for layer in shape_of(known).layers] == [False, True, False]


@pytest.mark.parametrize("model", ["llama3.1-8b", "gemma3-4b", "granite4-h-tiny", "qwen3.5-4b", "deepseek-v2-lite-mla"])
def test_without_tensors_the_footprint_is_never_optimistic(model: str) -> None:
    """The weights are the whole download, and a note reports it."""
    facts = recorded(model)
    known, coarse = footprint(facts, MemoryOptions(8192)), footprint(replace(facts, tensors=()), MemoryOptions(8192))
    assert coarse.exactness == "coarse"
    assert "no tensors" in coarse.notes[0]
    assert coarse.need_bytes >= known.need_bytes


@pytest.mark.parametrize("model", ["llama2-13b", "qwen2.5-72b", "command-r-35b", "gemma3-1b", "tinyllama-1.1b"])
def test_without_any_metadata_the_footprint_is_never_optimistic(model: str) -> None:
    """Only the size of the download and the parameter count are left."""
    facts = recorded(model)
    bare = ModelFacts("x", "d", facts.size_bytes, parameter_size=f"{facts.parameter_count / 1e9:.1f}B")
    known, coarse = footprint(facts, MemoryOptions(8192)), footprint(bare, MemoryOptions(8192))
    assert coarse.exactness == "coarse"
    assert "no metadata" in coarse.notes[0]
    assert coarse.need_bytes >= known.need_bytes
    assert footprint(ModelFacts("x", "d", facts.size_bytes), MemoryOptions(8192)).need_bytes >= known.need_bytes


def test_arrays_that_the_server_left_out_are_read_from_the_tensors() -> None:
    """Without verbose every array is null; the key tensors still give the heads of each layer."""
    facts = recorded("granite4-h-tiny")
    assert footprint(without(facts, **{"attention.head_count_kv": None}), MemoryOptions(8192)).kv_bytes == (
        footprint(facts, MemoryOptions(8192)).kv_bytes
    )


@pytest.mark.parametrize(
    ("changes", "attending"),
    [
        ({"attention.recurrent_layers": [True, True, False, True]}, 1),
        ({"full_attention_interval": 2}, 2),
        ({"attention.head_count_kv": [0, 2, 0, 2]}, 2),
        ({"attention.head_count_kv": 0}, 0),
        ({}, 4),
    ],
)
def test_without_tensors_metadata_decides_which_layers_attend(changes: dict[str, Any], attending: int) -> None:
    """Recurrent layers, an interval, or heads of zero; without any of them all layers attend."""
    facts = ModelFacts("x", "d", 1 << 30, info={
        "general.architecture": "jamba", "jamba.block_count": 4, "jamba.embedding_length": 64,
        "jamba.attention.head_count": 4, "jamba.attention.head_count_kv": 2, "jamba.ssm.inner_size": 128,
        "jamba.ssm.state_size": 16, "jamba.ssm.conv_kernel": 4,
    })  # fmt: skip
    layers = shape_of(without(facts, **changes)).layers
    assert sum(layer.k_width > 0 for layer in layers) == attending
    assert sum(layer.state_bytes > 0 for layer in layers) >= 4 - attending


def decoder(arch: str, blocks: int = 8, **values: Any) -> ModelFacts:
    """Return a small decoder of any architecture, metadata only."""
    info = {
        "block_count": blocks,
        "embedding_length": 64,
        "attention.head_count": 4,
        "feed_forward_length": 128,
        **values,
    }
    return ModelFacts(
        "x", "d", 1 << 20, info={"general.architecture": arch, **{f"{arch}.{k}": v for k, v in info.items()}}
    )


PATTERN = {"attention.sliding_window": 512, "attention.sliding_window_pattern": [1, 0]}


@pytest.mark.parametrize(
    ("facts", "sliding"),
    [
        (decoder("gemma2"), "10101010"),
        (decoder("gemma3", **{"attention.sliding_window": 512}), "11111011"),
        (decoder("gemma3"), "00000000"),
        (decoder("gemma3", **{"attention.sliding_window": 0}), "00000000"),
        (decoder("gpt-oss", **{"attention.sliding_window_pattern": 4}), "11101110"),
        (decoder("gemma4", **PATTERN), "10101010"),
        (decoder("gemma4", **{"attention.sliding_window": 512}), "00000000"),
        (decoder("smallthinker", **{"attention.sliding_window": 4096}), "01110111"),
        (decoder("exaone4", **{"attention.sliding_window": 4096}), "00000000"),
        (decoder("exaone4", blocks=64), "11101110"),
        (decoder("phi3", **{"attention.sliding_window": 2048}), "00000000"),
        (decoder("somethingnew", **PATTERN), "00000000"),
    ],
)  # fmt: skip
def test_the_files_pattern_then_the_architectures_decides_which_layers_slide(facts: ModelFacts, sliding: str) -> None:
    """Without a window, or in doubt, every layer is full."""
    assert "".join(str(int(layer.is_sliding)) for layer in shape_of(facts).layers).startswith(sliding)


def test_a_fixed_window_ignores_the_file() -> None:
    """llama4 attends in chunks of 8192 whatever the file states, except 0."""
    assert shape_of(decoder("llama4", **{"attention.sliding_window": 77})).window == 8192
    assert shape_of(decoder("llama4", **{"attention.sliding_window": 0})).window == 0


def test_a_sliding_layer_keeps_window_and_batch_per_slot() -> None:
    """Padded to 256, never more than the context."""
    options = MemoryOptions(num_ctx=8192, num_batch=512, num_parallel=4)
    assert options.sliding_cells(1024) == 1536
    assert MemoryOptions(num_ctx=1000).sliding_cells(4096) == 1024
    assert MemoryOptions(num_ctx=1500, num_parallel=4).cells == 1536
    assert MemoryOptions(num_ctx=256, num_batch=2048, num_parallel=2).ubatch == 512


def test_sliding_layers_may_have_heads_of_another_size() -> None:
    """gemma4: the layers that slide have smaller heads than those that do not."""
    sizes = {"attention.key_length": 512, "attention.key_length_swa": 256, "attention.head_count_kv": 2}
    layers = shape_of(decoder("gemma4", **PATTERN, **sizes)).layers
    assert [layer.k_width for layer in layers[:2]] == [512, 1024]


def test_layers_that_share_a_cache_own_none() -> None:
    """gemma4 states how many share; gemma3n owns the first twenty."""
    facts = decoder("gemma4", **{"attention.shared_kv_layers": 3})
    assert [layer.k_width > 0 for layer in shape_of(facts).layers] == [True] * 5 + [False] * 3
    owners = [layer.k_width > 0 for layer in shape_of(decoder("gemma3n", blocks=30)).layers]
    assert owners == [True] * 20 + [False] * 10


def test_blocks_for_multi_token_prediction_have_a_cache_but_no_weights() -> None:
    """Their tensors are skipped at load; a few architectures skip the cache too."""
    tensors = tuple(Tensor(f"blk.{il}.attn_k.weight", "F16", (64, 64)) for il in range(8))
    facts = replace(decoder("glm4moe", nextn_predict_layers=1), tensors=tensors)
    assert len(shape_of(facts).weights.block_bytes) == 7
    assert sum(layer.k_width > 0 for layer in shape_of(facts).layers) == 8
    step = replace(decoder("step35", nextn_predict_layers=1), tensors=tensors)
    assert sum(layer.k_width > 0 for layer in shape_of(step).layers) == 7


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"wkv.head_size": 16, "token_shift_count": 2}, 4 * 64 * 18),
        ({"shortconv.l_cache": 3}, 4 * 64 * 2),
        ({"kda.head_dim": 16, "ssm.conv_kernel": 4}, 4 * 4 * 16 * (9 + 16)),
        (
            {"ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 1, "ssm.conv_kernel": 4},
            4 * (3 * 160 + 2048),
        ),
    ],
)
def test_each_kind_of_recurrent_layer_has_its_own_state(values: dict[str, int], state: int) -> None:
    """RWKV, short convolutions, delta attention and Mamba."""
    assert shape_of(decoder("mamba", **values)).layers[0].state_bytes == state


def test_fallback_widths_without_heads_are_zero() -> None:
    """A model without heads has no KV cache to size."""
    facts = decoder("mamba", **{"attention.head_count": 0, "ssm.inner_size": 128, "ssm.state_size": 16})
    assert footprint(facts, MemoryOptions(4096)).kv_bytes == 0
    assert shape_of(decoder("llama", **{"attention.head_count": "?"})).layers[0].k_width == 0
    assert shape_of(decoder("llama", **{"attention.head_count_kv": [2]})).layers[7].k_width == 4 * 16


def test_tensor_sizes_follow_ggml_blocks() -> None:
    """Blocks of 32 or 256; an unknown type counts as F32 and is named."""
    assert tensor_bytes(Tensor("x", "Q4_K", (256, 10))) == 1440
    assert tensor_bytes(Tensor("x", "Z9", (10,))) == 40
    assert row_bytes("q8_0", 128) == 136
    assert row_bytes("nonsense", 2) == 8
    facts = replace(decoder("llama"), tensors=(Tensor("blk.0.attn_k.weight", "Z9", (64, 64)),))
    assert footprint(facts, MemoryOptions(4096)).notes == ("unknown tensor types counted as F32: Z9",)


def test_weights_are_sorted_by_where_they_go() -> None:
    """A missing output copies the embedding; inputs stay on the host; a tower inside the file is its own."""
    tensors = (
        Tensor("token_embd.weight", "F16", (10, 100)), Tensor("per_layer_token_embd.weight", "F16", (10, 10)),
        Tensor("v.blk.0.ln1.weight", "F32", (5,)), Tensor("output_norm.weight", "F32", (10,)),
        Tensor("blk.0.ffn_up.weight", "F16", (10, 4)),
    )  # fmt: skip
    tied = Weights.of(tensors, blocks=1, copies_embedding=True)
    assert (tied.block_bytes, tied.output_bytes, tied.host_bytes, tied.tower_bytes) == ((80,), 2040, 2200, 20)
    assert tied.device_bytes == 2120
    own = Weights.of((*tensors, Tensor("output.weight", "F16", (10, 100))), blocks=1, copies_embedding=True)
    assert own.output_bytes == 2040
    assert Weights.of(tensors, blocks=1, copies_embedding=False).output_bytes == 40


def test_several_cards_take_four_copies_of_the_inputs() -> None:
    """Masks and embedding are there four times once a split model is pipelined."""
    facts = recorded("llama3.1-8b")
    one, four = (footprint(facts, MemoryOptions(8192), copies=copies).compute_bytes for copies in (1, 4))
    inputs = 8192 * 512 * 2
    assert four - one == 3 * inputs + 4 * 512 * 4 * 4096


def test_per_layer_embeddings_widen_the_graph() -> None:
    """gemma3n and gemma4 keep them alive; gemma4's feed-forward too, as far as it is wider than the rest."""
    wide = {"feed_forward_length": 1024, "attention.sliding_window": 512}
    plain = decoder("gemma4", **wide)
    layered = decoder("gemma4", **wide, embedding_length_per_layer_input=16)
    more = footprint(layered, MemoryOptions(4096)).compute_bytes - footprint(plain, MemoryOptions(4096)).compute_bytes
    assert more == 4 * 512 * (16 * 8 + 1024 - 2 * 64 - 64 // 2)


def test_cuda_widens_a_quantized_cache_and_others_do_not() -> None:
    """CUDA's kernels make f16 of one layer's whole cache."""
    facts, options = recorded("qwen2.5-14b"), MemoryOptions(32768, kv_type="q8_0")
    cuda, vulkan = (footprint(facts, options, backend=backend).compute_bytes for backend in ("cuda", "vulkan"))
    assert cuda > vulkan


def test_embedding_runs_are_recognised_by_capabilities() -> None:
    """A model that cannot complete is started for embedding."""
    facts = recorded("llama3.2-1b", "Q8_0")
    embeds = replace(facts, capabilities=frozenset({"embedding"}))
    assert is_embedding(embeds, MemoryOptions(512))
    assert not is_embedding(facts, MemoryOptions(512))
    assert is_embedding(facts, MemoryOptions(512, is_embedding=True))


def test_safety_grows_with_uncertainty() -> None:
    """Compared with plans, read from source, neither."""
    known, read, new = (replace(decoder(arch), tensors=recorded("llama3.2-1b", "Q8_0").tensors)
                        for arch in ("llama", "olmo", "novel"))  # fmt: skip
    assert [safety_bytes_of(facts, 0) // MIB for facts in (known, read, new)] == [128, 160, 512]
    assert safety_bytes_of(known, 100 << 30) == 1 << 30


VISION = {"clip.vision.image_size": 896, "clip.vision.patch_size": 14, "clip.vision.feed_forward_length": 4304,
          "clip.vision.embedding_length": 1152, "clip.vision.image_mean": [0.5]}  # fmt: skip


def test_projector_in_its_own_blob_is_the_rest_of_the_download() -> None:
    """Tensors beyond the text model's, plus the worst image; more where the tower's metadata is missing."""
    text = recorded("gemma3-4b")
    file_bytes = shape_of(text).weights.file_bytes
    vision = replace(text, size_bytes=file_bytes + 812 * MIB, projector=VISION)
    known = footprint(vision, MemoryOptions(8192)).projector_bytes
    assert 951 * MIB <= known <= 970 * MIB
    unknown = footprint(
        replace(vision, projector={"general.architecture": "clip"}), MemoryOptions(8192)
    ).projector_bytes
    assert unknown == int(812 * MIB * 1.25) + 64 * MIB
    assert footprint(text, MemoryOptions(8192)).projector_bytes == 0
    assert footprint(vision, MemoryOptions(8192, has_projector=False)).projector_bytes == 0


def test_projector_inside_the_file_is_sized_by_its_tensors() -> None:
    """Ollama's own files carry the tower with the text."""
    text = recorded("gemma3-4b")
    tower = {key.replace("clip", "gemma3"): value for key, value in VISION.items()}
    tensors = (*text.tensors, Tensor("v.patch_embd.weight", "F16", (1024, 1024)))
    inline = replace(text, tensors=tensors, info={**text.info, **tower})
    assert footprint(inline, MemoryOptions(8192)).projector_bytes == 2 * MIB + 4096 * 4 * (4304 + 5 * 1152)
    assert footprint(inline, MemoryOptions(8192)).weights_bytes == footprint(text, MemoryOptions(8192)).weights_bytes


def test_facts_of_a_recording_look_like_those_of_a_server() -> None:
    """The loader of the recordings gives names, sizes and arrays."""
    facts = facts_of(RECORDED._models()["gemma3n-e2b"], "Q4_K_M")
    assert facts.arch == "gemma3n"
    assert len(facts.value("attention.sliding_window_pattern")) == 30


def test_without_flash_attention_routed_experts_wait_beside_a_shared_one() -> None:
    """All their outputs but one are alive beside the KQ matrix; with flash attention they are not at that peak."""
    experts = {"expert_count": 8, "expert_used_count": 4, "expert_feed_forward_length": 64}
    alone = decoder("qwen2moe", **experts)
    shared = decoder("qwen2moe", **experts, expert_shared_feed_forward_length=64)
    options = MemoryOptions(8192, flash_attention=False)
    added = footprint(shared, options).compute_bytes - footprint(alone, options).compute_bytes
    assert added == options.ubatch * 4 * 3 * int(shared.value("embedding_length"))
    latent = decoder("deepseek2", **experts, expert_shared_feed_forward_length=64, **{"attention.kv_lora_rank": 64})
    bare = decoder("deepseek2", **experts, **{"attention.kv_lora_rank": 64})
    assert footprint(latent, options).compute_bytes == footprint(bare, options).compute_bytes


def test_a_quantized_cache_is_read_while_a_mixer_of_the_same_block_works() -> None:
    """falcon-h1 has both in one block; where they are in different blocks, each peak stands alone."""
    state = {"ssm.inner_size": 1024, "ssm.state_size": 64, "ssm.group_count": 1, "ssm.conv_kernel": 4}
    heads = {"attention.head_count_kv": 4, "attention.key_length": 128, "attention.value_length": 128}
    mixer = Tensor("blk.0.ssm_in.weight", "F16", (512, 2048))
    attention = Tensor("blk.0.attn_k.weight", "F16", (512, 256))
    elsewhere = Tensor("blk.1.attn_k.weight", "F16", (512, 256))
    facts = decoder("falcon-h1", blocks=2, **state, **heads)
    together = replace(facts, tensors=(mixer, attention))
    apart = replace(facts, tensors=(mixer, elsewhere))
    options = MemoryOptions(65536, num_batch=512, kv_type="q8_0")
    added = footprint(together, options).compute_bytes - footprint(apart, options).compute_bytes
    assert added == options.ubatch * 4 * (3 * 1024 + 2 * 64)
