"""What a team may do: by route, by model in every spelling, by registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.ollama.routes import ROUTES
from router.core.teams.rights import (
    DEFAULT_REGISTRIES,
    NEEDED,
    REMOTE_REFUSED,
    TRUSTED,
    Permit,
    check_management,
    check_remote_host,
    check_route,
    check_use,
    permit_of,
)
from router.core.teams.team import ANYONE, Identity, Team
from router.errors import BadRequest, Forbidden, RouterError, Unauthorized

MANAGER = Team(
    "coding",
    rights=frozenset(("infer", "read", "manage")),
    allow=("qwen3-coder:*", "llama3.3:*", "hf.co/*"),
    deny=("*:cloud", "llama3.3:1b", "coding/secret", "*uncensored*"),
    manage_models=("coding/*", "qwen3-coder:30b"),
)
USER = Team("users")
WITH_KEY = Identity(MANAGER, "ci")
ROUTE_OF = {route.kind: route for route in ROUTES}


def is_refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except (Forbidden, Unauthorized):
        return True
    return False


def may(kind: str, names: dict[str, str], identity: Identity = WITH_KEY) -> bool:
    return not is_refused(lambda: check_management(identity, kind, names, DEFAULT_REGISTRIES))


# --- routes ----------------------------------------------------------------------------------------------------------

RIGHTS_OF_KINDS = {
    "infer": "generate chat embed embeddings v1_chat v1_completions v1_embeddings v1_responses v1_messages v1_audio",
    "read": "root version status tags show ps recommendations v1_models v1_model",
    "manage": "pull push create copy delete blob_put blob_head",
    "admin": "me signout user_key web_search web_fetch",
}


def test_every_route_is_classified_g2() -> None:
    """A new one fails here, until someone has decided who may use it."""
    classified = {kind: right for right, kinds in RIGHTS_OF_KINDS.items() for kind in kinds.split()}
    assert {route.kind: NEEDED[route.right] for route in ROUTES} == classified


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize(
    "right", [(), ("infer",), ("read",), ("infer", "read"), ("manage",), ("infer", "read", "manage")]
)
def test_a_route_needs_its_right_and_no_other(route, right: tuple) -> None:
    """With a key the team lacks the right (403); without one the client may have forgotten it (401 on /v1)."""
    team = Team("t", rights=frozenset(right), manage_models=("*",))
    for identity, kind in ((Identity(team, "k"), Forbidden), (Identity(team), RouterError)):
        if NEEDED[route.right] in right:
            check_route(identity, route)
        else:
            with pytest.raises(kind) as caught:
                check_route(identity, route)
            assert isinstance(caught.value, (Forbidden, Unauthorized))


def test_the_right_to_manage_needs_models_that_it_is_for() -> None:
    """Otherwise not even files can be uploaded."""
    team = Team("t", rights=frozenset(("manage",)))
    for kind in RIGHTS_OF_KINDS["manage"].split():
        with pytest.raises(Forbidden, match="manage_models"):
            check_route(Identity(team, "k"), ROUTE_OF[kind])


def test_a_refusal_says_what_is_missing_and_how_to_be_allowed() -> None:
    """`ollama pull` shows this text, so it names what its user can do."""
    for identity in (ANYONE, Identity(USER)):
        with pytest.raises(Unauthorized) as caught:
            check_route(identity, ROUTE_OF["pull"])
        for needed in ("pull models", "without a key", "manage_models", "ollama-router keys new", "/t/KEY"):
            assert needed in caught.value.message
    with pytest.raises(Forbidden) as refused:
        check_route(Identity(USER, "ci"), ROUTE_OF["pull"])
    for needed in ("team users", "pull models", "rights: [infer, read, manage]", "manage_models"):
        assert needed in refused.value.message


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_client_of_this_machine_may_do_everything_without_teams(route) -> None:
    """It can ask Ollama directly."""
    check_route(TRUSTED, route)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("qwen3-coder:30b", True),
        ("llama3.3:70b", True),
        ("llama3.3:1b", False),
        ("llama3.3:1b-cloud", False),
        ("qwen3-coder:480b-cloud", False),
        ("coding/mine:1", True),  # what it may pull it may use
        ("coding/secret", False),
        ("coding/secret:2", True),
        ("hf.co/user/x-uncensored:7b", False),
        ("hf.co/user/x:7b", True),
        ("gemma3:4b", False),
    ],
)
def test_patterns_decide_which_models_a_team_may_use(name: str, is_allowed: bool) -> None:
    """A denied one is not even within `manage_models`."""
    assert permit_of(MANAGER).may_use(name) is is_allowed
    assert is_refused(lambda: check_use(WITH_KEY, name)) is not is_allowed


def test_a_team_without_patterns_may_use_everything_but_the_cloud() -> None:
    """Requests to a model of the cloud leave the network, so that must be written: an allow pattern names it."""
    permit = permit_of(USER)
    assert permit.may_use("gemma3:4b")
    assert permit.may_use("not a name!")  # which Ollama answers itself
    assert not permit.may_use("x:8b-cloud")
    with pytest.raises(Forbidden, match=REMOTE_REFUSED):
        check_use(Identity(USER), "x:cloud")
    assert not permit_of(Team("t", allow=("*",))).may_use("x:cloud")
    assert permit_of(Team("t", allow=("*", "*:cloud"))).may_use("x:8b-cloud")
    assert permit_of(Team("t", allow=("gpt-oss:120b-cloud",))).may_use("gpt-oss:120b-cloud")
    assert not permit_of(Team("t", allow=("gpt-oss:120b-cloud",))).may_use("gpt-oss:20b-cloud")


def test_what_is_not_a_name_is_a_bad_request_where_patterns_decide() -> None:
    """Never is it passed on in the hope that Ollama refuses it."""
    for name in ("a b", "a:b:c d", "\u212aama", "x" * 700):
        with pytest.raises(BadRequest):
            check_use(WITH_KEY, name)
        assert not permit_of(MANAGER).may_see(name)


def test_the_names_of_its_own_chains_are_allowed_unless_denied() -> None:
    """Otherwise each would have to be listed twice."""
    own = frozenset({"registry.ollama.ai/library/fast:latest", "registry.ollama.ai/coding/secret:latest"})
    permit = Permit(replace(MANAGER, own=own))
    assert permit.may_use("fast")
    assert not permit.may_use("coding/secret")


def test_a_derived_tag_is_no_way_around_patterns() -> None:
    """It is another name of a model, which only the router uses; nobody but an admin changes one."""
    for name in ("ollama-router-derived/llama3.3:1b-d0d3a5429-c32768-b512-gx", "Ollama-Router-Derived/coding-x:1"):
        for team in (MANAGER, Team("t", allow=("*",)), Team("t", deny=("x",))):
            assert not permit_of(team).may_use(name)
        assert permit_of(USER).may_use(name)
        assert not permit_of(EVERYTHING.team).may_manage(name)
        assert permit_of(TRUSTED.team).may_manage(name)


# --- management ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names", "is_allowed"),
    [
        ("pull", {"model": "coding/x"}, True),
        ("pull", {"model": "qwen3-coder:30b"}, True),
        ("pull", {"model": "qwen3-coder:480b"}, False),  # allowed to use, not to manage
        ("pull", {"model": "coding/secret"}, False),
        ("pull", {"model": "hf.co/coding/x"}, False),
        ("push", {"model": "coding/x"}, True),
        ("delete", {"model": "coding/x"}, True),
        ("delete", {"model": "llama3.3:70b"}, False),
        ("copy", {"source": "llama3.3:70b", "destination": "coding/x"}, True),
        ("copy", {"source": "gemma3:4b", "destination": "coding/x"}, False),
        ("copy", {"source": "coding/x", "destination": "llama3.3:70b"}, False),
        ("create", {"model": "coding/x", "from": "llama3.3:70b"}, True),
        ("create", {"model": "coding/x", "from": "llama3.3:1b"}, False),
        ("create", {"model": "coding/x", "from": "x:cloud"}, False),
        ("create", {"model": "llama3.3:70b", "from": "coding/x"}, False),
        ("create", {"model": "coding/x"}, True),
    ],
)
def test_a_team_manages_only_within_its_models(kind: str, names: dict[str, str], is_allowed: bool) -> None:
    """What is read must be allowed to it, what is changed must be its own."""
    assert may(kind, names) is is_allowed


TEXTS = st.sampled_from(
    [
        ("llama3.3:1b", "llama3.3", "1b"),
        ("coding/secret", "coding/secret", "latest"),
        ("coding/secret:latest", "coding/secret", "latest"),
        ("coding/x-uncensored:7b", "coding/x-uncensored", "7b"),
        ("coding/x:8b-cloud", "coding/x", "8b-cloud"),
    ]
)
PREFIXES = ("", "registry.ollama.ai/", "https://registry.ollama.ai/", "http://Registry.Ollama.AI/")


@st.composite
def denied_spellings(draw) -> str:
    """Spellings of names that are denied to the team, all of which Ollama takes for the same models."""
    _, name, tag = draw(TEXTS)
    prefix = draw(st.sampled_from(PREFIXES))
    if "/" not in name and (prefix or draw(st.booleans())):
        name = "library/" + name
    text = prefix + name + ("" if tag == "latest" and draw(st.booleans()) else f":{tag}")
    if tag == "latest" and draw(st.booleans()):
        text += ":local"
    text = "".join(draw(st.sampled_from((char.lower(), char.upper()))) for char in text)
    space = st.sampled_from(["", " ", "\t", "\n", "\u00a0", "\u2003", "\u3000"])
    return draw(space) + text + draw(space)


@given(
    spelling=denied_spellings(),
    kind=st.sampled_from(["infer", "pull", "push", "create", "from", "copy", "delete", "source"]),
)
@settings(max_examples=2500, deadline=None)
def test_a_denied_model_is_denied_in_every_spelling_g3(spelling: str, kind: str) -> None:
    """Of case, defaults, scheme, ending and space around it, for whatever would use or change it."""
    if kind == "infer":
        check = lambda: check_use(WITH_KEY, spelling)  # noqa: E731
    else:
        names = {
            "from": {"model": "coding/new", "from": spelling},
            "source": {"source": spelling, "destination": "coding/new"},
            "copy": {"source": "coding/x", "destination": spelling},
        }.get(kind, {"model": spelling})
        named = {"from": "create", "source": "copy"}.get(kind, kind)
        check = lambda: check_management(WITH_KEY, named, names, DEFAULT_REGISTRIES)  # noqa: E731
    with pytest.raises((Forbidden, BadRequest)):
        check()


# --- registries ------------------------------------------------------------------------------------------------------

EVERYTHING = Identity(Team("t", rights=frozenset(("infer", "read", "manage")), manage_models=("*",)), "k")
WORDS = """
127.0.0.1 10.0.0.1 169.254.169.254 192.168.1.1 0.0.0.0 2130706433 0x7f000001 017700000001 127.1 [::1] [::ffff:127.0.0.1]
localhost metadata.google.internal host.docker.internal kubernetes.default.svc router - _ localhost:5000 127.0.0.1:80
evil.example registry.ollama.ai.evil.example xregistry.ollama.ai registry.ollama.ai. hf.co. hf.co.evil.example
evil-hf.co ollama.ai ollama.com www.hf.co hf.com hf.co:443 HF.CO:443 hf.co:0443 registry.ollama.ai:443 xn--hf-.co
user@registry.ollama.ai user:pw@hf.co registry.ollama.ai@evil.example evil.example#hf.co evil.example?hf.co
evil.example\\hf.co hf.co%2eevil.example hf.co%00 registry.ollama.ai: hf\u3002co hf.c\u043e
"""
HOSTS = [*WORDS.split(), "hf.co\tevil"]
NAMES = [f"{scheme}{host}/library/x:latest" for host in HOSTS for scheme in ("", "https://")]


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_to_allowed_registries_only_g11(name: str) -> None:
    """Addresses, ports, credentials, other hosts, and what only looks like an allowed one."""
    assert len(NAMES) >= 60
    for kind, names in (
        ("pull", {"model": name}),
        ("push", {"model": name}),
        ("create", {"model": name}),
        ("copy", {"source": "x", "destination": name}),
    ):
        with pytest.raises((Forbidden, BadRequest)):
            check_management(EVERYTHING, kind, names, DEFAULT_REGISTRIES)
    for kind, names in (("create", {"model": "x", "from": name}), ("copy", {"source": name, "destination": "x"})):
        with pytest.raises((Forbidden, BadRequest)):
            check_management(EVERYTHING, kind, names, DEFAULT_REGISTRIES)


def test_allowed_registries_are_allowed_and_whatever_is_there_can_be_deleted_g11() -> None:
    """A model with another host may have come there before."""
    for name in ("x", "hf.co/user/x:Q4", "HuggingFace.co/user/x", "https://registry.ollama.ai/library/x"):
        for kind in ("pull", "push", "create", "delete"):
            assert may(kind, {"model": name}, EVERYTHING)
    assert may("delete", {"model": "evil.example/a/b"}, EVERYTHING)
    assert not is_refused(
        lambda: check_management(EVERYTHING, "pull", {"model": "reg.lan:5000/a/b"}, ("reg.lan:5000",))
    )


@pytest.mark.parametrize(
    "host", ["https://evil.example", "http://127.0.0.1:11434", "ollama.com", "HTTPS://OLLAMA.COM:443/x", "x"]
)
def test_a_model_of_another_server_is_refused_unless_it_is_allowed_g12(host: str) -> None:
    """Its requests would leave the network."""
    with pytest.raises(Forbidden, match="remote_hosts"):
        check_remote_host(EVERYTHING, host, ("other.example",))
    check_remote_host(TRUSTED, host, ())


def test_allowed_servers_are_compared_by_host_and_port_g12() -> None:
    """In any case of letters, with or without scheme and path."""
    for host in ("https://Ollama.com", "ollama.com/", "ollama.com", " https://ollama.com/api "):
        check_remote_host(EVERYTHING, host, ("ollama.com",))
    for host in (
        "https://ollama.com:444",
        "https://user@ollama.com",
        "ollama.com.evil.example",
        "https://x//ollama.com",
    ):
        with pytest.raises(Forbidden):
            check_remote_host(EVERYTHING, host, ("ollama.com",))
