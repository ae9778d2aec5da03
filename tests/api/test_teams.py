"""Teams at the edge: who asks, what that allows, and what of a key is seen anywhere (docs/reliability.md, G)."""

from __future__ import annotations

import base64
import gc
import json
import logging
import weakref
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

import pytest

from router.api.permissions import Permissions
from router.api.settings import EdgeSettings
from router.core.ollama.routes import ROUTES
from router.core.teams.identity import Identities
from router.core.teams.keys import digest_of, make_key
from router.core.teams.team import ANYONE, Caps, Key, Team
from router.http.client.response import UpstreamResponse
from router.http.server.proxies import Proxies
from router.routing.directory import VirtualModel
from tests.fakes import FakeDispatcher, RawClient, Reply, client, running_edge
from tests.http.scripted_relay import ScriptedRelay

SECRET = "0123456789abcdefghijABCDEFGHIJxy"
KEY, OTHER_KEY, OLD_KEY = make_key("coding", SECRET), make_key("chat", SECRET), make_key("coding", SECRET[::-1])
UNKNOWN, TYPO, FOREIGN = make_key("coding", "x" * 32), KEY[:-1] + "-", "sk-foreign-0123456789"
EXPIRY_S, DIGEST = 1000.0, "sha256:" + "0" * 64
CODING = Team(
    "coding",
    keys=(Key("ci", digest_of(KEY.encode())), Key("old", digest_of(OLD_KEY.encode()), EXPIRY_S)),
    rights=frozenset(("infer", "read", "manage")),
    allow=("coder:*", "fast"),
    deny=("coder:1b",),
    manage_models=("coding/*",),
    caps=Caps(num_ctx=4096, keep_alive_s=600.0),
)
CHAT = Team(
    "chat",
    keys=(Key("web", digest_of(OTHER_KEY.encode())), Key("sk", digest_of(FOREIGN.encode()))),
    networks=(ip_network("10.9.0.0/16"),),
    deny=("coder:*",),
)
CHANGING = [route for route in ROUTES if route.right in ("manage", "account")]
INFERRING = [route for route in ROUTES if route.right == "infer" and route.kind != "v1_audio"]
CHAT_BODY = '{"model":"coder:7b","messages":[{"role":"user","content":"x"}],"stream":false}'
BEARER = ("Authorization", f"Bearer {KEY}")


@dataclass
class Rules:
    """Rules that can be replaced, as by a reload, and a clock."""

    identities: Identities | None = field(default_factory=lambda: Identities((CODING, CHAT), ANYONE.team))
    now_s: float = 0.0

    def clock(self) -> float:
        return self.now_s


def scripted(body: bytes = b'{"done":true}') -> FakeDispatcher:
    return FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, (), body)))


def asked(dispatcher: FakeDispatcher):
    return dispatcher.relay.requests  # type: ignore[attr-defined]


def edge(dispatcher: FakeDispatcher, rules: Rules | None = None, settings: EdgeSettings | None = None):
    rules = rules or Rules()
    settings = settings or EdgeSettings(is_loopback=False)
    return running_edge(dispatcher, settings, rules=rules, clock=rules.clock)


async def ask(raw: RawClient, method: str, target: str, body: str | None = None, *headers: tuple[str, str]) -> Reply:
    return await raw.ask(method, target, body, headers)


# --- who asks --------------------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


WAYS = {
    "bearer": ("", [BEARER]),
    "x-api-key": ("", [("X-Api-Key", KEY)]),
    "basic": ("", [basic("langchain", KEY)]),
    "basic-user": ("", [basic(KEY, "")]),
    "path": (f"/t/{KEY}", []),
    "path-escaped": ("/t/" + "".join(f"%{ord(char):02x}" for char in KEY), []),
    "path-and-placeholder": (f"/t/{KEY}", [("Authorization", "Bearer ollama")]),
    "the-same-twice": (f"/t/{KEY}", [BEARER, ("x-api-key", KEY)]),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_to_send_a_key_leads_to_the_same_team_g4(way: str) -> None:
    """On the routes of Ollama, OpenAI and Anthropic; twice, because a head that repeats is not read again."""
    prefix, headers = WAYS[way]
    dispatcher = scripted()
    async with edge(dispatcher) as running, client(running.port) as raw:
        for target in ("/api/chat", "/api/chat", "/v1/chat/completions", "/v1/messages"):
            body = CHAT_BODY.replace("}]", '}],"max_tokens":9')
            assert (await ask(raw, "POST", prefix + target, body, *headers)).status == 200
        assert [(call.team, call.identity.key_id) for call in dispatcher.calls] == [("coding", "ci")] * 4
        assert {sent.target for sent in asked(dispatcher)} == {b"/api/chat", b"/v1/chat/completions", b"/v1/messages"}


@pytest.mark.parametrize("way", WAYS)
async def test_two_different_keys_are_a_bad_request_g4(way: str) -> None:
    """Whichever is right: a proxy in front may have looked at the other one."""
    prefix, headers = WAYS[way]
    dispatcher = scripted()
    added = [("x-api-key", OTHER_KEY)] if way != "x-api-key" else [("Authorization", f"Bearer {OTHER_KEY}")]
    async with edge(dispatcher) as running, client(running.port) as raw:
        for target in ("/api/chat", "/v1/chat/completions", "/api/tags"):
            method = "GET" if target == "/api/tags" else "POST"
            reply = await ask(raw, method, prefix + target, None if method == "GET" else CHAT_BODY, *headers, *added)
            assert reply.status == 400
            assert "two different keys" in reply.body.decode()
        assert not asked(dispatcher)


@pytest.mark.parametrize("key", [UNKNOWN, TYPO, OLD_KEY, "sk-unknown", KEY + "x", KEY[:40]], ids=range(6))
@pytest.mark.parametrize("way", [lambda key: ("", [("Authorization", f"Bearer {key}")]), lambda key: (f"/t/{key}", [])])
async def test_a_wrong_key_is_refused_in_the_shape_of_its_route_g7(key: str, way) -> None:
    """401 with a challenge on /v1; on /api 403 with a string, because the CLI pulls after a 404 and signs in after 401.

    An unknown key is never taken for none: who shows one that was revoked is to notice.
    """
    rules, dispatcher = Rules(now_s=EXPIRY_S), scripted()
    prefix, headers = way(key)
    async with edge(dispatcher, rules) as running, client(running.port) as raw:
        for route in INFERRING:
            reply = await ask(raw, "POST", prefix + route.pattern, CHAT_BODY, *headers)
            error = reply.json()["error"]
            if route.dialect == "ollama":
                assert reply.status == 403
                assert isinstance(error, str)
                assert "www-authenticate" not in reply.headers
                continue
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
            kind = "authentication_error" if route.dialect == "anthropic" else "invalid_request_error"
            assert error["type"] == kind
            assert route.dialect == "anthropic" or error["code"] == "invalid_api_key"
            assert key not in reply.body.decode()
        for method, target in (
            ("GET", "/api/tags"),
            ("GET", "/api/ps"),
            ("HEAD", "/api/tags"),
            ("GET", "/api/version"),
        ):
            assert (await ask(raw, method, prefix + target, None, *headers)).status == 403
        assert (await ask(raw, "GET", prefix + "/v1/models", None, *headers)).status == 401
        assert (await ask(raw, "HEAD", prefix + "/", None, *headers)).status == 200  # only says that something listens
        assert not asked(dispatcher)


async def test_without_a_key_the_network_decides_by_the_clients_address() -> None:
    """As far as trusted proxies say; a placeholder counts as no key."""
    dispatcher = scripted()
    settings = EdgeSettings(proxies=Proxies((ip_network("127.0.0.1"),)))
    async with edge(dispatcher, settings=settings) as running, client(running.port) as raw:
        for address in ("10.9.1.1", "10.8.1.1", "10.9.1.1"):
            for header in (("Authorization", "Bearer EMPTY"), ("Accept", "*/*")):
                reply = await ask(
                    raw, "POST", "/api/chat", CHAT_BODY.replace("coder", "x"), ("X-Forwarded-For", address), header
                )
                assert reply.status == 200
        teams = [call.team for call in dispatcher.calls]
        assert teams == ["chat", "chat", "anonymous", "anonymous", "chat", "chat"]


async def test_a_router_that_needs_a_key_says_so_g7() -> None:
    """Without a default team, and without a right of the default team."""
    for identities in (Identities((CODING,)), Identities((CODING,), Team("nobody", rights=frozenset()))):
        dispatcher = scripted()
        async with edge(dispatcher, Rules(identities)) as running, client(running.port) as raw:
            reply = await ask(raw, "POST", "/api/chat", CHAT_BODY)
            assert reply.status == 403
            assert "/t/KEY" in reply.json()["error"]
            assert (await ask(raw, "POST", "/v1/chat/completions", CHAT_BODY)).status == 401
            assert (await ask(raw, "POST", "/api/chat", CHAT_BODY, BEARER)).status == 200
            assert len(asked(dispatcher)) == 1


async def test_a_revoked_key_fails_on_the_next_request_of_an_open_connection_t4() -> None:
    """Though its head is one that was read before; and a new key counts at once. A key can return, too."""
    rules, dispatcher = Rules(), scripted()
    before = rules.identities
    async with edge(dispatcher, rules) as running, client(running.port) as raw, client(running.port) as other:
        for _ in range(3):
            assert (await ask(raw, "POST", "/api/chat", CHAT_BODY, BEARER)).status == 200
            assert (await ask(other, "POST", "/api/chat", CHAT_BODY + " ", BEARER)).status == 200
        rules.identities = Identities((CHAT,), ANYONE.team)
        for one, body in ((raw, CHAT_BODY), (other, CHAT_BODY + " "), (other, CHAT_BODY), (raw, CHAT_BODY + "  ")):
            assert (await ask(one, "POST", "/api/chat", body, BEARER)).status == 403
        rules.identities = before
        assert (await ask(raw, "POST", "/api/chat", CHAT_BODY, BEARER)).status == 200
        rules.identities = None
        assert (await ask(raw, "POST", "/api/chat", CHAT_BODY, BEARER)).status == 200
    assert [call.team for call in dispatcher.calls] == [*["coding"] * 7, "anonymous"]


async def test_a_head_that_is_remembered_does_not_keep_the_identities_of_before_a_reload() -> None:
    """They hold all teams and keys, and a head is remembered long after its client has gone."""
    rules = Rules()
    async with edge(scripted(), rules) as running, client(running.port) as raw:
        assert (await ask(raw, "POST", "/api/chat", CHAT_BODY, BEARER)).status == 200
        before = weakref.ref(rules.identities)
        rules.identities = Identities((CODING, CHAT), ANYONE.team)
        gc.collect()
        assert before() is None


async def test_a_key_expires_while_its_connection_is_open_t4() -> None:
    """To the second, without a reload."""
    rules, dispatcher = Rules(now_s=EXPIRY_S - 1), scripted()
    async with edge(dispatcher, rules) as running, client(running.port) as raw:
        for target in (f"/t/{OLD_KEY}/api/chat", f"/t/{OLD_KEY}/api/tags"):
            method, body = ("POST", CHAT_BODY) if target.endswith("chat") else ("GET", None)
            rules.now_s = EXPIRY_S - 1
            assert (await ask(raw, method, target, body)).status == 200
            rules.now_s = EXPIRY_S
            reply = await ask(raw, method, target, body)
            assert reply.status == 403
            assert "expired" in reply.json()["error"]


async def test_without_teams_keys_are_ignored_and_no_path_begins_with_one() -> None:
    """A proxy in front may allow some paths only: no second spelling of a path may come into being."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        assert (await ask(raw, "POST", "/api/chat", CHAT_BODY, BEARER, ("x-api-key", "b"))).status == 200
        for prefix in (f"/t/{KEY}", "/t/x", "/t/", "/t//", "/t", "/t/x/t/y"):
            for target in ("/api/tags", "/api/delete", "/api/chat"):
                reply = await ask(raw, "DELETE" if "delete" in target else "POST", prefix + target, CHAT_BODY)
                assert reply.status in (404, 405)
        assert len(asked(dispatcher)) == 1


# --- rights ----------------------------------------------------------------------------------------------------------


def target_of(route) -> str:
    return route.pattern.replace(":digest", DIGEST).replace(":key", "k")


SHOWN = {
    "no key": ("", "", []),
    "placeholder": ("", "", [("Authorization", "Bearer ollama")]),
    "wrong key": ("", "", [("Authorization", f"Bearer {UNKNOWN}")]),
    "wrong key in the path": (f"/t/{UNKNOWN}", "", []),
    "mistyped key": ("", "", [("x-api-key", TYPO)]),
    "key in the query": ("", f"?key={KEY}&api_key={KEY}&token={KEY}&access_token={KEY}", []),
    "key of another team": ("", "", [("Authorization", f"Bearer {OTHER_KEY}")]),
    "key of another form of another team": ("", "", [("x-api-key", FOREIGN)]),
    "expired key": ("", "", [("Authorization", f"Bearer {OLD_KEY}")]),
    "key in a cookie": ("", "", [("Cookie", f"key={KEY}"), ("Referer", f"http://x/t/{KEY}/")]),
}


@pytest.mark.parametrize("shown", SHOWN)
async def test_nobody_changes_anything_without_the_key_for_it_g1(shown: str) -> None:
    """All routes that change something, on a listener for others and on one for this machine: nothing goes upstream."""
    prefix, query, headers = SHOWN[shown]
    body = '{"model":"coding/m","name":"coding/m","source":"coding/m","destination":"coding/n"}'
    for settings in (EdgeSettings(is_loopback=False), EdgeSettings()):
        dispatcher = scripted()
        async with edge(dispatcher, Rules(now_s=EXPIRY_S), settings) as running:
            for route in CHANGING:
                async with client(running.port) as raw:
                    target = prefix + target_of(route) + query
                    reply = await ask(raw, route.method, target, None if route.method == "HEAD" else body, *headers)
                    assert reply.status in (401, 403)
                    assert route.kind == "me" or reply.status == 403
                    assert not reply.body or isinstance(reply.json()["error"], str)
            assert not asked(dispatcher)


async def test_a_team_manages_its_models_and_no_others() -> None:
    """With the names as it has spelled them, each once."""
    dispatcher = scripted(b'{"status":"success"}')
    allowed = [
        ("POST", "/api/pull", {"model": "coding/x"}),
        ("POST", "/api/pull", {"name": "CODING/x:latest"}),
        ("POST", "/api/create", {"model": "coding/x", "from": "coder:7b"}),
        ("POST", "/api/copy", {"source": "coder:7b", "destination": "coding/x"}),
        ("DELETE", "/api/delete", {"model": "coding/x"}),
        ("POST", f"/api/blobs/{DIGEST}", None),
    ]
    refused = [
        ("POST", "/api/pull", {"model": "coder:7b"}),
        ("POST", "/api/pull", {"model": "", "name": "coder:7b"}),
        ("POST", "/api/pull", {"model": "coding/x", "MODEL": "coder:7b"}),
        ("POST", "/api/pull", {"model": "evil.example/coding/x"}),
        ("POST", "/api/push", {"model": "other/x"}),
        ("POST", "/api/create", {"model": "coding/x", "from": "other"}),
        ("POST", "/api/create", {"model": "coding/x", "From": "coder:1b"}),
        ("POST", "/api/create", {"model": "coding/x", "from": "coder:7b", "remote_host": "https://evil.example"}),
        ("POST", "/api/create", {"model": "coding/x", "from": "coder:7b", "Remote_Host": "ollama.com"}),
        ("POST", "/api/copy", {"source": "other", "destination": "coding/x"}),
        ("POST", "/api/copy", {"source": "coder:7b", "destination": "other"}),
        ("DELETE", "/api/delete", {"model": "coder:7b"}),
        ("POST", "/api/me", {}),
        ("POST", "/api/signout", {}),
        ("POST", "/api/experimental/web_search", {"query": "x"}),
    ]
    async with edge(dispatcher) as running, client(running.port) as raw:
        for method, target, body in allowed:
            reply = await ask(raw, method, target, json.dumps(body) if body else "", BEARER)
            assert reply.status == 200, (target, body)
        count = len(asked(dispatcher))
        assert count == len(allowed)
        for method, target, body in refused:
            reply = await ask(raw, method, target, json.dumps(body), BEARER)
            assert reply.status in (401, 403), (target, body)
        assert len(asked(dispatcher)) == count


async def test_a_team_uses_the_models_that_it_is_allowed_g3() -> None:
    """On every route that names one."""
    dispatcher = scripted()
    async with edge(dispatcher) as running, client(running.port) as raw:
        for name, is_allowed in (("coder:7b", True), ("Coder:1B", False), ("other", False), ("coding/x", True)):
            for route in INFERRING:
                body = CHAT_BODY.replace("coder:7b", name).replace("}]", '}],"max_tokens":9,"prompt":"x","input":"x"')
                reply = await ask(raw, "POST", route.pattern, body, BEARER)
                assert (reply.status == 200) is is_allowed, (name, route)
                if not is_allowed:
                    assert reply.status == 403
                    assert "team coding" in reply.body.decode()
            assert (await ask(raw, "POST", "/api/show", json.dumps({"model": name}), BEARER)).status == (
                200 if is_allowed else 403
            )
            if "/" not in name:  # not a part of that path, as for Ollama
                status = (await ask(raw, "GET", f"/v1/models/{name}", None, BEARER)).status
                assert status == (200 if is_allowed else 403)


PATHS = [
    lambda path: path,
    lambda path: path.replace("/api", "/%61pi"),
    lambda path: path.replace("/api", "/a%70%69"),
    lambda path: path.replace("/api/", "/api%2f"),
    lambda path: path.replace("/api", "//api"),
    lambda path: path.replace("/api/", "/api//"),
    lambda path: path.replace("/api", "/./api"),
    lambda path: path.replace("/api", "/api/tags/../../api"),
    lambda path: path.replace("/api", "/%2e/api"),
    lambda path: path.upper(),
    lambda path: path + "/",
    lambda path: path + "?model=coding/x",
    lambda path: path + ";x",
    lambda path: path + "%00",
    lambda path: f"http://127.0.0.1{path}",
    lambda path: f"/t/{KEY}{path}",
]
DENIED = [
    "coder:1b",
    "CODER:1B",
    "library/coder:1b",
    "registry.ollama.ai/library/Coder:1b",
    "https://registry.ollama.ai/library/coder:1B",
    "coder:1b:local",
    " coder:1b\t",
    "\u2003coder:1b",
    "coder:cloud",
    "coder:8b-cloud",
    "other",
]
ACTS = [
    ("POST", "/api/pull", '{"model":%s}'),
    ("POST", "/api/pull", '{"name":%s}'),
    ("POST", "/api/pull", '{"model":"coding/x","Model":%s}'),
    ("POST", "/api/push", '{"model":%s}'),
    ("POST", "/api/create", '{"model":%s}'),
    ("POST", "/api/create", '{"model":"coding/x","from":%s}'),
    ("POST", "/api/create", '{"model":"coding/x","\u017fource":"a","FROM":%s}'),
    ("POST", "/api/copy", '{"source":%s,"destination":"coding/x"}'),
    ("POST", "/api/copy", '{"source":"coding/x","destination":%s}'),
    ("DELETE", "/api/delete", '{"model":%s}'),
    ("DELETE", "/api/delete", '{"model":"","name":%s}'),
    ("POST", "/api/show", '{"model":%s}'),
]


async def test_no_spelling_of_path_and_name_leads_to_what_is_denied_g3_e4() -> None:
    """Some two thousand combinations, of which nothing is sent upstream."""
    dispatcher, count = scripted(), 0
    async with edge(dispatcher) as running:
        for spelled in PATHS:
            async with client(running.port) as raw:
                for method, path, body in ACTS:
                    for name in DENIED:
                        target = spelled(path)
                        headers = () if target.startswith("/t/") else (BEARER,)
                        if target.startswith("http:"):
                            async with client(running.port) as other:  # such a request is the last of its connection
                                reply = await ask(other, method, target, body % json.dumps(name), *headers)
                        else:
                            reply = await ask(raw, method, target, body % json.dumps(name), *headers)
                        assert reply.status in (301, 307, 400, 403, 404), (target, body, name)
                        count += 1
    assert count > 2000
    assert not asked(dispatcher)


async def test_requests_of_a_team_are_reduced_to_its_caps_g10() -> None:
    """A context and a keep_alive above them; smaller ones stay, and those of others too."""
    dispatcher = scripted()
    asks = '"options":{"num_ctx":%d,"seed":1},"keep_alive":%s,"model":"coder:7b","prompt":"x"'
    async with edge(dispatcher) as running, client(running.port) as raw:
        for num_ctx, keep_alive in ((8192, '"1h"'), (8192, "-1"), (2048, "60"), (4096, '"10m"')):
            reply = await ask(raw, "POST", "/api/generate", "{" + asks % (num_ctx, keep_alive) + "}", BEARER)
            assert reply.status == 200
        found = [(call.request.num_ctx, call.request.keep_alive_s) for call in dispatcher.calls]
        assert found == [(4096, 600.0), (4096, 600.0), (2048, 60.0), (4096, 600.0)]
        sent = [json.loads(call.body) for call in dispatcher.calls]
        assert [one["options"] for one in sent] == [{"num_ctx": n, "seed": 1} for n in (4096, 4096, 2048, 4096)]
        body = "{" + asks.replace("coder:7b", "x") % (8192, "-1") + "}"
        assert (await ask(raw, "POST", "/api/generate", body, ("x-api-key", OTHER_KEY))).status == 200
        assert json.loads(dispatcher.calls[-1].body)["options"]["num_ctx"] == 8192


@pytest.mark.parametrize(
    ("num_gpu", "by_team", "status", "sent"),
    [
        ("allow", None, 200, 7),
        ("allow", "ignore", 200, None),
        ("allow", "refuse", 403, None),
        ("ignore", None, 200, None),
        ("ignore", "allow", 200, 7),
        ("refuse", None, 403, None),
        ("refuse", "ignore", 200, None),
    ],
)
async def test_num_gpu_is_allowed_or_not_to_each_team_g10(num_gpu, by_team, status: int, sent: int | None) -> None:
    """Where the team's file says nothing, `clients` does; those of another team are not concerned."""
    dispatcher, rules = scripted(), Rules()
    capped = replace(CODING, caps=Caps(num_gpu=by_team))
    rules.identities = Identities((capped, CHAT), ANYONE.team)
    settings = EdgeSettings(is_loopback=False, permissions=Permissions(num_gpu=num_gpu))
    body = '{"model":"coder:7b","prompt":"x","options":{"num_gpu":7,"seed":1}}'
    async with edge(dispatcher, rules, settings) as running, client(running.port) as raw:
        reply = await ask(raw, "POST", "/api/generate", body, BEARER)
        other = await ask(raw, "POST", "/api/generate", body.replace("coder:7b", "x"), ("x-api-key", OTHER_KEY))
    assert (reply.status, other.status) == (status, 403 if num_gpu == "refuse" else 200)
    if status == 403:
        assert ("caps.num_gpu" if by_team else "clients.num_gpu") in reply.json()["error"]
    else:
        assert json.loads(dispatcher.calls[0].body)["options"].get("num_gpu") == sent
        assert dispatcher.calls[0].request.options.num_gpu == sent


async def test_rules_for_what_does_not_fit_are_allowed_or_not_to_each_team_g10() -> None:
    """By the team's file, which goes before `clients`."""
    dispatcher, rules = scripted(), Rules()
    rules.identities = Identities((replace(CODING, caps=Caps(nothing_fits=("refuse", "wait"))), CHAT), ANYONE.team)
    settings = EdgeSettings(is_loopback=False, permissions=Permissions(nothing_fits=("refuse", "passthrough")))
    found = {}
    async with edge(dispatcher, rules, settings) as running, client(running.port) as raw:
        for name, head in (("coding", BEARER), ("chat", ("x-api-key", OTHER_KEY))):
            for rule in ("refuse", "wait", "passthrough"):
                body = '{"model":"%s","prompt":"x"}' % ("coder:7b" if name == "coding" else "x")
                reply = await ask(raw, "POST", "/api/generate", body, head, ("x-router-nothing-fits", rule))
                found[name, rule] = reply.status
    assert [rule for (name, rule), status in found.items() if status == 200 and name == "coding"] == ["refuse", "wait"]
    assert [rule for (name, rule), status in found.items() if status == 200 and name == "chat"] == [
        "refuse",
        "passthrough",
    ]


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["secret", "SECRET:latest", "nothing"])
async def test_who_may_not_use_a_chain_does_not_learn_by_managing_models_that_there_is_one_g8(name: str) -> None:
    """Neither its name nor its variants: it is refused like a name that nobody has."""
    dispatcher = scripted()
    dispatcher.virtual = [VirtualModel("secret", ("gemma3:4b",))]
    requests = [
        ("POST", "/api/pull", {"model": name}),
        ("POST", "/api/push", {"model": name}),
        ("DELETE", "/api/delete", {"model": name}),
        ("POST", "/api/create", {"model": name, "from": "coder:7b"}),
        ("POST", "/api/create", {"model": "coding/x", "from": name}),
        ("POST", "/api/copy", {"source": name, "destination": "coding/x"}),
        ("POST", "/api/copy", {"source": "coder:7b", "destination": name}),
    ]
    async with edge(dispatcher) as running, client(running.port) as raw:
        for method, target, body in requests:
            reply = await ask(raw, method, target, json.dumps(body), BEARER)
            assert (reply.status, "team coding may" in reply.json()["error"]) == (403, True), (target, body)
    assert not asked(dispatcher)


def listed(names: list[str]) -> bytes:
    rows = [{"name": name, "model": name, "id": name, "size": 1} for name in names]
    return json.dumps({"models": rows, "data": rows}).encode()


async def test_lists_show_a_team_its_own_names_only_g8() -> None:
    """Installed models, loaded models and chains; a chain is shown with a variant that the team may not ask for."""
    dispatcher = scripted(listed(["coder:7b", "coder:1b", "gemma3:4b", "coding/x:1", "x:8b-cloud", "hidden"]))
    dispatcher.virtual = [VirtualModel("fast", ("gemma3:4b",)), VirtualModel("slow", ("gemma3:4b",))]
    dispatcher.hidden = {"hidden": "coder:7b"}
    views = [("/api/tags", "models", "name"), ("/v1/models", "data", "id"), ("/api/ps", "models", "name")]
    async with edge(dispatcher) as running, client(running.port) as raw:
        for target, rows, name in views:
            is_ps = target == "/api/ps"
            reply = await ask(raw, "GET", target, None, BEARER)
            seen = ["coder:7b", "coding/x:1", "coder:7b" if is_ps else "fast:latest"]
            assert [row[name] for row in reply.json()[rows]] == seen
            reply = await ask(raw, "GET", target, None, ("x-api-key", OTHER_KEY))
            seen = ["gemma3:4b", "coding/x:1", *([] if is_ps else ["fast:latest", "slow:latest"])]
            assert [row[name] for row in reply.json()[rows]] == seen
        assert (await ask(raw, "GET", "/api/status", None, BEARER)).json()["cloud"]["disabled"] is True


@pytest.mark.parametrize("target", ["/api/tags", "/v1/models"])
async def test_lists_have_the_chains_from_the_first_request_on_g8(target: str) -> None:
    """They wait for what is not known yet at the start."""
    dispatcher = scripted(listed(["coder:7b"]))
    dispatcher.late = [VirtualModel("fast", ("coder:7b",))]
    async with edge(dispatcher) as running, client(running.port) as raw:
        assert b"fast" in (await ask(raw, "GET", target, None, BEARER)).body


# --- what is seen of a key -------------------------------------------------------------------------------------------

CANARY = "canary" + "7" * 26
CANARIES = [make_key("coding", CANARY), make_key("coding", CANARY)[:-2], f"sk-{CANARY}"]


@pytest.mark.parametrize("is_known", [True, False])
async def test_no_key_is_seen_in_anything_that_is_written_g5(is_known: bool, caplog, capfd) -> None:
    """Answers, Locations, events, logs of any level, and what goes upstream: on good and bad requests of every kind."""
    caplog.set_level(logging.DEBUG)
    team = Team("coding", keys=tuple(Key(str(n), digest_of(key.encode())) for n, key in enumerate(CANARIES)))
    rules = Rules(Identities((team,) if is_known else (), ANYONE.team))
    dispatcher, events, warnings, seen = scripted(), [], [], []
    paths = ["/api/chat", "/api/tags", "/api//tags", "/api/x/../tags", "/nope", "/api/chat/", "/v1/models/x", "/", ""]
    fronts = ["/t/%s", "//t/%s", "/%%74/%s", "/./t/%s", "/x/../t/%s", "/T/%s", "/t%%2f%s", "/t/%s/t/%s"]
    async with running_edge(
        dispatcher,
        EdgeSettings(is_loopback=False),
        rules=rules,
        clock=rules.clock,
        emit=events.append,
        report=warnings.append,
    ) as running:
        for key in CANARIES:
            heads = [(front.replace("%s", key).replace("%%", "%") + path, []) for front in fronts for path in paths]
            for header in (("Authorization", f"Bearer {key}"), ("x-api-key", key), basic("u", key), basic(key, "")):
                heads += [(path, [header]) for path in paths if path]
                heads += [("/api/chat", [header, ("x-api-key", "another")]), ("/api/chat", [header, ("Host", "a b")])]
                heads += [("/api/tags", [header, ("Origin", "http://evil.example")])]
            for target, headers in heads:
                for method in ("POST", "GET", "PATCH"):
                    async with client(running.port) as raw:
                        body = CHAT_BODY if method == "POST" else None
                        reply = await ask(raw, method, target, body, ("Referer", f"http://r/t/{key}/"), *headers)
                        seen += [repr(reply.headers), reply.body.decode()]
    sent = [repr((one.target, one.headers, one.lines, one.body)) for one in asked(dispatcher)]
    texts = [*seen, *map(repr, events), *warnings, caplog.text, *capfd.readouterr(), *sent, repr(dispatcher.calls)]
    assert len(seen) > 500
    assert events
    assert not [text for text in texts if CANARY in text]


async def test_a_long_or_binary_credential_is_looked_up_and_refused_g5() -> None:
    """It is hashed at most, and never decoded or compared with each key."""
    dispatcher = scripted()
    async with edge(dispatcher) as running, client(running.port) as raw:
        for value in ("x" * 60_000, "".join(map(chr, range(128, 256))) * 8):
            reply = await ask(raw, "POST", "/v1/chat/completions", CHAT_BODY, ("Authorization", f"Bearer {value}"))
            assert reply.status == 401
        assert not asked(dispatcher)
