"""Metadata that cannot be true costs its own model the exact size, and nothing else."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import router.core
from ollama_simulator.models.library import known_tags, real_library
from router.core.memory.footprint import footprint
from router.core.memory.options import MemoryOptions
from router.core.memory.shape import shape_of
from router.core.ollama.figures import MAX_BLOCKS, PER_LAYER, SCALARS, ImplausibleFigure, check_metadata, check_vision
from router.core.ollama.model import ModelFacts
from router.core.units import GIB

ROW = {"name": "m:latest", "digest": "d", "size": 4 * GIB, "details": {"family": "llama", "parameter_size": "8.0B"}}
INFO = {
    "general.architecture": "llama",
    "general.parameter_count": 8_000_000_000,
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.context_length": 131072,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
TENSORS = [{"name": "token_embd.weight", "type": "Q4_K", "shape": [4096, 128256]}]
SHOW = {
    "modelfile": f"FROM /blobs/sha256-{'a' * 64}",
    "capabilities": ["completion", "tools"],
    "model_info": INFO,
    "tensors": TENSORS,
    "parameters": "num_ctx 8192",
}
OPTIONS = MemoryOptions(num_ctx=8192)


def shown(info=None, **more):
    return ModelFacts.of_show(ROW, SHOW | {"model_info": INFO | (info or {})} | more)


def is_served_coarsely(facts):
    """It still has its weights, its capabilities and its parameters, and is sized by its download."""
    assert (facts.weights, facts.capabilities) == (f"sha256-{'a' * 64}", {"completion", "tools"})
    assert (facts.tensors, facts.info, facts.size_bytes) == ((), {}, 4 * GIB)
    need = footprint(facts, OPTIONS)
    assert need.exactness == "coarse"
    assert 4 * GIB < need.need_bytes < 12 * GIB
    return facts.doubt in need.notes[0]


def test_sound_metadata_is_used():
    """The other tests differ from it in one figure."""
    assert (shown().doubt, shape_of(shown()).exactness) == ("", "exact")


@pytest.mark.parametrize("arch", [None, ""])
def test_figures_without_the_name_of_an_architecture_are_checked_too(arch):
    """Their keys begin with a dot, and so do those that the formulas read."""
    facts = ModelFacts.of_show(ROW, SHOW | {"model_info": {"general.architecture": arch, ".block_count": 10_000_000}})
    assert facts.doubt == ".block_count is 10000000"
    assert is_served_coarsely(facts)


@pytest.mark.parametrize(
    "value",
    [10_000_000, MAX_BLOCKS + 1, -1, 10**400, "32", True and [32], {"n": 32}, 1e300, float("nan"), float("inf")],
)
def test_a_block_count_that_no_model_has_is_not_used(value):
    """Ten million blocks took minutes and gigabytes, in the loop."""
    facts = shown({"llama.block_count": value})
    assert facts.doubt.startswith("llama.block_count is ")
    assert is_served_coarsely(facts)


@pytest.mark.parametrize(
    "value", [-5, 1 << 50, "many", [[8]], [8, None], [8] * (MAX_BLOCKS + 1), {"a": 1}, float("inf")]
)
@pytest.mark.parametrize("key", ["attention.head_count_kv", "attention.head_count", "feed_forward_length"])
def test_a_list_with_an_entry_per_layer_is_checked_by_entry(key, value):
    """As the numbers are."""
    assert is_served_coarsely(shown({f"llama.{key}": value}))


@pytest.mark.parametrize("shape", [["wide", 4], "4096", [4096, -1], [1] * 9, [[4096]], [1 << 60], {"a": 1}, 5, [1e999]])
def test_a_tensor_with_an_impossible_shape_is_not_used(shape):
    """A word in one ended the process at start."""
    assert is_served_coarsely(shown(tensors=[*TENSORS, {"name": "x", "type": "F16", "shape": shape}]))


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": 5, "type": "F16"},
        {"name": "x", "type": ["F16"], "shape": [1]},
        {"name": "blk." * 200_000, "type": "F16", "shape": [1]},
        {"name": "x", "type": "F" * 1000, "shape": [1]},
    ],
)
def test_a_tensor_without_a_proper_name_or_type_is_not_used(tensor):
    """It cannot be placed; one of a megabyte held the loop when it was taken apart."""
    assert is_served_coarsely(shown(tensors=[tensor]))


@pytest.mark.parametrize("key", ["clip.vision.image_size", "clip.vision.patch_size"])
@pytest.mark.parametrize("value", [-1, 1 << 40, float("nan")])
def test_a_vision_tower_is_checked_wherever_it_is_described(key, value):
    """In the file itself, or in the metadata of its own blob."""
    assert is_served_coarsely(shown({key: value}))
    assert is_served_coarsely(shown(projector_info={key: value}))


@pytest.mark.parametrize("size", [None, "4 GB", -1, float("nan"), float("inf"), 10**400, [4], {}])
def test_a_size_that_is_not_a_number_of_bytes_does_no_harm(size):
    """It is unknown, or larger than any card."""
    facts = ModelFacts.of_show(ROW | {"size": size}, SHOW | {"tensors": []})
    assert 0 <= facts.size_bytes <= 1 << 60
    assert footprint(facts, OPTIONS).need_bytes > 0


@pytest.mark.parametrize("value", ["many", "1.5", "[[[[", "1e999", "99999999999999", '"8192"', "true", "[" * 100_000])
def test_an_option_in_the_modelfile_that_is_no_number_is_left_out(value):
    """Ollama accepts none of these at the creation of a model."""
    for name in ("num_ctx", "num_batch", "num_gpu", "num_thread"):
        assert shown(parameters=f"{name} {value}\ntemperature 0.5").parameters == {"temperature": 0.5}


def test_every_figure_that_a_formula_uses_is_checked():
    """A new key in a formula needs a bound."""
    sources = Path(router.core.__file__).parent.rglob("*.py")
    used = {key for path in sources for key in re.findall(r'\.value\(\s*"([a-z_.0-9]+)"', path.read_text())}
    assert len(used) > 20
    assert used <= SCALARS.keys() | PER_LAYER.keys()


def test_no_real_model_is_doubted():
    """The bounds are far beyond all that were recorded."""
    for model in real_library(known_tags()).newest_first():
        check_metadata(model.weights.info)
        check_vision(model.weights.info)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -1, 0, 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = [f"llama.{key}" for key in (*SCALARS, *PER_LAYER)] + [*INFO, "clip.vision.image_size", "tokenizer.ggml.tokens"]


@given(
    info=st.dictionaries(st.sampled_from(KEYS), ODD, max_size=6),
    arch=st.sampled_from(["llama", "gemma3", "qwen3next", "mamba2", "deepseek2", "bert", "gpt-oss", "rwkv7", "new"]),
    parts=st.dictionaries(st.sampled_from([*SHOW, "projector_info", "details", "remote_host"]), ODD, max_size=3),
    row=st.dictionaries(st.sampled_from([*ROW, "model", "capabilities", "remote_model"]), ODD, max_size=3),
    tensor=ODD,
)
def test_whatever_ollama_says_of_a_model_it_has_a_footprint(info, arch, parts, row, tensor):
    """Nothing raises, and nothing takes long."""
    said = {key.replace("llama.", f"{arch}."): value for key, value in (INFO | info).items()}
    said["general.architecture"] = arch
    show = (
        SHOW | {"model_info": said, "tensors": [*TENSORS, {"name": "blk.0.x", "type": "F16", "shape": tensor}]} | parts
    )
    facts = ModelFacts.of_show(ROW | row, show)
    assert footprint(facts, OPTIONS).need_bytes >= 0
    assert facts.context_length >= 0
    assert facts.parameter_count >= 0


@pytest.mark.parametrize("arch", [5, ["llama"], "x" * 1000], ids=["a number", "a list", "far too long"])
def test_an_architecture_that_is_no_name_is_doubted(arch):
    """All other keys begin with it."""
    with pytest.raises(ImplausibleFigure, match=r"general\.architecture is not a name"):
        check_metadata({"general.architecture": arch})


def test_a_figure_of_a_vision_tower_that_is_no_number_is_doubted_though_it_is_not_used():
    """Sums of it would be none either."""
    with pytest.raises(ImplausibleFigure, match=r"clip\.vision\.other"):
        check_vision({"clip.vision.other": float("nan")})
