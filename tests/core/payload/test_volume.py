"""Bodies of many small values: work and memory grow with their bytes, and are capped."""

from __future__ import annotations

import json

import pytest

from router.core.go.durations import parse_duration_ns
from router.core.go.json_keys import MOST_KEYS, elements, used_up
from router.core.go.quoting import MOST_QUOTED
from router.core.go.types import Map, Place, Scalar, Struct
from router.core.payload.management import read_names
from router.core.payload.messages import CALLS, OPENAI, measure
from router.core.payload.read import read_request, read_wholly, rewrite
from router.core.payload.values import OPTIONS, SHORT_BYTES
from router.errors import BadRequest

HELLO = '"model":"m","messages":[{"role":"user","content":"hi"}]'


def many(pair: str, count: int) -> bytes:
    pairs = (pair.replace("#", str(number)) for number in range(count))
    return f"{{{','.join((HELLO, *pairs))}}}".encode()


@pytest.mark.parametrize("pair", ['"options":{"a#":1}', '"Options":{"a#":1}', '"k#":1', '"k":"\\ud800"'])
def test_a_body_with_too_many_keys_is_refused(pair: str) -> None:
    """Whether the parser is the fast one or, for a lone surrogate, the slow one."""
    with pytest.raises(BadRequest, match=f"more than {MOST_KEYS} keys"):
        read_request("chat", many(pair, MOST_KEYS))


def test_too_many_options_are_refused() -> None:
    """Ollama knows thirty."""
    options = ",".join(f'"a{number}":1' for number in range(MOST_KEYS + 1))
    with pytest.raises(BadRequest, match="keys"):
        read_request("chat", many(f'"options":{{{options}}}', 1))


def test_as_many_keys_as_allowed_are_read_and_merged() -> None:
    """Every option of every duplicate arrives."""
    body = many('"options":{"a#":#}', MOST_KEYS - 2)
    found = read_request("chat", body)
    sent = json.loads(rewrite(body, model="n", options={"num_ctx": 4096}, members=found.members))
    assert len(sent["options"]) == MOST_KEYS - 2 + 1
    assert sent["options"]["a7"] == 7


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (OPTIONS, b'{"b":2}'),
        (Map("map[string]string", value=Scalar("string")), b'{"b":"x"}'),
        (Struct("T", fields={"b": Scalar("int")}), b'{"b":2}'),
    ],
)
def test_a_duplicate_object_is_merged_in_place(wanted: Map, text: bytes) -> None:
    """A copy for each duplicate would make the work quadratic."""
    old = {"a": 1}
    assert wanted.read(memoryview(text), "object", Place(), old) is old
    assert set(old) == {"a", "b"}


class Watched(str):
    """A text that counts the characters which are copied from it."""

    __slots__ = ("copied",)

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = super().__getitem__(key)
        self.copied = getattr(self, "copied", 0) + len(found)
        return found


def test_a_duration_is_read_without_copying_its_rest() -> None:
    """And one with more parts than anybody writes is none: each takes a while."""
    text = Watched("1s" * 1000)
    assert parse_duration_ns(text) == 1000 * 10**9
    assert text.copied <= len(text)
    with pytest.raises(BadRequest, match="invalid duration"):
        parse_duration_ns("1s" * 1001)


@pytest.mark.parametrize("member", ['"think":"#"', '"keep_alive":"1#"', '"top_logprobs":1#', '"think":"\\u0001#"'])
def test_an_error_text_repeats_only_the_start_of_a_long_value(member: str) -> None:
    """It is sent, and it is logged."""
    with pytest.raises(BadRequest) as caught:
        read_request("chat", many(member.replace("#", "1" * 100_000), 1))
    assert MOST_QUOTED <= len(caught.value.message) < 2 * MOST_QUOTED


@pytest.mark.parametrize(
    ("parts", "text_bytes"),
    [
        ([{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}], 7),
        ([{"type": "text", "text": "ab"}, {"type": "text", "text": "c", "x": 1}], 7),
        ([{"Type": "text", "text": "ab"}, {"type": "text", "text": "c"}], 7),
        (["ab", "c"], 3),
        (["ab", None], 2),
    ],
)
def test_parts_have_the_same_size_read_quickly_and_slowly(parts: list[object], text_bytes: int) -> None:
    """The common spelling is read in one step."""
    view = memoryview(json.dumps([{"role": "user", "content": parts}]).encode())
    assert OPENAI.read(view, "array", Place(), None).text_bytes == text_bytes


@pytest.mark.parametrize("tool", [{"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "x"}])
def test_tools_count_read_quickly_and_slowly(tool: dict[str, object]) -> None:
    """The common spelling is read in one step."""
    body = json.dumps({"model": "m", "messages": [], "tools": [tool]}).encode()
    assert "tools" in read_request("chat", body).needs


def test_a_tool_of_the_wrong_type_is_named_as_before() -> None:
    """What the quick step does not know is left to Go's rules."""
    body = json.dumps({"model": "m", "tools": [{"type": "function", "function": {"name": 1}}]}).encode()
    with pytest.raises(BadRequest, match=r"number into Go struct field ToolFunction\.tools\.function\.name"):
        read_request("chat", body)


def test_the_names_of_a_management_body_are_capped_as_well() -> None:
    """Its files, too."""
    pairs = ",".join(f'"files":{{"a{number}":"x"}}' for number in range(MOST_KEYS + 1))
    with pytest.raises(BadRequest, match="keys"):
        read_names(f"{{{pairs}}}".encode(), "create")


@pytest.mark.parametrize("kind", ["v1_chat", "chat", "v1_messages"])
def test_the_members_of_a_large_body_are_found_once(kind: str) -> None:
    """So that rewriting it is no second search; unless it is split already."""
    found = read_wholly(kind, f'{{{HELLO},"max_tokens":1}}'.encode())
    assert (found.members is None) is (found.plain is not None)
    assert [key for key, _ in found.members or ()][:2] == ["model", "messages"]


def test_a_list_of_numbers_is_measured_by_its_bytes_and_not_by_as_many_objects() -> None:
    """As long as it holds nothing else; the size is the same."""
    for text in (b"[1, 2,\n3]", b"[1]", b"[ 1.5e3 , -2]", b'[1,"x"]', b"[1,null,true]", b"[1,[2]]", b"[]"):
        view = memoryview(text)
        each = [measure(memoryview(item)) for item in elements(view)]
        found = measure(view)
        assert (found.parts, found.text_bytes) == (len(each), sum(one.text_bytes for one in each)), text


def test_a_list_that_begins_with_no_text_is_no_embed_input_without_reading_the_others() -> None:
    """Which are left alone however many they are."""
    body = b'{"model":"m","input":[1,' + b"x" * 3 + b"]}"
    with pytest.raises(BadRequest):
        read_request("embed", body)
    with pytest.raises(BadRequest, match="invalid input type"):
        read_request("embed", b'{"model":"m","input":[' + b",".join([b"1"] * 1000) + b"]}")


NESTED = {
    "create": '{"model":"m","files":{#}}',
    "chat": '{"model":"m","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f",#}}]}]}',
    "generate": '{"model":"m","prompt":"x","options":{#}}',
    "v1_chat": '{"model":"m","messages":[{"role":"user","content":[{"type":"input","text":"x",#}]}]}',
}


@pytest.mark.parametrize("kind", NESTED)
def test_an_object_within_a_body_has_no_more_keys_than_a_body(kind: str) -> None:
    """Nothing interrupts the decoding of one object, and the longest that is decoded has 30."""
    text = NESTED[kind].replace("#", ",".join(f'"a{number:04}":""' for number in range(MOST_KEYS + 1)))
    with pytest.raises(BadRequest, match=f"more than {MOST_KEYS} keys"):
        (read_names if kind == "create" else lambda body, kind: read_request(kind, body))(text.encode(), kind)


def test_long_options_are_read_as_short_ones() -> None:
    """Although not in one step."""
    stop = ",".join(['"x"'] * (SHORT_BYTES // 4))
    for body in (
        f'"options":{{"num_ctx":8192,"stop":[{stop}]}}',
        f'"options":{{"stop":[{stop}]}},"options":{{"num_ctx":8192}}',
    ):
        assert read_request("chat", f"{{{HELLO},{body}}}".encode()).num_ctx == 8192


def test_what_was_decoded_of_a_long_list_is_let_go_one_by_one() -> None:
    """To free very many values at one time holds the loop from any thread."""
    items = [object() for _ in range(5)]
    taken = used_up(items)
    assert [next(taken), next(taken)] and len(items) == 3
    calls = [{"function": {"name": "ab", "arguments": {}}}] * 5
    assert CALLS.read(memoryview(json.dumps(calls).encode()), "array", Place(), None) == 5 * len('"ab"{}')


@pytest.mark.parametrize(
    ("kind", "member"),
    [
        ("generate", '"keep_alive":1#'),
        ("generate", '"format":"json","options":{"temperature":0.#,"x":"#"}'),
        ("v1_chat", '"messages":[{"role":"user"}],"temperature":0.#'),
        ("embed", '"input":#'),
    ],
)
def test_a_number_that_nobody_writes_is_refused_f8(kind: str, member: str) -> None:
    """To read one of millions of digits is a single step."""
    body = f'{{"model":"m",{member.replace("#", "1" * 100_000)}}}'.encode()
    with pytest.raises(BadRequest, match="number of more than 4096 characters"):
        read_request(kind, body)


@pytest.mark.parametrize("times", [1, 20])
def test_options_that_nobody_writes_are_refused_f8(times: int) -> None:
    """They are read again when the body is sent: one long value, or all duplicates together."""
    options = f'"OPTIONS":{{"x":"{"a" * (2_000_000 // times)}"}},'
    body = f'{{{options * times}"model":"m","messages":[{{"role":"user","content":"x"}}]}}'.encode()
    for kind in ("chat", "v1_chat"):
        with pytest.raises(BadRequest, match="options have more than 1048576 bytes"):
            read_request(kind, body)
    assert read_request("chat", body.replace(b"a" * (1_900_000 // times), b"")).model == "m"


def test_the_text_about_a_long_encoding_is_cut() -> None:
    """It is sent, and it is logged."""
    with pytest.raises(BadRequest) as caught:
        read_request("v1_embeddings", f'{{"model":"m","input":"x","encoding_format":"{"x" * 100_000}"}}'.encode())
    assert len(caught.value.message) < 2 * MOST_QUOTED
