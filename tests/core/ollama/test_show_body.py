"""The body of a verbose show: what is used of it becomes objects, and nothing else does."""

import json
import tracemalloc

import msgspec
import pytest

from router.core.ollama.model import ModelFacts
from router.core.ollama.show import blobs, parameters
from router.core.ollama.show_body import read_show
from tests.core.ollama.test_figures import INFO, ROW, SHOW

WORDS = [f"word{number}" for number in range(50_000)]
BODY = json.dumps(
    SHOW
    | {
        "license": "l" * 100_000,
        "template": "{{ .Prompt }}",
        "model_info": INFO
        | {
            "tokenizer.ggml.tokens": WORDS,
            "tokenizer.ggml.merges": WORDS,
            "tokenizer.ggml.scores": [-1.5] * 50_000,
            "tokenizer.ggml.model": "gpt2",
        },
    }
).encode()


def test_the_facts_are_the_same_as_from_the_whole_answer():
    """The vocabulary is counted."""
    ours, whole = ModelFacts.of_show(ROW, read_show(BODY)), ModelFacts.of_show(ROW, json.loads(BODY))
    for field in ("weights", "capabilities", "parameters", "info", "tensors", "vocab", "doubt"):
        assert getattr(ours, field) == getattr(whole, field)
    assert (ours.vocab, ours.info["tokenizer.ggml.model"]) == (50_000, "gpt2")


def test_what_is_not_used_is_not_kept():
    """Neither the tokenizer's lists nor license and template."""
    read = read_show(BODY)
    assert {"license", "template"}.isdisjoint(read)
    assert [key for key, value in read["model_info"].items() if isinstance(value, list)] == []


def test_the_tokenizer_never_becomes_objects_but_its_words_for_a_moment():
    """Many shows are read at once."""
    tracemalloc.start()
    try:
        read_show(BODY)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        json.loads(BODY)
        assert peak < tracemalloc.get_traced_memory()[1] * 0.6
    finally:
        tracemalloc.stop()


def with_info(text):
    return b'{"capabilities":["completion"],"model_info":{"general.architecture":"llama",' + text + b"}}"


@pytest.mark.parametrize(
    "value", [b"1e999", b"[" * 500 + b"]" * 500, b'"\xff"', b"9" * 500, b'"' + b"x" * (2 << 20) + b'"']
)
def test_a_value_that_cannot_be_read_spoils_no_other_one(value):
    """Where it is a figure, the model is doubted; elsewhere it does not matter."""
    other = read_show(with_info(b'"llama.unused":' + value + b',"llama.block_count":32'))
    assert other["model_info"]["llama.block_count"] == 32
    facts = ModelFacts.of_show(ROW, read_show(with_info(b'"llama.block_count":' + value)))
    assert (bool(facts.doubt), facts.capabilities) == (True, {"completion"})


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b"", b'{"model_info":', b"\xff", b'{"a":' + b"[" * 100_000])
def test_a_body_that_is_no_object_is_an_error(body):
    """The same error whatever is wrong."""
    with pytest.raises(msgspec.DecodeError):
        read_show(body)


@pytest.mark.parametrize("part", ["model_info", "details", "tensors", "capabilities", "modelfile", "projector_info"])
@pytest.mark.parametrize("value", [None, 5, "text", [5], {"a": [1]}, True])
def test_a_part_of_another_type_counts_as_left_out(part, value):
    """Every one of them, so facts can always be made."""
    facts = ModelFacts.of_show(ROW, read_show(json.dumps(SHOW | {part: value}).encode()))
    assert facts.name == "m:latest"
    assert facts.weights


def test_an_answer_without_metadata_has_none():
    """An old server leaves it out."""
    assert read_show(b'{"modelfile":"FROM x"}') == {"modelfile": "FROM x"}


def test_a_part_of_very_many_lists_is_left_out_because_nothing_can_interrupt_their_decoding():
    """However deep they are: a tensor's shape that holds thousands of lists makes no objects of them."""
    deep = b"[" * 200 + b"1" + b"]" * 200
    tensors = b",".join(b'{"name":"t","type":"F32","shape":' + deep + b"}" for _ in range(300))
    read = read_show(b'{"capabilities":["completion"],"tensors":[' + tensors + b"]}")
    assert list(read) == ["capabilities"]


def test_a_large_model_has_all_of_its_tensors():
    """Some thousands of them, as a mixture of experts has."""
    row = b'{"name":"blk.0.ffn_gate_exps.weight","type":"Q4_K","shape":[2048,768,128]}'
    assert len(read_show(b'{"tensors":[' + b",".join([row] * 10_000) + b"]}")["tensors"]) == 10_000


@pytest.mark.parametrize("read", [lambda text: parameters(text * 500_000), lambda text: blobs(text * 500_000)])
@pytest.mark.parametrize("line", ['stop "a"\n', "#\n", "FROM x\n"])
def test_lines_without_end_are_read_up_to_a_bound(read, line):
    """A Modelfile of a megabyte held the loop; a parameter that is repeated was copied each time."""
    tracemalloc.start()
    try:
        read(line)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_metadata_of_countless_keys_is_left_out_and_its_model_is_sized_by_its_download():
    """Each is looked at on the loop; the metadata of a model has about a hundred."""
    for part in ("model_info", "projector_info", "details"):
        many = SHOW | {part: {f"x.{number}": number for number in range(4097)}}
        assert not read_show(json.dumps(many).encode()).get(part)
    few = SHOW | {"model_info": INFO | {f"x.{number}": number for number in range(4000)}}
    assert ModelFacts.of_show(ROW, read_show(json.dumps(few).encode())).info["x.3999"] == 3999


def test_of_countless_capabilities_the_first_are_read():
    """Ollama knows eight."""
    many = SHOW | {"capabilities": ["completion", *(f"c{number}" for number in range(100_000))]}
    facts = ModelFacts.of_show(ROW, read_show(json.dumps(many).encode()))
    assert "completion" in facts.capabilities
    assert len(facts.capabilities) == 64


def test_an_answer_of_countless_keys_is_not_read():
    """Its decoding is one step that nothing interrupts, in whichever thread."""
    with pytest.raises(msgspec.DecodeError, match="too many keys"):
        read_show(json.dumps({f"x{number}": 1 for number in range(200_001)}).replace(": ", ":").encode())
    many = json.dumps({"model_info": {f"x{number}": 1 for number in range(100_000)}}).replace(": ", ":").encode()
    assert read_show(many) == {"model_info": {}}
