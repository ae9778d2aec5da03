"""Decisions and destinations are remembered exactly as long as they hold."""

import asyncio
from dataclasses import replace

import pytest
from msgspec.structs import replace as replaced

from router.core.decision.chain import Chain
from router.core.decision.verdict import Decision, Outcome, VerdictKind
from router.core.payload.read import BYTES_PER_TOKEN
from router.routing import decisions as module
from router.routing.decisions import PROMPT_STEP_BYTES, RECENT_CHAINS, is_settled
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.routing.requests_by_hand import dispatched
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL)
ALONE = {"defaults.auto_chains": "off"}
CHAIN = {"chains": {"team": [BIG.name, SMALL.name]}}


def decided(scene, call):
    return scene.decisions.decide(call.request, scene.decisions.chain_of(call))


def destination_of(scene, call):
    """Return the destination that this call gets now, by one attempt that is taken back."""
    started = scene.dispatcher.start(call, lambda _: None)
    started.give_up()
    return scene.decisions.known_destination(call)


def test_a_decision_for_a_resident_is_remembered_until_something_changes():
    """The same object, without another look at the machine."""

    async def story(scene):
        await scene.make_resident(SMALL)
        first = decided(scene, scene.call(SMALL.name))
        assert decided(scene, scene.call(SMALL.name)) is first
        scene.backend.world.epoch.advance()
        assert decided(scene, scene.call(SMALL.name)) is not first

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_decision_that_needs_a_load_is_made_again_each_time():
    """The swap budget and the clock are in it."""

    async def story(scene):
        first = decided(scene, scene.call(SMALL.name))
        assert first.chosen.kind is VerdictKind.FITS
        assert decided(scene, scene.call(SMALL.name)) is not first

    routed(story, MemoryMachine(*ALL), ALONE)


def test_what_is_settled():
    """A resident was chosen, and no bigger variant was held back; a refusal never is."""

    async def story(scene):
        await scene.make_resident(SMALL)
        settled = decided(scene, scene.call(SMALL.name))
        assert is_settled(settled)
        held = replace(settled.chosen, kind=VerdictKind.HELD_BACK)
        assert not is_settled(Decision(Outcome.FALLBACK, settled.chosen, (held, *settled.verdicts)))
        assert not is_settled(Decision(Outcome.REJECTED, None, ()))

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize(
    ("more", "is_equal"),
    [
        ({"prompt": "x" * 100}, True),
        ({"prompt": "x" * (PROMPT_STEP_BYTES + 1)}, False),
        ({"options": {"num_ctx": 4096}}, False),
        ({"options": {"num_predict": 5}}, False),
        ({"options": {"temperature": 1}}, True),
        ({"images": ["aGk="]}, False),
    ],
)
def test_requests_share_a_decision_if_they_ask_for_the_same(more, is_equal):
    """Context, runner options, capabilities, and the rough length of the prompt."""

    async def story(scene):
        one, other = scene.call(SMALL.name, prompt="x"), scene.call(SMALL.name, **{"prompt": "x", **more})
        chain = scene.decisions.chain_of(one)
        keys = [scene.decisions.key(call.request, chain) for call in (one, other)]
        assert (keys[0] == keys[1]) is is_equal

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize("prompt_bytes", [1, 767, 768, 769, 30000, 68_600, 68_700, 98_303, 98_304, 98_305])
def test_requests_that_share_a_decision_need_the_same_context(prompt_bytes):
    """Else one of them would be let in to a resident whose context is too small for it, again and again."""

    async def story(scene):
        await scene.make_resident(SMALL)
        chain = scene.decisions.chain_of(scene.call(SMALL.name))
        asked = [
            replaced(scene.call(SMALL.name, prompt="x").request, prompt_bytes=n + prompt_bytes) for n in range(767)
        ]
        by_key = {}
        for request in asked[::13]:
            found = scene.decisions.decide_afresh(request, chain).chosen
            by_key.setdefault(scene.decisions.key(request, chain), set()).add((found.kind, found.num_ctx))
        assert max(map(len, by_key.values())) == 1

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_longer_prompt_of_the_same_line_is_served_when_the_resident_is_too_small_for_it():
    """The two were taken for alike: each time the line let the longer one in to the resident, it had to wait again."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL, num_ctx=12_288)
        fits, longer = (12_288 - 2048) * BYTES_PER_TOKEN - 50, (12_288 - 2048) * BYTES_PER_TOKEN + 500
        first, second = (scene.call(SMALL.name, prompt="x" * size) for size in (fits, longer))
        busy = [scene.backend.world.residents.enter(tracked.weights) for _ in range(8)]
        tasks = [await dispatched(scene, call) for call in (first, second)]
        for one in busy:
            scene.backend.leave(one)
        await asyncio.sleep(1)
        scene.relay.sent[0].answer()
        (await tasks[0]).release("ok")
        await asyncio.sleep(30)
        assert scene.resident(SMALL).row.context_length > 12_288
        scene.relay.sent[-1].answer()
        (await tasks[1]).release("ok")

    routed(story, MemoryMachine(*ALL), ALONE)


def test_an_equal_request_goes_where_the_first_one_went_without_a_decision():
    """Until something changes."""

    async def story(scene):
        await scene.make_resident(SMALL)
        call = scene.call(SMALL.name)
        assert scene.decisions.known_destination(call) is None
        known = destination_of(scene, call)
        assert known.weights == weights_of(SMALL)
        assert scene.decisions.known_destination(scene.call(SMALL.name)) is known
        scene.backend.world.epoch.advance()
        assert scene.decisions.known_destination(scene.call(SMALL.name)) is None

    routed(story, MemoryMachine(*ALL), ALONE)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "SMALL:3b"},
        {"path": "/api/chat", "messages": []},
        {"keep_alive": 0},
        {"options": {"num_ctx": "big"}},
        {"strict": True},
    ],
    ids=["another spelling", "another route", "an unload", "a wrong option", "strict"],
)
def test_a_request_with_other_demands_does_not_go_there(other):
    """The name's spelling is in the answer; an unload and an error need no resident."""

    async def story(scene):
        await scene.make_resident(SMALL)
        assert destination_of(scene, scene.call(SMALL.name)) is not None
        assert scene.decisions.known_destination(scene.call(**{"model": SMALL.name, **other})) is None

    routed(story, MemoryMachine(*ALL), ALONE)


def test_what_clients_can_ask_for_is_remembered_in_bounds(monkeypatch):
    """A client that varies its requests does not fill the memory."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 20)

    async def story(scene):
        await scene.make_resident(SMALL)
        for number in range(100):
            destination_of(scene, scene.call(SMALL.name, options={"num_predict": number}))
            assert len(scene.decisions._destinations) <= 21
            assert len(scene.decisions._decided) <= 21

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_chain_whose_upgrades_are_off_stays_with_what_is_resident():
    """The others go up."""

    async def story(scene, expected):
        await scene.make_resident(SMALL)
        assert decided(scene, scene.call("team")).chosen.variant.model == expected.name

    for upgrade, expected in (("never", SMALL), ("on_request", BIG)):
        team = {"variants": [BIG.name, SMALL.name], "upgrade": upgrade}
        routed(lambda scene, model=expected: story(scene, model), MemoryMachine(*ALL), {"chains": {"team": team}})


def test_explaining_decides_for_a_plain_request_and_remembers_nothing():
    """None for a name that means nothing here."""

    async def story(scene):
        chain, decision = scene.decisions.explain("team", 4096)
        assert (chain.name, decision.chosen.variant.model, decision.chosen.num_ctx) == ("team:latest", BIG.name, 4096)
        assert scene.decisions.explain("unknown:1b") is None
        assert scene.decisions._decided == {}

    routed(story, MemoryMachine(*ALL), CHAIN)


def noted(scene, *numbers):
    for number in numbers:
        scene.decisions.remember_chain(Chain(f"c{number}", ()), "anonymous")
    return [name for name, _ in scene.decisions.recent_chains()]


def test_the_chains_asked_for_last_are_known_in_bounds():
    """For upgrades at idle time; each once, the oldest go."""

    async def story(scene):
        assert noted(scene, 1, 2, 1) == ["c2", "c1"]
        names = noted(scene, *range(RECENT_CHAINS + 5))
        assert (len(names), len(set(names)), names[-1]) == (RECENT_CHAINS, RECENT_CHAINS, f"c{RECENT_CHAINS + 4}")

    routed(story, MemoryMachine(*ALL), ALONE)


def test_a_chain_that_is_asked_for_again_is_a_recent_one():
    """It goes after those that were not."""

    async def story(scene):
        noted(scene, *range(RECENT_CHAINS))
        assert "c0" in noted(scene, 0, RECENT_CHAINS)

    routed(story, MemoryMachine(*ALL), ALONE)
