"""Bodies are read for what they need, and rewritten without changes to other values."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.go.json_keys import fold, split
from router.core.ollama.runner import LoadOptions
from router.core.payload import read
from router.core.payload.management import read_names
from router.core.payload.read import read_request, rewrite
from router.core.payload.rewrite import rewrite_names
from router.errors import BadRequest

PNG = "iVBORw0KGgo="


def body(**members):
    return json.dumps(members).encode()


def messages(*contents):
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize(
    ("kind", "members", "needs"),
    [
        ("generate", {"prompt": "x"}, {"completion"}),
        ("generate", {"prompt": "x", "suffix": "y"}, {"completion", "insert"}),
        ("generate", {"prompt": "x", "images": [PNG]}, {"completion", "vision"}),
        ("generate", {"prompt": "x", "think": "low"}, {"completion", "thinking"}),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": [PNG]}]}, {"completion", "vision"}),
        ("chat", {"messages": messages("x"), "tools": [{"type": "function"}]}, {"completion", "tools"}),
        ("chat", {"messages": messages("x"), "tools": [], "think": False}, {"completion"}),
        ("embed", {"input": "x"}, {"embedding"}),
        ("embeddings", {"prompt": "x"}, {"embedding"}),
        ("v1_embeddings", {"input": ["x"]}, {"embedding"}),
        (
            "v1_chat",
            {"messages": messages([{"type": "image_url", "image_url": {"url": "x"}}])},
            {"completion", "vision"},
        ),
        ("v1_chat", {"messages": messages("x"), "reasoning_effort": "high"}, {"completion", "thinking"}),
        ("v1_chat", {"messages": messages("x"), "reasoning": {"effort": "low"}}, {"completion", "thinking"}),
        ("v1_chat", {"messages": messages("x"), "reasoning_effort": "none"}, {"completion"}),
        ("v1_chat", {"messages": messages("x"), "tools": [{"type": "function"}]}, {"completion", "tools"}),
        ("v1_completions", {"prompt": "x", "suffix": "y"}, {"completion", "insert"}),
        (
            "v1_messages",
            {"max_tokens": 9, "messages": messages([{"type": "image", "source": {}}])},
            {"completion", "vision"},
        ),
        ("v1_messages", {"max_tokens": 9, "messages": messages("x"), "thinking": {"type": "enabled"}}, {"completion"}),
        (
            "v1_messages",
            {
                "max_tokens": 9,
                "messages": messages([{"type": "tool_result", "content": [{"type": "image", "source": {}}]}]),
            },
            {"completion", "vision"},
        ),
        ("v1_responses", {"input": messages([{"type": "input_image", "image_url": "x"}])}, {"completion", "vision"}),
        ("v1_responses", {"input": "x", "reasoning": {"effort": "low"}}, {"completion", "thinking"}),
    ],
)
def test_a_capability_is_needed_if_the_body_uses_it(kind, members, needs):
    """Each dialect puts it elsewhere in the body."""
    assert read_request(kind, body(model="m", **members)).needs == needs


@pytest.mark.parametrize(
    ("kind", "members", "size"),
    [
        ("generate", {"prompt": "12345", "system": "678"}, 8),
        ("generate", {"prompt": "12345", "context": [1, 2, 3]}, 14),
        ("generate", {"prompt": "1", "images": [PNG]}, 1),
        ("chat", {"messages": messages("12345", "678")}, 8),
        ("chat", {"messages": [{"role": "user", "content": "123", "thinking": "45"}]}, 9),
        ("chat", {"messages": messages("1"), "tools": [{"type": "function"}]}, 23),
        ("embed", {"input": ["123", "45"]}, 5),
        ("embed", {"input": "123"}, 3),
        ("v1_chat", {"messages": messages("123", [{"type": "text", "text": "45"}])}, 7),
        ("v1_messages", {"max_tokens": 9, "messages": messages("123"), "system": "45"}, 5),
        ("v1_responses", {"input": "123", "instructions": "45"}, 5),
        ("v1_completions", {"prompt": "123"}, 3),
    ],
)
def test_prompt_bytes_count_text_without_images(kind, members, size):
    """Text counts as it is written; a token of an old context counts as three bytes."""
    assert read_request(kind, body(model="m", **members)).prompt_bytes == size


@pytest.mark.parametrize(
    ("kind", "members", "load_only", "unload"),
    [
        ("generate", {}, True, False),
        ("generate", {"prompt": "", "images": [PNG]}, True, False),
        ("generate", {"prompt": "", "keep_alive": 0}, False, True),
        ("generate", {"prompt": "", "keep_alive": "0s"}, False, True),
        ("generate", {"prompt": "", "keep_alive": 1e10}, True, False),
        ("generate", {"prompt": "x", "keep_alive": 0}, False, False),
        ("chat", {"messages": None}, True, False),
        ("chat", {"messages": [], "keep_alive": 0}, False, True),
        ("embed", {"input": []}, True, False),
        ("embed", {"input": ""}, True, False),
        ("embed", {"input": [""]}, False, False),
        ("embed", {"keep_alive": 0}, False, True),
        ("embeddings", {"prompt": ""}, True, False),
        ("v1_completions", {"prompt": ""}, False, False),
    ],
)
def test_requests_without_a_prompt_load_or_unload(kind, members, load_only, unload):
    """Without a prompt the request loads, and with keep_alive 0 it unloads; `/v1` has neither."""
    request = read_request(kind, body(model="m", **members))
    assert (request.is_load_only, request.is_unload) == (load_only, unload)


def test_options_are_those_the_client_named():
    """Every option that reloads a runner is read; the others stay in the body."""
    named = {"num_ctx": 1, "num_batch": 2, "num_gpu": 3, "main_gpu": 4, "num_thread": 5, "draft_num_predict": 6}
    request = read_request(
        "chat", body(model="m", options=named | {"use_mmap": False, "top_k": 1, "num_predict": 9}, shift=True)
    )
    assert request.options == LoadOptions(**named, use_mmap=False, shift=True)
    assert (request.num_ctx, request.num_predict, request.options_error) == (1, 9, "")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_ctx": "x"}, 'option "num_ctx" must be of type integer'),
        ({"num_predict": []}, 'option "num_predict" must be of type integer'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"num_ctx": None, "use_mmap": None}, ""),
    ],
)
def test_an_option_of_the_wrong_type_becomes_an_error_for_later(options, error):
    """The error is kept until the model is known to exist; the value counts as not named."""
    request = read_request("generate", body(model="m", options=options))
    assert (request.options_error, request.options) == (error, LoadOptions())


def test_options_survive_a_lone_surrogate():
    """A value that msgspec rejects and Go accepts does not hide the options."""
    sent = b'{"model":"m","options":{"a":"\\ud800","b":[1],"c":true,"d":null,"num_ctx":7},"options":{"num_batch":2}}'
    assert read_request("generate", sent).options == LoadOptions(num_ctx=7, num_batch=2)


@pytest.mark.parametrize(
    ("kind", "members", "expected"),
    [
        ("chat", {"format": "json"}, True),
        ("chat", {"format": {"type": "object"}}, True),
        ("chat", {"format": ""}, False),
        ("chat", {"format": None}, False),
        ("v1_chat", {"messages": messages("x"), "response_format": {"type": "json_schema"}}, True),
        ("v1_chat", {"messages": messages("x"), "response_format": {"type": "text"}}, False),
        ("v1_responses", {"text": {"format": {"type": "json_schema"}}}, True),
        ("v1_messages", {"max_tokens": 9, "messages": messages("x")}, False),
    ],
)
def test_a_requested_output_format_is_recognised(kind, members, expected):
    """Each dialect that has one spells it differently."""
    assert read_request(kind, body(model="m", **members)).format is expected


@pytest.mark.parametrize(
    ("kind", "members", "text"),
    [
        ("generate", {"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ("chat", {"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        ("chat", {"top_logprobs": 20}, None),
        ("v1_chat", {}, "[] is too short - 'messages'"),
        ("v1_chat", {"messages": []}, "[] is too short - 'messages'"),
        ("v1_chat", {"messages": messages("x"), "top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ("v1_messages", {"messages": messages("x")}, "max_tokens is required and must be positive"),
        ("v1_messages", {"messages": messages("x"), "max_tokens": 0}, "max_tokens is required and must be positive"),
        ("v1_messages", {"messages": [], "max_tokens": 5}, "messages is required"),
        ("v1_messages", {"messages": messages("x"), "max_tokens": 5}, None),
        ("embed", {"input": 1}, "invalid input type"),
        ("embed", {"input": {"a": 1}}, "invalid input type"),
        ("embed", {"input": ["x", 1]}, "invalid input type"),
        ("embed", {"input": ["x"]}, None),
        ("embed", {"input": 1, "model": "a b"}, "invalid model name"),
        ("v1_embeddings", {}, "invalid input"),
        ("v1_embeddings", {"input": []}, "invalid input"),
        ("v1_embeddings", {"input": [1, 2]}, "invalid input type"),
        ("v1_embeddings", {"input": "x", "encoding_format": "BASE64"}, None),
        (
            "v1_embeddings",
            {"input": "x", "encoding_format": "int8"},
            "Invalid value for 'encoding_format' = int8. Supported values: ['float', 'base64'].",
        ),
    ],
)
def test_a_body_that_ollama_rejects_before_the_load_is_rejected(kind, members, text):
    """Such a request must not load a model first; if it names none, Ollama answers."""
    if text is None:
        assert read_request(kind, body(**{"model": "m"} | members)).has_model
    else:
        with pytest.raises(BadRequest) as caught:
            read_request(kind, body(**{"model": "m"} | members))
        assert caught.value.message == text
    assert not read_request(kind, body(**members | {"model": " "})).has_model


def test_a_body_with_too_many_small_values_is_refused():
    """The work of the slow parser is bounded."""
    with pytest.raises(BadRequest, match="too many values"):
        read_request("chat", b'{"model":"\\ud800","x":[' + b"[[[]]]," * 400_000 + b"[]]}")


def test_a_long_run_of_plain_values_passes_the_slow_parser():
    """Plain values are skipped in one step."""
    sent = b'{"x":[1' + b",1.5e3" * 300_000 + b'],"y":{"a":1' + b',"b":"c"' * 300_000 + b'},"model":"\\ud800"}'
    assert read_request("chat", sent).model == "\ufffd"


def test_rewriting_to_the_same_model_returns_the_same_object():
    """If nothing changes nothing is copied, whatever follows the object."""
    sent = b' {"messages": [], "model" : "\\u006d" } x'
    assert rewrite(sent, model="m") is sent
    assert rewrite(sent, model="m", members=read_request("chat", sent).members) is sent
    assert rewrite(sent, model="m", drop=frozenset({"keep_alive"}), options={"num_gpu": None}) is sent


@pytest.mark.parametrize(
    ("sent", "options", "expected"),
    [
        (b'{"model":"a","Model":"b","x": 1.50}', {}, b'{"model":"m","x":1.50}'),
        (b'{"MODEL":"m"}', {}, b'{"model":"m"}'),
        (b'{"name":"m","model":""}', {}, b'{"model":"m"}'),
        (b'{"model":"m","Name":"x"}', {}, b'{"model":"m"}'),
        (b"{}", {}, b'{"model":"m"}'),
        (b"null", {}, b'{"model":"m"}'),
        (b'{"model":"m"}', {"num_ctx": 5}, b'{"model":"m","options":{"num_ctx":5}}'),
        (b'{"model":"m","options":{"num_ctx":5}}', {"num_ctx": 5}, None),
        (b'{"model":"m","options":{"num_ctx":5}}', {"num_ctx": None}, b'{"model":"m","options":{}}'),
        (
            b'{"model":"m","options":{"b":1e2}}',
            {"use_mmap": True},
            b'{"model":"m","options":{"b":1e2,"use_mmap":true}}',
        ),
        (
            b'{"model":"m","options":{"a":1},"OPTIONS":{"b":2}}',
            {"num_ctx": 5},
            b'{"model":"m","options":{"a":1,"b":2,"num_ctx":5}}',
        ),
        (b'{"model":"m","options":{"a":1},"options":null}', {"b": 5}, b'{"model":"m","options":{"b":5}}'),
        (b'{"model":"m","shift":true}', {"shift": None}, b'{"model":"m"}'),
        (b'{"model":"m","shift":true}', {"shift": False}, b'{"model":"m","shift":false}'),
        (b'{"model":"m","shift":true}', {"shift": True}, None),
    ],
)
def test_rewriting_sets_model_and_options_only(sent, options, expected):
    """There is one `model`, in front; options are merged like Go merges them; every other value is unchanged."""
    found = rewrite(sent, model="m", options=options)
    assert found == (sent if expected is None else expected)
    assert (found is sent) is (expected is None)


def test_top_level_keys_are_dropped_and_forced():
    """A dropped key is removed in every spelling; a forced one is set once."""
    sent = b'{"model":"m","Keep_Alive":1,"keep_alive":2,"stream":true}'
    assert rewrite(sent, model="m", drop=frozenset({"keep_alive"})) == b'{"model":"m","stream":true}'
    assert rewrite(sent, model="m", force={"keep_alive": "5m"}) == b'{"model":"m","keep_alive":"5m","stream":true}'
    assert rewrite(sent, model="m", force={"keep_alive": None}) == b'{"model":"m","keep_alive":null,"stream":true}'


def test_rewrite_refuses_a_body_that_is_not_json():
    """A body that cannot be read is never forwarded."""
    with pytest.raises(BadRequest, match="unexpected EOF"):
        rewrite(b'{"model":"m"', model="m")


@pytest.mark.parametrize(
    ("kind", "sent", "names", "expected"),
    [
        ("delete", b'{"model":"","name":"x"}', {"model": "y"}, b'{"model":"y"}'),
        ("delete", b'{"model":"y"}', {"model": "y"}, None),
        (
            "copy",
            b'{"SOURCE":"a","destination":"b"}',
            {"source": "a", "destination": "b"},
            b'{"source":"a","destination":"b"}',
        ),
        ("create", b'{"from":"a","model":"b","x":1}', {"model": "b", "from": "c"}, b'{"model":"b","from":"c","x":1}'),
        ("show", b'{"name":"x","verbose":true}', {"model": "x"}, b'{"model":"x","verbose":true}'),
    ],
)
def test_a_management_body_gets_exactly_the_decided_names_f2_f3(kind, sent, names, expected):
    """Each name goes upstream under one key."""
    found = rewrite_names(sent, names)
    assert found == (expected or sent)
    assert (found is sent) is (expected is None)
    assert read_names(found, kind) == names


KEYS = st.sampled_from(
    ["model", "Model", "MODEL", "name", "mo\u0064el", "source", "\u017fource", "options", "Options", "x"]
) | st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.lists(st.tuples(KEYS, VALUES), max_size=6).map(
    lambda members: (
        "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in members) + "}"
    ).encode()
)


@given(BODIES, st.from_regex(r"[a-z][a-z0-9]{0,8}(:[a-z0-9]{1,4})?", fullmatch=True))
def test_rewriting_changes_the_model_and_nothing_else_f2(sent, name):
    """The result has the new model under one key and the other members unchanged; a second rewrite changes nothing."""
    found = rewrite(sent, model=name)
    assert read_names(found, "delete") == {"model": name}
    assert [key for key, _ in split(found) if fold(key) in ("model", "name")] == ["model"]
    rest = [(key, bytes(view)) for key, view in split(sent) if fold(key) not in ("model", "name")]
    assert [(key, bytes(view)) for key, view in split(found) if key != "model"] == rest
    assert rewrite(found, model=name) is found


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0eE+-.tfn1 mdl', max_size=40).map(str.encode))
def test_no_bytes_crash_the_reader(sent):
    """Any body is a request or a BadRequest."""
    try:
        request = read_request("chat", sent)
    except BadRequest:
        return
    assert read_request("chat", rewrite(sent, model=request.model)).model == request.model


def test_options_with_a_key_that_is_not_utf8_are_patched():
    """Go accepts such a key; the patch is added beside it."""
    body = b'{"model":"x","options":{"k\xff":1,"num_ctx":4096}}'
    found = rewrite(body, model="x", options={"num_ctx": 8192})
    assert b'"num_ctx":8192' in found
    assert b"4096" not in found


TEXTS = st.text(max_size=12)
CONTENTS = TEXTS | st.none() | st.lists(TEXTS, max_size=2)
PATCHES = [{}, {"num_ctx": 8192, "num_batch": 512}, {"num_ctx": None, "main_gpu": 1, "shift": True}]
COMMON = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", " ", "", "llama3.2:3b", "ſ"])},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["user", "system"]),
                    "content": TEXTS | st.none() | st.lists(TEXTS, max_size=2),
                },
                optional={"images": st.lists(st.just("aGk="), max_size=1), "Content": TEXTS},
            ),
            max_size=3,
        )
        | st.none(),
        "prompt": TEXTS | st.integers(),
        "system": TEXTS | st.none(),
        "stream": st.booleans() | st.none() | TEXTS,
        "options": st.dictionaries(
            st.sampled_from(["num_ctx", "temperature", "num_predict", "use_mmap", "main_gpu"]),
            st.integers(-10, 1 << 70) | st.floats(allow_nan=False) | st.booleans() | st.none() | TEXTS,
            max_size=3,
        )
        | st.none(),
        "keep_alive": st.sampled_from([0, -1, 1e10, 300, "5m", "-1", "x", None, True, 1e30]),
        "max_tokens": st.integers(-(1 << 65), 1 << 65) | st.floats(allow_nan=False) | st.none(),
        "think": st.booleans(),
        "Stream": st.booleans(),
        "tools": st.just([]),
    },
)


@given(st.sampled_from(["chat", "generate", "v1_chat"]), COMMON, st.booleans(), st.booleans())
def test_fast_path_and_slow_path_read_a_body_equally(kind, members, is_compact, is_doubled):
    """Both return the same request or raise the same error."""
    text = json.dumps(members, separators=(",", ":") if is_compact else None)
    if is_doubled:
        text = text[:-1] + ',"model":"other"}'
    quick, slow = read_or_refusal(kind, text.encode()), read_or_refusal(kind, text.encode(), is_quick=False)
    assert quick == slow


def read_or_refusal(kind, text, *, is_quick=True):
    """Return the request as plain data, without the fields that depend on the path; else the error's text."""
    try:
        found = read_request(kind, text) if is_quick else read.read_slowly(kind, text)
    except BadRequest as error:
        return error.message
    values = msgspec.structs.asdict(found)
    del values["members"], values["plain"]
    return values


@given(COMMON, st.sampled_from(PATCHES))
def test_fast_path_and_slow_path_rewrite_a_body_equally(members, options):
    """The result has the same members."""
    text = json.dumps(members).encode()
    try:
        request = read_request("chat", text)
    except BadRequest:
        return
    drop = frozenset({"keep_alive"})
    quick = rewrite(text, model="x", options=options, drop=drop, members=request.members, plain=request.plain)
    assert json.loads(quick) == json.loads(rewrite(text, model="x", options=options, drop=drop))


@pytest.mark.parametrize(
    ("members", "seen"),
    [
        ({"options": {"num_ctx": "8192"}}, {"options_error": 'option "num_ctx" must be of type integer'}),
        ({"options": {"num_ctx": 4096, "num_predict": 7}}, {"num_ctx": 4096, "num_predict": 7}),
        ({"keep_alive": "5m"}, {"keep_alive_s": 300.0}),
        ({"keep_alive": None}, {"keep_alive_s": None}),
    ],
)
def test_a_value_that_is_not_plain_goes_to_the_slow_path(members, seen):
    """The slow path decides what it means."""
    found = read_request("chat", body(model="m", messages=[{"role": "user", "content": "x"}], **members))
    assert {key: getattr(found, key) for key in seen} == seen
    with pytest.raises(BadRequest):
        read_request("chat", body(model="m", messages=[], keep_alive="x"))


def test_a_plain_body_gets_the_options_after_its_own_and_keeps_other_values():
    """Only the model and the options change."""
    sent = (
        b'{"model":"a", "messages":[{"role":"user","content":"\\u00e9"}],'
        b' "options":{"temperature": 0.70}, "stream":false}'
    )
    request = read_request("chat", sent)
    found = rewrite(sent, model="b", options={"num_ctx": 4096}, members=request.members, plain=request.plain)
    assert found == (
        b'{"model":"b","options":{"temperature": 0.70,"num_ctx":4096},'
        b'"messages":[{"role":"user","content":"\\u00e9"}],"stream":false}'
    )


@pytest.mark.parametrize("kind", ["chat", "generate", "v1_chat"])
@pytest.mark.parametrize(
    "more",
    [
        '"messages":[{"role":"user","content":"second"}]',
        '"options":{"num_ctx":8192}',
        '"\\u006dessages":[{"role":"user","content":"hidden"}]',
        '"prompt":"second"',
        '"system":"a pirate"',
    ],
)
def test_a_duplicate_key_is_read_as_go_reads_it(kind, more):
    """However it is spelled, the slow path reads it."""
    first = (
        '"prompt":"hi","options":{"num_ctx":2048}'
        if kind == "generate"
        else '"messages":[{"role":"user","content":"x"}]'
    )
    for text in (f'{{"model":"m",{first},{more}}}', f'{{"model":"m",{more},{first},{more}}}'):
        assert read_or_refusal(kind, text.encode()) == read_or_refusal(kind, text.encode(), is_quick=False)
