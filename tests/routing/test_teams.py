"""Teams with chains of their own: each gets its own variant, and a request keeps the rules that it began with."""

import json

import pytest

from router.config import load_config, rulebook_of
from router.core.teams.team import ANYONE, Identity
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL)
ONE, OTHER = f"[{MIDDLE.name}, {SMALL.name}]", f"[{SMALL.name}, {MIDDLE.name}]"


def options(folder, **chains):
    """Write a file for each team with its variants of `x`; return the configuration that names the files."""
    for name, variants in chains.items():
        (folder / f"{name}.yaml").write_text(f"team: {name}\nchains: {{ x: {variants} }}\n")
    return {"defaults.auto_chains": "off", "teams": str(folder / "*.yaml"), "chains": {"x": [BIG.name, SMALL.name]}}


def book_of(configuration, serial=1):
    return rulebook_of(load_config(env={}, options=configuration), serial)


def of(scene, team, model="x", **body):
    """Return a request of the team of that name; None = of nobody who is known."""
    identity = ANYONE if team is None else Identity(scene.rules.book.team(team), "key")
    return scene.unbegun(model, identity=identity, **body)


def keeping(story, found):
    """Return a story that adds its result to `found`."""

    async def kept(scene):
        found.append(await story(scene))

    return kept


def served(scene, call):
    """Return the variant that a request is sent to now; it is taken back."""
    scene.dispatcher.start(call, lambda _: None).give_up()
    return call.served


def test_two_teams_with_one_name_for_a_chain_get_each_its_own_variant_t3(tmp_path):
    """Also where both chains have as many variants, and whoever asks first; what is remembered is each team's own."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        await scene.make_resident(SMALL)
        for _ in range(2):
            assert served(scene, of(scene, "one")) == MIDDLE.name
            assert served(scene, of(scene, "other")) == SMALL.name
            assert served(scene, of(scene, "one", prompt="x")) == MIDDLE.name
        one, other = of(scene, "one"), of(scene, "other")
        for call in (one, other):
            scene.chains.begin(call)
        assert scene.decisions.known_destination(one).variant == MIDDLE.name
        assert scene.decisions.known_destination(other).variant == SMALL.name
        first, second = scene.decisions.chain_of(one), scene.decisions.chain_of(other)
        assert scene.decisions.key(one.request, first) != scene.decisions.key(other.request, second)
        assert scene.decisions.chain_of(of(scene, "one")) is not first  # before it begins it is nobody's
        assert scene.decisions.chain_of(one) is first

    routed(story, MemoryMachine(*ALL), options(tmp_path, one=ONE, other=OTHER))


def test_a_team_without_a_chain_of_its_own_has_that_of_all(tmp_path):
    """And shares what is remembered of it with all others."""

    async def story(scene):
        await scene.make_resident(SMALL)
        nobody, plain = of(scene, None), of(scene, "plain")
        for call in (nobody, plain):
            scene.chains.begin(call)
        assert scene.decisions.chain_of(nobody) is scene.decisions.chain_of(plain)
        assert [v.model for v in scene.decisions.chain_of(plain).variants] == [BIG.name, SMALL.name]

    configuration = options(tmp_path, one=ONE)
    (tmp_path / "plain.yaml").write_text("team: plain\n")
    routed(story, MemoryMachine(*ALL), configuration)


def test_a_request_keeps_the_rules_that_it_began_with(tmp_path):
    """One that begins after a reload has the new ones, though both are decided by the same machine."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        await scene.make_resident(SMALL)
        early, late = of(scene, "one"), of(scene, "one")
        scene.chains.begin(early)
        before = scene.rules.book
        scene.rules.replace(book_of(options(tmp_path, one=OTHER), serial=2))
        assert served(scene, early) == MIDDLE.name
        assert served(scene, late) == SMALL.name  # its team is of the book before, and it began after
        assert served(scene, of(scene, "one")) == SMALL.name
        assert (early.rules, late.rules.serial) == (before, 2)
        scene.chains.begin(early)
        assert early.rules is before

    routed(story, MemoryMachine(*ALL), options(tmp_path, one=ONE))


def test_a_rule_of_a_team_decides_where_nothing_fits(tmp_path):
    """For its requests only."""

    async def story(scene):
        found = [of(scene, team, "big:32b") for team in ("one", None)]
        for call in found:
            scene.chains.begin(call)
        rules = [scene.decisions.chain_of(call).rule.nothing_fits for call in found]
        assert rules == ["wait", "refuse"]

    configuration = options(tmp_path, one=ONE)
    (tmp_path / "one.yaml").write_text("team: one\nnothing_fits: wait\n")
    routed(story, MemoryMachine(*ALL), configuration)


def test_lists_show_a_team_its_own_chains(tmp_path):
    """And those of all; `/api/show` is of the variant that serves the team."""

    async def story(scene):
        def names(team):
            return [model.name for model in scene.directory.virtual_models(team)]

        book = scene.rules.book
        assert (names(None), names(book.team("one")), names(book.team("two"))) == (["x"], ["own", "x"], ["x"])
        await scene.make_resident(SMALL)
        assert await scene.directory.show_name("own", book.team("one")) == SMALL.name
        assert await scene.directory.show_name("own", book.team("two")) == "own"
        assert [scene.directory.is_known(name) for name in ("own", "x", "SMALL:3b", "none", "a b")] == [
            True, True, True, False, False,
        ]  # fmt: skip

    configuration = options(tmp_path, two=OTHER)
    (tmp_path / "one.yaml").write_text(f"team: one\nchains: {{ own: [{SMALL.name}] }}\n")
    routed(story, MemoryMachine(*ALL), configuration)


@pytest.mark.parametrize("team", ["one", "other"])
def test_a_chain_of_a_team_may_be_loaded_at_start(tmp_path, team):
    """By the team's own variants."""

    async def story(scene):
        scene.warmup.restart()
        await scene.warmup.check()
        loaded = [tracked.name for tracked in scene.backend.world.residents.values()]
        assert loaded == [{"one": MIDDLE.name, "other": SMALL.name}[team]]

    configuration = options(tmp_path)
    for name, model in (("one", MIDDLE), ("other", SMALL)):
        preload = str(name == team).lower()
        text = f"team: {name}\nchains: {{ x: {{ variants: [{model.name}, {BIG.name}], preload: {preload} }} }}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    routed(story, MemoryMachine(*ALL), configuration)


def test_a_decision_depends_on_the_team_only_where_teams_have_floors(tmp_path):
    """Requests of two teams without chains of their own share it else. A reload counts at once."""

    async def story(scene):
        one, two = of(scene, "one"), of(scene, "two")
        chain = scene.decisions.chain_of(one)

        def are_equal():
            keys = [scene.decisions.key(call.request, chain, call.team) for call in (one, two)]
            return keys[0] == keys[1]

        assert are_equal()
        (tmp_path / "one.yaml").write_text("team: one\nvram: { floor: 8GiB }\n")
        scene.rules.replace(book_of(configuration, 2))
        assert not are_equal()

    configuration = options(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"team: {name}\n")
    routed(story, MemoryMachine(*ALL), configuration)


def test_a_floor_is_kept_from_other_teams_and_not_from_its_own(tmp_path):
    """One team's resident; on a card on which nothing fits beside it."""

    async def story(scene):
        await scene.make_resident(BIG)
        scene.backend.leave(scene.backend.world.residents.enter(weights_of(BIG), "one", scene.backend.now()))

        def chosen(team):
            call = of(scene, team, MIDDLE.name)
            found = scene.decisions.decide(call.request, scene.decisions.chain_of(call), call.team).chosen
            return found.variant.model if found else None

        assert (chosen("one"), chosen("two")) == (MIDDLE.name, None)
        (tmp_path / "one.yaml").write_text("team: one\n")
        scene.rules.replace(book_of(configuration, 2))
        assert chosen("two") == MIDDLE.name

    configuration = options(tmp_path, two=f"[{SMALL.name}]")
    (tmp_path / "one.yaml").write_text("team: one\nvram: { floor: 60% }\n")
    routed(story, MemoryMachine(*ALL), configuration)


def test_a_chain_is_shown_to_a_team_as_the_variant_that_would_serve_it_beside_the_floors_of_others(tmp_path):
    """The same as its requests get, and as the explanation says; a client without a key is the default team."""

    async def story(scene):
        await scene.make_resident(BIG)
        scene.backend.leave(scene.backend.world.residents.enter(weights_of(BIG), "one", scene.backend.now()))
        teams = [scene.rules.book.team(name) for name in ("one", "two")]
        shown = [await scene.directory.show_name("y", team) for team in (*teams, None)]
        explained = [scene.decisions.explain("y", team=team)[1].chosen for team in (*teams, None)]
        return shown, [found.variant.model if found else None for found in explained]

    configuration = options(tmp_path, two=f"[{SMALL.name}]") | {"chains": {"y": [MIDDLE.name, SMALL.name]}}
    (tmp_path / "one.yaml").write_text("team: one\nvram: { floor: 60% }\n")
    for default, nobody in (("two", SMALL.name), ("one", MIDDLE.name)):
        found = []
        routed(keeping(story, found), MemoryMachine(*ALL), configuration | {"default_team": default})
        assert found[0][0] == [MIDDLE.name, SMALL.name, nobody]
        assert [name or SMALL.name for name in found[0][1]] == found[0][0]


def test_a_model_that_a_team_is_denied_never_serves_it(tmp_path):
    """Neither in a chain of all, nor as a substitute that the router has found; others have it."""

    async def story(scene):
        def variants(team, model):
            call = of(scene, team, model)
            scene.chains.begin(call)
            return [variant.model for variant in scene.decisions.chain_of(call).variants]

        for model in (BIG, MIDDLE, SMALL):
            await scene.make_resident(model)
        assert variants(None, "x") == [BIG.name, MIDDLE.name, SMALL.name]
        assert variants("strict", "x") == [BIG.name, SMALL.name]
        assert variants("narrow", "x") == [BIG.name, MIDDLE.name, SMALL.name]  # a chain is what the operator says
        assert variants(None, BIG.name)[0] == BIG.name
        assert MIDDLE.name not in variants("strict", BIG.name)
        assert variants("narrow", BIG.name) == [BIG.name]
        listed = {
            model.name: model.variants for model in scene.directory.virtual_models(of(scene, "strict").identity.team)
        }
        assert listed == {"x": (BIG.name, SMALL.name)}

    (tmp_path / "strict.yaml").write_text(f'team: strict\nmodels: {{ deny: ["{MIDDLE.name}"] }}\n')
    (tmp_path / "narrow.yaml").write_text(f'team: narrow\nmodels: {{ allow: ["x", "{BIG.name}"] }}\n')
    chains = {"x": [BIG.name, MIDDLE.name, SMALL.name], "y": [MIDDLE.name]}
    routed(story, MemoryMachine(*ALL), {"teams": str(tmp_path / "*.yaml"), "chains": chains})


@pytest.mark.parametrize(("body", "num_ctx"), [({}, 4096), ({"num_ctx": 2048}, 2048)])
def test_a_team_loads_no_larger_context_than_it_may_have(body, num_ctx, tmp_path):
    """Also where its request names none, and below the least context of others, who have the usual one."""

    async def story(scene):
        for team, wanted in (("capped", num_ctx), ("plain", body.get("num_ctx", 32768))):
            call = of(scene, team, SMALL.name, **({"options": body} if body else {}))
            scene.chains.begin(call)
            decision = scene.decisions.decide(call.request, scene.decisions.chain_of(call))
            assert decision.chosen.num_ctx == wanted

    (tmp_path / "capped.yaml").write_text("team: capped\ncaps: { num_ctx: 4096 }\n")
    (tmp_path / "plain.yaml").write_text("team: plain\n")
    routed(story, MemoryMachine(*ALL), {"defaults.auto_chains": "off", "teams": str(tmp_path / "*.yaml")})


@pytest.mark.parametrize("others", [True, False])
def test_an_unload_ends_nothing_that_other_teams_use(others, tmp_path):
    """It is answered as a request that does nothing, and says why; an admin's ends it."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        users = ("one", "two") if others else ("one",)
        for team in users:
            scene.backend.leave(scene.backend.world.residents.enter(tracked.weights, team, scene.backend.now()))
        call = of(scene, "one", SMALL.name, keep_alive=0)
        scene.chains.begin(call)
        scene.dispatcher.start(call, lambda _: None).give_up()
        sent = json.loads(scene.relay.sent[-1].request.body)
        is_left = SMALL.name in scene.machine.rows and not tracked.going_until_s
        assert (is_left, "keep_alive" in sent) == (others, not others)
        if others:
            assert sent["options"]["num_ctx"] == tracked.options.num_ctx
            assert call.reason == "unload: other teams use it"

    (tmp_path / "two.yaml").write_text("team: two\n")
    (tmp_path / "one.yaml").write_text("team: one\n")
    routed(story, MemoryMachine(*ALL), {"defaults.auto_chains": "off", "teams": str(tmp_path / "*.yaml")})
