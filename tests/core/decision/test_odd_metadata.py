"""Whatever a model's metadata says, a decision about it comes back, and soon."""

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.decision.policy import choose
from router.core.decision.snapshot import Snapshot
from router.core.decision.verdict import Decision, Rules
from router.core.ollama.figures import MAX_BLOCKS, PER_LAYER, SCALARS
from router.core.ollama.model import ModelFacts
from router.core.payload.read import InferenceRequest
from tests.core.facts import catalog_of, chain_of, gpu_of

ARCHES = ["llama", "gemma3", "qwen35", "falcon-h1", "deepseek2", "qwen2moe", "bert", "novel"]
NUMBERS = st.one_of(
    st.integers(0, 300), st.sampled_from([-1, 0, 1 << 31, 1 << 64, 10**30, 0.5, 1e308, float("inf"), float("nan")])
)
VALUES = st.one_of(NUMBERS, st.text(max_size=3), st.none(), st.booleans(), st.lists(NUMBERS, max_size=4), st.just({}))
SANE = st.fixed_dictionaries(
    {},
    optional={
        "block_count": st.integers(0, 64) | st.just(MAX_BLOCKS),
        "embedding_length": st.integers(0, 8192),
        "attention.head_count": st.integers(0, 64),
        "context_length": st.integers(0, 1 << 20),
    },
)
NAMES = ["token_embd.weight", "output.weight", "blk.0.attn_k.weight", "blk.1.ssm_in.weight", "blk.99.x", "mtp.a", "v.b"]
TENSORS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(NAMES) | VALUES,
            "type": st.sampled_from(["F16", "Q4_K", "ODD"]) | VALUES,
            "shape": st.lists(st.integers(0, 4096), max_size=4) | VALUES,
        }
    ),
    max_size=4,
)
PARTS = [f"FROM /x/sha256-{'a' * 64}\n{part} /x/sha256-{'b' * 64}" for part in ("ADAPTER", "DRAFT", "FROM")]
MODELFILES = st.sampled_from(["", *PARTS])
PARAMETERS = st.sampled_from(
    ["", "num_ctx 99999999999", "num_ctx -5", "draft_num_predict 7", "num_gpu x", "num_batch 0"]
)


@st.composite
def odd_models(draw):
    """Draw what `/api/show` may say of a model: most figures as they should be, some not."""
    arch = draw(st.sampled_from(ARCHES))
    odd = draw(st.dictionaries(st.sampled_from([*SCALARS, *PER_LAYER]), VALUES, max_size=6))
    info = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in (draw(SANE) | odd).items()}
    show = {
        "model_info": info,
        "tensors": draw(TENSORS),
        "modelfile": draw(MODELFILES),
        "parameters": draw(PARAMETERS),
        "capabilities": draw(st.sampled_from([["completion"], ["embedding"], ["completion", "vision"], None, "odd"])),
    }
    return ModelFacts.of_show({"name": "odd:x", "size": draw(st.integers(0, 1 << 40) | VALUES)}, show)


@settings(deadline=None, max_examples=150)
@given(odd_models(), st.sampled_from([None, 1, 4096, 1 << 40]), st.integers(0, 2), st.sampled_from([None, 1, 2]))
def test_choose_never_raises(facts, num_ctx, prompt_mib, cards):
    """There is a decision with a verdict for each model that was looked at, on any number of cards, or none known."""
    gpus = None if cards is None else tuple(gpu_of(index) for index in range(cards))
    request = InferenceRequest("odd:x", num_ctx=num_ctx, prompt_bytes=prompt_mib << 20)
    decision = choose(request, chain_of("odd:x"), Snapshot(gpus, catalog=catalog_of(facts)), Rules())
    assert isinstance(decision, Decision)
    assert len(decision.verdicts) == 1
    assert int(facts.value("block_count", 0)) <= MAX_BLOCKS
