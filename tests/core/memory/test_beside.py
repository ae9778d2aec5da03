"""Adapters, draft models and blocks for multi-token prediction weigh what they weigh."""

from dataclasses import replace

import pytest

from router.core.memory.footprint import MemoryOptions, footprint
from router.core.memory.placement import Card, place
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts, Tensor
from router.core.ollama.options import ServerSettings, merged
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB, MIB
from tests.core.facts import facts_of

OPTIONS = MemoryOptions(8192)
BARE = facts_of("m:8b", 5)
EXTRA = int(1.2 * GIB)


def grown(**changes):
    """Return the bare model with a further part of 1.2 GiB."""
    return replace(BARE, size_bytes=shape_of(BARE).weights.file_bytes + EXTRA, **changes)


def test_an_adapter_weighs_its_bytes():
    """It goes to the GPU with the layers that it adapts."""
    assert footprint(grown(has_adapters=True), OPTIONS).need_bytes == footprint(BARE, OPTIONS).need_bytes + EXTRA


def test_a_draft_model_weighs_its_bytes_a_cache_and_a_graph():
    """Its cache has the same context; nothing is known of its shape, so it counts as large as the model's own."""
    bare, both = footprint(BARE, OPTIONS), footprint(grown(has_draft=True), OPTIONS)
    assert both.weights_bytes == bare.weights_bytes + EXTRA
    assert (both.kv_bytes, both.compute_bytes) == (2 * bare.kv_bytes, 2 * bare.compute_bytes)
    assert any("draft" in note for note in both.notes)


def test_a_draft_model_that_the_modelfile_turns_off_weighs_nothing():
    """draft_num_predict 0: Ollama does not pass it on."""
    off = grown(has_draft=True, parameters={"draft_num_predict": 0})
    assert footprint(off, OPTIONS).need_bytes == footprint(BARE, OPTIONS).need_bytes
    on = replace(OPTIONS, has_draft=True)  # a request may turn it on
    assert footprint(off, on).need_bytes > footprint(off, OPTIONS).need_bytes


@pytest.mark.parametrize(("parameters", "weighs"), [({}, False), ({"draft_num_predict": 3}, True)])
def test_blocks_for_multi_token_prediction_weigh_if_tokens_are_drafted(parameters, weighs):
    """They are loaded if the Modelfile sets draft_num_predict; a block of its own, or tensors named mtp."""
    info = dict(BARE.info) | {"llama.nextn_predict_layers": 1, "llama.block_count": 17}
    nextn = Tensor("blk.16.ffn_up.weight", "F16", (2048, 32768))
    legacy = Tensor("mtp.layers.0.ffn_up.weight", "F16", (2048, 32768))
    with_block = replace(BARE, info=info, tensors=(*BARE.tensors, nextn), parameters=parameters)
    with_legacy = replace(BARE, tensors=(*BARE.tensors, legacy), parameters=parameters)
    without = replace(BARE, info=info)
    added = 128 * MIB * weighs
    assert footprint(with_block, OPTIONS).weights_bytes == footprint(without, OPTIONS).weights_bytes + added
    assert footprint(with_legacy, OPTIONS).weights_bytes == footprint(BARE, OPTIONS).weights_bytes + added
    assert (footprint(with_legacy, OPTIONS).kv_bytes > footprint(BARE, OPTIONS).kv_bytes) is weighs


def test_a_split_holds_all_of_it():
    """The parts beside the model are spread over the layers."""
    cards = [Card(0, 40 * GIB, 264 * MIB), Card(1, 40 * GIB, 264 * MIB)]
    alone, both = place(BARE, OPTIONS, cards), place(grown(has_draft=True), OPTIONS, cards)
    more = footprint(grown(has_draft=True), OPTIONS)
    bare = footprint(BARE, OPTIONS)
    added = more.weights_bytes + more.kv_bytes - bare.weights_bytes - bare.kv_bytes
    assert both.expected_bytes - alone.expected_bytes >= added


def test_the_modelfile_says_which_parts_there_are():
    """ADAPTER and DRAFT lines are told apart from a second FROM, which is a projector."""
    blob = "/x/blobs/sha256-" + "a" * 64
    text = f"FROM {blob}\nADAPTER {blob[:-1]}b\nDRAFT {blob[:-1]}c\nTEMPLATE x\nADAPTER {blob}"
    facts = ModelFacts.of_show({"name": "m"}, {"modelfile": text})
    assert (len(facts.parts), facts.has_adapters, facts.has_draft) == (2, True, True)
    vision = ModelFacts.of_show({"name": "m"}, {"modelfile": f"FROM {blob}\nFROM {blob[:-1]}b"})
    assert (len(vision.parts), vision.has_adapters, vision.has_draft) == (1, False, False)


def test_only_a_model_with_a_draft_drafts_by_default():
    """Ollama's default of 4 is for those (server/routes.go); what the Modelfile names counts for all."""
    settings = ServerSettings()
    assert merged(BARE, LoadOptions(), settings, 4096).draft_num_predict == 0
    assert merged(replace(BARE, has_draft=True), LoadOptions(), settings, 4096).draft_num_predict == 4
    named = replace(BARE, has_draft=True, parameters={"draft_num_predict": 2})
    assert merged(named, LoadOptions(), settings, 4096).draft_num_predict == 2
