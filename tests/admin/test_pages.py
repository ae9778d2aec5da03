"""The admin listener: its answers, the allowed host names, and that its pages load nothing from other sites."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.admin.askers import Asker, Askers
from router.admin.focus import COLUMNS, Price
from router.admin.pages import MAX_CHAT_BYTES, Parts, _assets, admin_app
from router.config import load_config, rulebook_of
from router.core.teams.usage import FIGURES
from router.errors import BadRequest, ModelNotFound
from router.routing.ruled import RulesInForce

URL, OWN = "http://127.0.0.1:11436", {"x-router-admin": "1"}


class Facts:
    """An inspector with fixed answers."""

    is_ready = True

    def explain(self, model: str, num_ctx: int | None, asker: Asker) -> dict[str, Any]:
        if model == "gone":
            raise ModelNotFound("model 'gone' not found")
        return {"requested": model, "num_ctx": num_ctx, "variants": [], "team": asker.team}

    def state(self) -> dict[str, Any]:
        return {"gpus": [{"name": "<img src=x onerror=alert(1)>", "free_bytes": 1 << 34}], "expires_in_s": float("inf")}

    def decisions(self) -> list[dict[str, Any]]:
        return [{"request_id": "r1", "chosen": "a"}]

    def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"upstream": self.is_ready}

    def config(self) -> dict[str, Any]:
        return {"listen": "127.0.0.1:11435"}


class Deeds:
    """Actions that only remember what was asked for."""

    def __init__(self) -> None:
        self.forgotten: list[str | None] = []

    async def forget(self, model: str | None) -> dict[str, Any]:
        self.forgotten.append(model)
        return {"model": model, "forgotten": 3}

    def unload(self, model: str) -> dict[str, Any]:
        return {"unloads": model}

    def keep(self, model: str, *, is_kept: bool) -> dict[str, Any]:
        return {"model": model, "kept": is_kept}

    def drain(self, *, is_draining: bool) -> dict[str, Any]:
        return {"draining": is_draining}


class Screen:
    """A board, a feed and a chat with fixed answers."""

    def data(self) -> dict[str, Any]:
        return {"cards": []}

    async def events(self) -> AsyncIterator[bytes]:
        yield b"event: board\ndata: {}\n\n"

    async def answer(self, body: bytes) -> AsyncIterator[bytes]:
        if not body:
            raise BadRequest("missing request body")
        return self._parts(body)

    async def _parts(self, body: bytes) -> AsyncIterator[bytes]:
        yield b'{"router":{}}\n'
        yield body


class Books:
    """Accounts with one row, which say what they were asked, and one team."""

    problem = ""
    price = Price(0.35, "EUR")

    async def data(self) -> dict[str, Any]:
        return {"teams": [{"team": "coding"}]}

    async def rows(self, since: int, until: int, by: tuple[str, ...]) -> list[dict[str, Any]]:
        named = {"hour": since, "team": 'co,"ding', "model": str(until), "backend": "local"}
        return [{name: named[name] for name in by} | dict.fromkeys(FIGURES, 7)]


@pytest.fixture
def deeds() -> Deeds:
    return Deeds()


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
async def client(facts: Facts, deeds: Deeds) -> AsyncIterator[httpx.AsyncClient]:
    screen = Screen()
    askers = Askers(RulesInForce(rulebook_of(load_config(env={}))), float)
    parts = Parts(
        facts, deeds, Books(), Books(), lambda: (b"up 1\n", "text/plain; version=1.0.0"), screen, screen, screen, askers
    )
    app = admin_app(parts, hosts=["router.example"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL, headers=OWN) as client:
        yield client


async def test_the_explanation_is_that_of_the_inspector(client: httpx.AsyncClient) -> None:
    """For the model and context of the query."""
    answer = await client.get("/router/explain", params={"model": "llama3.3:70b", "num_ctx": "8192"})
    assert answer.json() == {"requested": "llama3.3:70b", "num_ctx": 8192, "variants": [], "team": None}
    assert (await client.get("/router/explain?model=a&num_ctx=")).json()["num_ctx"] is None


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 400), ("model=", 400), ("model=a&num_ctx=x", 400), ("model=a&num_ctx=0", 400), ("model=a&num_ctx=-1", 400),
     ("model=a&num_ctx=" + "9" * 5000, 400),
     ("model=a&num_ctx=0000000000019999999999", 400), ("model=a&num_ctx=%D9%A3", 400), ("model=gone", 404)],
)  # fmt: skip
async def test_an_invalid_query_is_an_error(query: str, status: int, client: httpx.AsyncClient) -> None:
    """With the status and the text of the router's error."""
    answer = await client.get(f"/router/explain?{query}")
    assert (answer.status_code, bool(answer.json()["error"])) == (status, True)


async def test_state_decisions_and_configuration_are_json(client: httpx.AsyncClient) -> None:
    """Names of models and cards arrive as data; values that JSON does not have are text or null."""
    state = (await client.get("/router/state")).json()
    assert state["gpus"][0]["name"] == "<img src=x onerror=alert(1)>"
    assert state["expires_in_s"] is None
    assert (await client.get("/router/decisions")).json() == {"decisions": [{"request_id": "r1", "chosen": "a"}]}
    assert (await client.get("/router/config")).json() == {"listen": "127.0.0.1:11435"}


async def test_usage_is_summed_as_the_query_says(client: httpx.AsyncClient) -> None:
    """Ends of the period are whole hours, UTC unless they say otherwise; a date is its first hour."""
    asked = {"from": "2027-01-15T08:30", "to": "2027-01-15T11:30+02:00", "by": "hour,team,model"}
    found = (await client.get("/router/usage", params=asked)).json()
    assert (found["from"], found["to"], found["by"]) == (
        "2027-01-15T08:00Z", "2027-01-15T10:00Z", ["hour", "team", "model"]
    )  # fmt: skip
    assert found["usage"] == [
        {"hour": "2027-01-15T08:00Z", "team": 'co,"ding', "model": str(1_800_007_200), **dict.fromkeys(FIGURES, 7)}
    ]
    default = (await client.get("/router/usage")).json()
    assert (default["from"], default["to"], default["by"]) == (None, None, ["team", "model"])


@pytest.mark.parametrize("query", ["from=0001-01-01T00:00%2B14:00", "to=9999-12-31T23:59"])
async def test_usage_to_the_ends_of_the_calendar_is_all_of_it(query: str, client: httpx.AsyncClient) -> None:
    """Years before the first hour of Unix time and after the last one of the calendar have no usage."""
    found = (await client.get(f"/router/usage?{query}&by=hour")).json()
    assert (found["from"], found["to"], found["usage"][0]["hour"]) == (None, None, "1970-01-01T00:00Z")


async def test_usage_that_is_not_complete_says_so(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Because its file cannot be written now."""
    assert "problem" not in (await client.get("/router/usage")).json()
    monkeypatch.setattr(Books, "problem", "disk full")
    assert (await client.get("/router/usage")).json()["problem"] == "disk full"


async def test_usage_can_be_csv(client: httpx.AsyncClient) -> None:
    """With a line of titles, and quoted where it must be."""
    answer = await client.get("/router/usage?by=team,hour&format=csv&from=2027-01-15")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text == (
        f"team,hour,{','.join(FIGURES)}\r\n" + '"co,""ding",2027-01-15T00:00Z' + ",7" * len(FIGURES) + "\r\n"
    )


async def test_usage_can_be_focus_with_a_cost_for_each_hour_team_model_and_backend(client: httpx.AsyncClient) -> None:
    """Whatever `by` says; all columns of FOCUS 1.0 are there."""
    answer = await client.get("/router/usage?by=kind&format=focus&from=2027-12-15&to=2027-12-16")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(answer.text.splitlines())
    assert list(row) == list(COLUMNS)
    assert (row["SubAccountId"], row["ResourceId"]) == ('co,"ding', "local/1828915200")
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2027-12-15T00:00:00Z", "2027-12-15T01:00:00Z")
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2027-12-01T00:00:00Z", "2028-01-01T00:00:00Z")
    assert (row["ConsumedQuantity"], row["BilledCost"]) == ("0.000003889", "0.000001361")
    assert (row["ListUnitPrice"], row["BillingCurrency"], row["x_TokensOut"]) == ("0.35", "EUR", "7")


async def test_teams_are_json(client: httpx.AsyncClient) -> None:
    assert (await client.get("/router/teams")).json() == {"teams": [{"team": "coding"}]}


async def test_a_misspelt_name_of_usage_is_answered_with_the_one_that_is_meant(client: httpx.AsyncClient) -> None:
    """And with all that there are."""
    answer = await client.get("/router/usage?by=teem")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("by='teem' is not a name (did you mean team?): allowed are hour, team, ")


@pytest.mark.parametrize(
    "query", ["by=teem", "by=team;model", "format=xml", "from=yesterday", "to=2027-13-01", "since=2027-01-01",
              "from=" + "9" * 5000, "by=hour,drop table usage", "to=9999-99-99", "from=9999-12-31T23:59-14:00"],
)  # fmt: skip
async def test_a_wrong_query_of_the_usage_says_what_is_allowed(query: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/router/usage?{query}")
    assert (answer.status_code, bool(answer.json()["error"])) == (400, True)


async def test_without_an_upstream_the_router_is_healthy_but_not_ready(client: httpx.AsyncClient, facts: Facts) -> None:
    """`/healthz` reports on the process alone."""
    assert (await client.get("/readyz")).status_code == 200
    facts.is_ready = False
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "upstream": False})
    assert (await client.get("/healthz")).status_code == 200


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    """Body and content type are those of the exposition."""
    answer = await client.get("/metrics")
    assert (answer.text, answer.headers["content-type"]) == ("up 1\n", "text/plain; version=1.0.0")


@pytest.mark.parametrize(("query", "model"), [("", None), ("?model=", None), ("?model=a:7b", "a:7b")])
async def test_what_was_learned_is_forgotten_by_a_post(
    query: str, model: str | None, client: httpx.AsyncClient, deeds: Deeds
) -> None:
    """For one model or for all; looking at the address changes nothing."""
    assert (await client.get(f"/router/forget{query}")).status_code == 405
    answer = await client.post(f"/router/forget{query}")
    assert (answer.json(), deeds.forgotten) == ({"model": model, "forgotten": 3}, [model])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/router/unload?model=a:7b", {"unloads": "a:7b"}),
        ("/router/keep?model=a:7b", {"model": "a:7b", "kept": True}),
        ("/router/keep?model=a:7b&on=false", {"model": "a:7b", "kept": False}),
        ("/router/drain", {"draining": True}),
        ("/router/drain?on=0", {"draining": False}),
    ],
)
async def test_what_the_dashboard_does_is_a_post(path: str, found: Any, client: httpx.AsyncClient) -> None:
    """Unload and keep a model, drain the router; a link cannot do it."""
    assert (await client.get(path)).status_code == 405
    assert (await client.post(path)).json() == found


@pytest.mark.parametrize("path", ["/router/unload", "/router/keep?model=", "/router/keep?model=a&on=perhaps"])
async def test_an_action_without_its_parameters_is_an_error(path: str, client: httpx.AsyncClient) -> None:
    """It says which one is missing or wrong."""
    assert (await client.post(path)).status_code == 400


async def test_the_board_comes_once_or_as_events(client: httpx.AsyncClient) -> None:
    """Both are the same data."""
    assert (await client.get("/router/board")).json() == {"cards": []}
    answer = await client.get("/router/events")
    assert (answer.headers["content-type"], answer.text) == (
        "text/event-stream; charset=utf-8",
        "event: board\ndata: {}\n\n",
    )


async def test_the_chat_streams_the_decision_and_the_answer(client: httpx.AsyncClient) -> None:
    """What Ollama would refuse is refused, and so is a body that no chat needs."""
    answer = await client.post("/router/chat", content=b'{"model":"a"}')
    assert answer.text == '{"router":{}}\n{"model":"a"}'
    assert (await client.post("/router/chat")).status_code == 400
    assert (await client.post("/router/chat", content=b" " * (MAX_CHAT_BYTES + 1))).status_code == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:11436", 200), ("https://evil.example", 403), ("null", 403), ("http://127.0.0.1:8080", 403)],
)
async def test_a_page_of_another_site_cannot_post(
    origin: str, status: int, client: httpx.AsyncClient, deeds: Deeds
) -> None:
    """A browser names the page's origin; the dashboard's own is allowed."""
    answer = await client.post("/router/forget", headers={"origin": origin})
    assert (answer.status_code, len(deeds.forgotten)) == (status, status == 200)


@pytest.mark.parametrize("path", ["/", "/main.js", "/dashboard.css", "/favicon.svg", "/router/state", "/nowhere"])
async def test_every_answer_has_the_security_headers(path: str, client: httpx.AsyncClient) -> None:
    """Errors too: own scripts and styles only, no frames, no sniffing, no referrer."""
    headers = (await client.get(path)).headers
    assert headers["content-security-policy"].startswith("default-src 'self'; frame-ancestors 'none'")
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


async def test_the_dashboard_works_offline_and_shows_names_as_text(client: httpx.AsyncClient) -> None:
    """It has no URL of another host, no inline script or style, and never turns data into markup."""
    page = (await client.get("/")).text
    scripts = [path.name for path in _assets() if path.suffix == ".js"]
    script = "".join([(await client.get(f"/{name}")).text for name in scripts])
    style = (await client.get("/dashboard.css")).text
    assert not re.search(r"https?://|//[a-z]", page + style)
    assert "<style" not in page and "style=" not in page and " on" not in re.sub(r"[^<]*>", "", page)
    for name in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert (await client.get(f"/{name}")).status_code == 200
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:11436", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:11436", 200), ("192.0.2.1", 200),
     ("router.example:80", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403)],
)  # fmt: skip
async def test_other_host_names_are_refused(host: str, status: int, client: httpx.AsyncClient) -> None:
    """A page whose name was rebound to this address cannot read anything."""
    assert (await client.get("/router/state", headers={"host": host})).status_code == status


async def test_what_only_shows_something_accepts_no_post(client: httpx.AsyncClient) -> None:
    """The pages, explanations and the configuration."""
    for path in ("/", "/router/explain?model=a", "/router/state", "/router/config", "/healthz"):
        assert (await client.post(path)).status_code == 405


async def test_the_answer_to_an_unknown_path_is_json(client: httpx.AsyncClient) -> None:
    """Scripts can parse it."""
    answer = await client.get("/debug/pprof")
    assert (answer.status_code, json.loads(answer.content)) == (404, {"error": "not found"})
