"""`/router/explain` for a team: with its own chains, for whoever may ask."""

from __future__ import annotations

import pytest

from router.core.teams.keys import digest_of, make_key
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, get, hello, play, send

CODING, CHAT, OPS = (make_key(name, "0123456789abcdefghijABCDEFGHIJxy") for name in ("coding", "chat", "ops"))


def configuration(folder, *, coding="", **more):
    """Two teams, of which coding has a chain of its own for a name that all have."""
    for team, key, text in (
        ("coding", CODING, f"chains: {{ {OTHER}: [{SMALL}] }}\nmodels: {{ deny: [{MIDDLE}] }}\n{coding}"),
        ("chat", CHAT, ""),
    ):
        keys = f'keys: [{{ id: k, sha256: "{digest_of(key.encode()).hex()}" }}]'
        (folder / f"{team}.yaml").write_text(f"team: {team}\n{keys}\n{text}\n")
    return {"defaults.auto_chains": "off", "teams": str(folder / "*.yaml"), **more}


async def explain(one, key=None, **query):
    """Return status and body of an explanation."""
    text = "&".join(f"{name}={value}" for name, value in query.items())
    headers = [("Authorization", f"Bearer {key}")] if key else []
    reply = await get(one.router.admin_url, f"/router/explain?{text}", headers)
    return reply.status, reply.json()


def chosen(answer):
    """Return the variant of an explanation, and whose it is."""
    status, body = answer
    assert status == 200, body
    return body["chosen"], body["team"]


def test_an_operator_explains_the_requests_of_each_team(tmp_path):
    """With the team's own chain; without a team those of the default one."""

    async def story(one):
        return [chosen(await explain(one, model=OTHER, **of)) for of in ({}, {"team": "coding"}, {"team": "chat"})]

    assert play(story, configuration(tmp_path)) == [(OTHER, None), (SMALL, "coding"), (OTHER, "chat")]


def test_an_operator_reads_which_variants_a_team_is_denied(tmp_path):
    """They stand in no row, because nothing would serve them; the team itself does not read them."""

    async def story(one):
        asked = ((None, {"team": "coding"}), (None, {"team": "chat"}), (None, {}), (CODING, {}))
        found = [(await explain(one, key, model="best", **of))[1] for key, of in asked]
        return [(row["denied"], [each["model"] for each in row["variants"]]) for row in found]

    chain = {"chains": {"best": [MIDDLE, SMALL]}}
    denied, chat, default, own = play(story, configuration(tmp_path, **chain))
    assert denied == ([MIDDLE], [SMALL])
    assert chat == default == ([], [MIDDLE])
    assert own == ([], [SMALL])


@pytest.mark.parametrize(
    ("key", "misspelt", "meant"),
    [(None, "qwen3:32", BIG), (None, "bset", "best"), (None, "llama3.1:8", MIDDLE), (CODING, "llama3.1:8", SMALL)],
)
def test_a_misspelt_name_is_answered_with_the_one_that_is_meant(tmp_path, key, misspelt, meant):
    """A model or a chain; a team does not read names that it is denied."""

    async def story(one):
        return await explain(one, key, model=misspelt)

    status, body = play(story, configuration(tmp_path, chains={"best": [BIG]}))
    hint = f" (did you mean {meant}?)" if meant else ""
    assert (status, body["error"]) == (404, f"model '{misspelt}' not found{hint}")


def test_the_explanation_is_what_the_team_gets(tmp_path):
    """Its next request is served by the variant that was explained, also where floors of others count."""

    async def story(one):
        found = []
        for team, key in (("coding", CODING), ("chat", CHAT)):
            explained = (await explain(one, model=OTHER, team=team))[1]
            bearer = [("Authorization", f"Bearer {key}")]
            reply = await send(one.router.url, "POST", "/api/generate", hello(OTHER, stream=False), bearer)
            found.append((explained["chosen"], reply.json()["model"] if reply.status == 200 else None))
        return found

    assert play(story, configuration(tmp_path)) == [(SMALL, SMALL), (OTHER, OTHER)]
    floor = configuration(tmp_path, coding="vram: { floor: 90% }")
    assert play(story, floor) == [(SMALL, SMALL), (OTHER, OTHER)]


def test_the_key_of_a_team_explains_its_own_requests_only(tmp_path):
    """Also beyond loopback, where everything else needs an admin key; with one, those of all."""
    admins = [{"id": "ops", "sha256": digest_of(OPS.encode()).hex()}]

    async def story(one):
        own = [chosen(await explain(one, CODING, model=OTHER, **of)) for of in ({}, {"team": "coding"})]
        status, body = await explain(one, CODING, model=OTHER, team="chat")
        others = [(await explain(one, key, model=OTHER))[0] for key in (None, "or_x")]
        return own, (status, body["error"]), others, chosen(await explain(one, OPS, model=OTHER, team="chat"))

    async def state(one):
        reply = await get(one.router.admin_url, "/router/state", [("Authorization", f"Bearer {CODING}")])
        return reply.status

    own, (status, error), others, operators = play(story, configuration(tmp_path, admin="0.0.0.0:0", admin_keys=admins))
    assert own == [(SMALL, "coding")] * 2
    assert (status, "its own requests only" in error) == (403, True)
    assert (others, operators) == ([401, 401], (OTHER, "chat"))
    assert play(state, configuration(tmp_path, admin="0.0.0.0:0", admin_keys=admins)) == 401


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ({"model": OTHER, "team": "codnig"}, 400, "there is no team 'codnig': there are anonymous, chat, coding"),
        ({"model": MIDDLE, "team": "coding"}, 403, "team coding may not use the model"),
        ({"model": "nobody:1b", "team": "coding"}, 404, "not found"),
    ],
)
def test_what_the_team_would_be_refused_is_refused(query, status, text, tmp_path):
    """A team that does not exist, a model that it may not use, one that there is not."""

    async def story(one):
        return await explain(one, **query)

    found, body = play(story, configuration(tmp_path))
    assert (found, text in body["error"]) == (status, True)


def test_a_team_is_explained_within_its_largest_context(tmp_path):
    """As the edge reduces its requests."""

    async def story(one):
        return [
            (await explain(one, model=SMALL, num_ctx=16384, team=team))[1]["variants"][0]["num_ctx"]
            for team in ("coding", "chat")
        ]

    assert play(story, configuration(tmp_path, coding="caps: { num_ctx: 4096 }")) == [4096, 16384]


def test_a_team_does_not_read_what_is_loaded_for_others(tmp_path):
    """Where its own request would evict a model that it may not see; an operator reads the name."""

    async def story(one):
        await send(one.router.url, "POST", "/api/generate", hello(BIG, stream=False))
        own, operators = await explain(one, CODING, model=OTHER), await explain(one, model=OTHER, team="coding")
        return [[row["evicts"] for row in body["variants"]] for _, body in (own, operators)]

    coding = f"models: {{ deny: ['{BIG}'] }}\nchains: {{}}"
    files = configuration(tmp_path)
    text = (tmp_path / "coding.yaml").read_text()
    (tmp_path / "coding.yaml").write_text("\n".join([*text.splitlines()[:2], coding]))
    assert play(story, files) == [[["a model of others"]], [[BIG]]]
