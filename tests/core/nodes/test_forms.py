"""The forms between fronts and nodes: what was written is read again, and a bad field is named."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from router.core.decision.chain import Variant
from router.core.decision.verdict import Verdict, VerdictKind
from router.core.nodes.call import MOST_CALL_BYTES, MOST_VARIANTS, CallRules, CallVariant, NodeCall
from router.core.nodes.catalog import NodeCatalog, NodeModel, NodeNeed
from router.core.nodes.declined import NodeDeclined, NodeVerdict
from router.core.nodes.form import OtherVersion, UnreadableForm
from router.core.nodes.view import MOST_VIEW_BYTES, NodeGpu, NodeLoading, NodeResident, NodeView
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import MAX_NAME

VIEW = NodeView(
    name="gpu-a",
    boot_id="0f3c",
    seq=7,
    version="1.0.0",
    is_up=True,
    draining=False,
    memory="probed",
    gpus=(NodeGpu("GPU-1", 24 << 30, 9 << 30),),
    residents=(NodeResident("sha256-a", 8192, is_full=True, in_flight=1, slots=2, idle_s=0.0, held_bytes=(14 << 30,)),),
    loading=(NodeLoading("sha256-b", 4096, 2.5),),
    wait_s=2.5,
    barred=("sha256-c",),
    catalog_digest="aa",
    learned_digest="bb",
)
CALL = NodeCall(
    team="Forschung ä",
    share=2.0,
    key_id="ci",
    client="10.0.0.9",
    name="chat",
    chain=(CallVariant("big:70b"), CallVariant("small:8b", 16384), CallVariant("tiny:1b", "max")),
    rules=CallRules(nothing_fits="wait", upgrade="never", prefer="speed", max_load_wait_s=60.0, max_num_ctx=32768),
    deadline_s=30.0,
)
SMALL = NodeModel(
    name="small:8b", digest="d1", size_bytes=5 << 30, weights="sha256-a", needs=(NodeNeed(4096, 6 << 30),), load_s=3.0
)
CATALOG = NodeCatalog.of((SMALL,))
DECLINED = NodeDeclined(
    error="big:70b: too big",
    node="gpu-a",
    boot_id="0f3c",
    seq=8,
    verdicts=(NodeVerdict.of(Verdict(Variant("big:70b"), VerdictKind.TOO_BIG, 8192, 40 << 30, 24 << 30)),),
)

Changes = dict[str, Any]


def changed(form: Any, changes: Changes) -> bytes:
    """Return the JSON of a form with some fields replaced; a key may be a path with dots and numbers."""
    whole = msgspec.to_builtins(form)
    for path, value in changes.items():
        *way, last = path.split(".")
        at: Any = whole
        for step in way:
            at = at[int(step)] if isinstance(at, (list, tuple)) else at[step]
        at[last] = value
    return msgspec.json.encode(whole)


def read_call(data: bytes) -> NodeCall:
    return NodeCall.from_header(base64.urlsafe_b64encode(data))


FORMS: list[tuple[Any, Callable[[bytes], Any]]] = [
    (VIEW, NodeView.from_json),
    (CALL, read_call),
    (CATALOG, NodeCatalog.from_json),
    (DECLINED, NodeDeclined.from_json),
]


@pytest.mark.parametrize(("form", "read"), FORMS)
def test_what_was_written_is_read_again(form: Any, read: Callable[[bytes], Any]) -> None:
    assert read(msgspec.json.encode(form)) == form


@pytest.mark.parametrize(("form", "read"), FORMS)
def test_a_form_of_another_version_is_told_from_a_broken_one(form: Any, read: Callable[[bytes], Any]) -> None:
    with pytest.raises(OtherVersion, match="v: 2"):
        read(changed(form, {"v": 2}))
    for bad in (b"", b"[]", b"{}", b"null", b'{"v":"1"}', b"\xff", b"[" * 5000):
        with pytest.raises(UnreadableForm):
            read(bad)


@pytest.mark.parametrize(("form", "read"), FORMS)
def test_a_field_of_a_newer_peer_is_left_out(form: Any, read: Callable[[bytes], Any]) -> None:
    assert read(changed(form, {"colour": "blue"})) == form


@pytest.mark.parametrize(
    ("form", "read", "field", "value"),
    [
        (VIEW, NodeView.from_json, "name", "a b"),
        (VIEW, NodeView.from_json, "name", "a\n"),
        (VIEW, NodeView.from_json, "seq", -1),
        (VIEW, NodeView.from_json, "seq", True),
        (VIEW, NodeView.from_json, "draining", 0),
        (VIEW, NodeView.from_json, "memory", "plenty"),
        (VIEW, NodeView.from_json, "wait_s", -0.5),
        (VIEW, NodeView.from_json, "wait_s", 1e12),
        (VIEW, NodeView.from_json, "gpus", [msgspec.to_builtins(VIEW.gpus[0])] * 65),
        (VIEW, NodeView.from_json, "residents.0.in_flight", -1),
        (VIEW, NodeView.from_json, "residents.0.weights", "x" * 1025),
        (VIEW, NodeView.from_json, "residents.0.held_bytes", [1 << 60]),
        (CALL, read_call, "hop", 2),
        (CALL, read_call, "team", ""),
        (CALL, read_call, "share", 0),
        (CALL, read_call, "share", -1),
        (CALL, read_call, "chain", []),
        (CALL, read_call, "chain", [{"model": "m"}] * 65),
        (CALL, read_call, "chain.1.num_ctx", 0),
        (CALL, read_call, "chain.1.num_ctx", "most"),
        (CALL, read_call, "chain.0.model", ""),
        (CALL, read_call, "rules.nothing_fits", "spill"),
        (CALL, read_call, "deadline_s", None),
        (CATALOG, NodeCatalog.from_json, "models.0.size_bytes", 1.5),
        (CATALOG, NodeCatalog.from_json, "models.0.name", ""),
        (DECLINED, NodeDeclined.from_json, "verdicts.0.need_bytes", -1),
    ],
)
def test_a_bad_field_is_refused_and_named(form: Any, read: Callable[[bytes], Any], field: str, value: Any) -> None:
    with pytest.raises(UnreadableForm, match=field.rpartition(".")[2]) as failed:
        read(changed(form, {field: value}))
    assert len(str(failed.value)) <= 300


def test_a_form_has_a_bound() -> None:
    with pytest.raises(UnreadableForm, match="more than"):
        NodeView.from_json(b" " * (MOST_VIEW_BYTES + 1))
    with pytest.raises(UnreadableForm, match="more than"):
        NodeCall.from_header(b"A" * (MOST_CALL_BYTES + 1))


def test_a_call_by_the_longest_chain_of_the_longest_names_is_read() -> None:
    """With the longest of all else: no request fails for the length of what is said of it."""
    names = [f"{number:02}{'n' * (MAX_NAME - 2)}" for number in range(MOST_VARIANTS)]
    chain = tuple(CallVariant(name, 1 << 31) for name in names)
    rules = CallRules("allow_partial", "on_request", "balanced", 1e9 / 7, 1e9 / 3, 1 << 40, "always")
    told = {"team": "t" * 128, "key_id": "k" * 128, "client": "c" * 128, "share": 1 / 3}
    call = NodeCall(**told, name="\u2003" * MAX_NAME, chain=chain, rules=rules, deadline_s=1e9 / 3)
    assert NodeCall.from_header(call.to_header()) == call


@pytest.mark.parametrize("value", [b"", b"***", b"e30", b"\xff\xfe", b"AAAAA", b"a b"])
def test_a_header_that_is_not_a_call_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableForm):
        NodeCall.from_header(value)


def test_a_header_may_lack_its_padding() -> None:
    assert NodeCall.from_header(CALL.to_header().rstrip(b"=")) == CALL


def test_a_typical_view_is_small() -> None:
    residents = VIEW.residents * 4
    assert len(msgspec.structs.replace(VIEW, residents=residents, gpus=VIEW.gpus * 4).to_json()) <= 2048


def test_time_alone_does_not_make_another_state() -> None:
    later = msgspec.structs.replace(VIEW.residents[0], idle_s=3.0)
    assert VIEW.is_same_state(msgspec.structs.replace(VIEW, seq=8, residents=(later,)))
    busy = msgspec.structs.replace(VIEW.residents[0], in_flight=2)
    assert not VIEW.is_same_state(msgspec.structs.replace(VIEW, residents=(busy,)))
    assert not VIEW.is_same_state(msgspec.structs.replace(VIEW, draining=True))


def test_digests_tell_models_from_what_was_learned() -> None:
    model = CATALOG.models[0]
    learned = NodeCatalog.of((msgspec.structs.replace(model, needs=(NodeNeed(4096, 7 << 30),)),))
    other = NodeCatalog.of((msgspec.structs.replace(model, digest="d2"),))
    assert learned.catalog_digest == CATALOG.catalog_digest
    assert learned.learned_digest != CATALOG.learned_digest
    assert (other.catalog_digest != CATALOG.catalog_digest, other.learned_digest) == (True, CATALOG.learned_digest)


def test_the_order_of_models_does_not_change_a_digest() -> None:
    one, two = CATALOG.models[0], msgspec.structs.replace(CATALOG.models[0], name="another")
    assert NodeCatalog.of((one, two)) == NodeCatalog.of((two, one))


def test_chains_can_be_derived_from_what_a_node_tells_of_a_model() -> None:
    facts = ModelFacts(
        "small:8b-q4", "d", 5 << 30, "llama", "8.0B", "Q4_K_M", frozenset({"completion", "tools"}), "sha256-a",
        parameters={"num_ctx": "8192", "num_gpu": -1, "stop": ["x"]},
        info={"general.architecture": "llama", "llama.context_length": 131072, "general.parameter_count": 8.03e9},
    )  # fmt: skip
    told = NodeModel.of(facts).facts()
    for field in ("name", "digest", "size_bytes", "family", "capabilities", "weights", "parameter_count"):
        assert getattr(told, field) == getattr(facts, field)
    assert (told.context_length, told.arch) == (131072, "llama")
    assert told.parameters == {"num_ctx": 8192, "num_gpu": -1}


@pytest.mark.parametrize(
    ("num_ctx", "need_bytes"), [(4096, 100), (8192, 200), (6144, 150), (2048, 50), (16384, 600), (12288, 400), (0, 0)]
)
def test_what_is_needed_between_two_contexts_lies_on_a_line(num_ctx: int, need_bytes: int) -> None:
    needs = (NodeNeed(4096, 100, 120), NodeNeed(8192, 200, 220), NodeNeed(12288, 400, 420))
    found = msgspec.structs.replace(SMALL, needs=needs).need(num_ctx)
    assert found == NodeNeed(num_ctx, need_bytes, need_bytes + 20)


def test_what_is_needed_may_be_known_for_one_context_or_none() -> None:
    assert SMALL.need(8192) == SMALL.needs[0]
    assert msgspec.structs.replace(SMALL, needs=()).need(4096) is None


def test_a_fault_in_a_catalog_names_the_model() -> None:
    """Its models are read one by one, after all the rest."""
    data = changed(CATALOG, {"models.0.size_bytes": -1})
    with pytest.raises(UnreadableForm, match=r"models\[0\].*size_bytes"):
        NodeCatalog.from_json(data)
    with pytest.raises(OtherVersion):
        NodeCatalog.from_json(changed(CATALOG, {"models.0.size_bytes": -1, "v": 2}))
