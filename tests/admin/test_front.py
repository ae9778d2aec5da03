"""What a front explains and shows of its nodes."""

from __future__ import annotations

import pytest

from router.core.teams.keys import digest_of, make_key
from router.errors import BadRequest, ModelNotFound
from tests.config.keys.play import get
from tests.routing.front.stage import BIG, MIDDLE, SMALL, FakeNode, play

CODING = make_key("coding", "0123456789abcdefghijABCDEFGHIJxy")


def teams(folder):
    """Return the configuration of a team that may not use one of the models."""
    text = f'team: coding\nkeys: [{{ id: k, sha256: "{digest_of(CODING.encode()).hex()}" }}]\n'
    (folder / "coding.yaml").write_text(f"{text}models: {{ deny: ['{BIG}'] }}\n")
    return {"teams": str(folder / "*.yaml")}


async def explain(one, query, key=None):
    """Return status and body of an explanation of the front."""
    headers = [("Authorization", f"Bearer {key}")] if key else []
    reply = await get(one.front.admin_url, f"/router/explain?{query}", headers)
    return reply.status, reply.json()


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ("", BadRequest, "model is required"),
        ("not a name", BadRequest, "invalid model name"),
        ("unknown:1b", ModelNotFound, "model 'unknown:1b' not found"),
    ],
)
def test_a_name_that_means_nothing_to_any_node_is_an_error_that_says_which(model, error, text, tmp_path):
    """No name, an impossible one, and one that no node has."""

    async def story(one):
        with pytest.raises(error, match=text):
            one.front.router.inspector.explain(model)

    play(story, (FakeNode("a"),), tmp_path)


def test_a_front_shows_no_figure_that_only_its_nodes_know(tmp_path):
    """Nothing, instead of a 0 that would be wrong."""

    async def story(one):
        return (await get(one.front.admin_url, "/router/board")).json()

    board = play(story, (FakeNode("a"),), tmp_path)
    assert board["totals"]["switches"] is None
    assert board["totals"]["requests"] == 0


def test_without_a_node_that_answers_the_explanation_says_why_instead_of_not_found(tmp_path):
    """The model may well be on one of them."""

    async def story(one):
        return await explain(one, f"model={SMALL}")

    status, body = play(story, (FakeNode("a", is_silent=True),), tmp_path)
    assert (status // 100, "not found" in body["error"]) == (5, False), body


def test_a_front_explains_a_team_its_own_requests_and_refuses_what_the_team_may_not_use(tmp_path):
    """Which is by its rules, not by what the nodes have."""

    async def story(one):
        return [await explain(one, f"model={model}", CODING) for model in (MIDDLE, BIG)]

    (own, body), (denied, refused) = play(story, (FakeNode("a"),), tmp_path, teams(tmp_path))
    assert (own, body["chosen"], body["team"], body["backend"], body["notes"]) == (200, MIDDLE, "coding", "a", [])
    assert (denied, "team coding may not use the model" in refused["error"]) == (403, True)


def test_a_node_that_finds_out_by_loading_shows_no_cards(tmp_path):
    """An explanation says that they are unknown; those of another node are shown."""
    nodes = (FakeNode("a", changes={"memory": "verify"}), FakeNode("b", models=(SMALL,)))

    async def story(one):
        explained = [await one.admin(f"/router/explain?model={model}") for model in (BIG, MIDDLE)]
        return explained, await one.admin("/router/state")

    explained, state = play(story, nodes, tmp_path)
    assert [(found["backend"], found["memory"], found["gpus"]) for found in explained] == [("a", "verify", None)] * 2
    assert [gpu["backend"] for gpu in state["gpus"]] == ["b"]


def test_a_front_lists_its_newest_decision_first(tmp_path):
    """And no more of them than are asked for."""

    async def story(one):
        for model in (SMALL, MIDDLE):
            assert (await one.ask(model))[0] == 200
        inspector = one.front.router.inspector
        return [[row["requested"] for row in inspector.decisions(most)] for most in (None, 1)]

    assert play(story, (FakeNode("a"),), tmp_path) == [[MIDDLE, SMALL], [MIDDLE]]
