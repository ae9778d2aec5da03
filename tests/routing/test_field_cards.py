"""Cards that the probe lists in another order than Ollama numbers them, or that Ollama does not see: whole stories."""

import asyncio
import itertools
import random
from dataclasses import replace

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.adapters.gpu.reading import ProbeReading
from router.core.units import MIB
from router.errors import ConfigError
from router.planning.stage import stage
from router.telemetry import Notified, Spilled, Switched
from tests.routing.test_dispatch import ALONE, BIG, MIDDLE, MODELS, SMALL, SPEEDS, chat, hello, residents, world

EMBEDDER = "nomic-embed-text:v1.5"
SINGLES = (SMALL, MIDDLE, "qwen3:14b", EMBEDDER)
GPUS = "backends.local.gpus"


def machine(driver, visible):
    """Return a machine with cards of these sizes on its bus, of which Ollama sees `visible` in that order."""
    specs = [
        CardSpec(name=f"CUDA{index}", description=f"card {index}", total_mib=size) for index, size in enumerate(driver)
    ]
    return Machine.of_visible(specs, visible, speeds=SPEEDS)


def tell(story, driver, visible, config=ALONE, **more):
    """Run `story` with the stage and the events of its router."""

    async def run():
        async with stage(SimConfig(machine=machine(driver, visible), models=MODELS, **more), config) as one:
            heard = []
            one.router.router.telemetry._hooks += (Heard(heard),)
            return await story(one, heard)

    return run_virtual(run())


class Heard:
    def __init__(self, events):
        self.events = events

    def on(self, event):
        self.events.append(event)


def notices(heard):
    return [event.message for event in heard if isinstance(event, Notified)]


def spilled(heard):
    return [event for event in heard if isinstance(event, Spilled)]


def notes(one):
    return one.router.router.inspector.state()["notes"]


def names(one):
    return [gpu["name"] for gpu in one.router.router.inspector.state()["gpus"]]


async def served(one, *models, **options):
    """Ask for each in turn; every one is answered by the model itself."""
    for model in models:
        reply = await one.ask(hello(model, options=options), "/api/generate") if model != EMBEDDER else await embed(one)
        assert (reply.status, reply.error) == (200, "")


async def embed(one):
    return await one.ask({"model": EMBEDDER, "input": "hi"}, "/api/embed")


VISIBLE = [
    (count, visible)
    for count in (2, 3)
    for seen in range(1, count + 1)
    for visible in itertools.permutations(range(count), seen)
]


@pytest.mark.parametrize(("count", "visible"), VISIBLE)
def test_whatever_cards_ollama_sees_every_request_is_answered_on_the_gpu_h8(count, visible):
    """In any order, with cards too many in front, between and behind; after a few loads nothing is odd any more."""

    async def story(one, heard):
        for _ in range(2):
            await served(one, *SINGLES)
        known = len(notices(heard))
        await served(one, *SINGLES, *reversed(SINGLES))
        assert spilled(heard) == []
        assert notices(heard)[known:] == []
        if len(visible) == 1:
            assert names(one) == [f"card {visible[0]}"]

    tell(story, (24564,) * count, visible)


@pytest.mark.parametrize("seed", range(24))
def test_unequal_cards_in_any_order_are_found_out(seed):
    """What fits one of Ollama's cards is served from it, whatever the probe calls it."""
    rng = random.Random(seed)
    driver = [rng.choice((8192, 12288, 16376, 24564)) for _ in range(rng.choice((2, 3, 4)))]
    visible = rng.sample(range(len(driver)), rng.randint(1, len(driver)))
    roomiest = max(driver[card] for card in visible)
    models = [SMALL, EMBEDDER, *([MIDDLE] if roomiest > 9000 else []), *(["qwen3:14b"] if roomiest > 16000 else [])]

    async def story(one, heard):
        for _ in range(12):
            await served(one, rng.choice(models), num_ctx=4096)
        assert [event for event in heard if isinstance(event, Switched) and "main_gpu" in event.error][3:] == []

    tell(story, driver, visible, seed=seed)


def test_no_load_spills_while_the_order_of_the_cards_is_not_known():
    """The model is too big for the card that its number may mean. All that wait are answered by one load, in full."""

    async def story(one, _heard):
        bodies = {"/api/generate": hello(BIG), "/api/chat": chat(BIG)}
        asked = [one.ask(body | {"options": {"num_ctx": 8192}}, path) for path, body in [*bodies.items()] * 2]
        preload, *replies = await asyncio.gather(one.ask({"model": BIG, "options": {"num_ctx": 8192}}), *asked)
        assert {(reply.status, reply.error) for reply in (preload, *replies)} == {(200, "")}
        assert min(reply.tokens_per_s for reply in replies) > 0.99 * SPEEDS.tokens_per_s
        assert [load.is_spilled for load in one.loaded] == [False]

    tell(story, (12288, 24564), (1, 0))


def test_a_refused_number_is_said_once_and_the_card_is_left_alone():
    """Two cards, Ollama sees the first: the log and the state say which one it does not."""

    async def story(one, heard):
        await served(one, SMALL, MIDDLE, EMBEDDER)
        (notice,) = notices(heard)
        assert "GPU-unseen-1" in notice
        assert GPUS in notice
        assert notes(one) == [notice]
        assert names(one) == ["card 0"]
        refused = [event.error for event in heard if isinstance(event, Switched) and event.error]
        assert len(refused) == 1

    tell(story, (24564, 20000), (0,))


@pytest.mark.parametrize("text", ["error: invalid value for main_gpu: {pin}", ""])
def test_a_refusal_that_says_less_is_understood(text):
    """Without the number of devices, and a runner that dies without a word."""

    async def story(one, _heard):
        make = one.sim.engine.__class__
        assert make  # the runner's text is what Ollama passes on
        await served(one, SMALL, MIDDLE, EMBEDDER)
        assert len(one.router.router.inspector.state()["gpus"]) == 1

    with pytest.MonkeyPatch.context() as patch:
        reword(patch, text)
        tell(story, (24564, 20000, 20000), (0,))


@pytest.mark.parametrize(
    "sizes", [(24564,) * 5, (8192, 24564, 20000, 16376, 12288), (12288, 16376, 20000, 22000, 24564)]
)
@pytest.mark.parametrize("text", ["error: invalid value for main_gpu: {pin}", ""])
def test_of_five_cards_the_one_that_ollama_sees_is_found_however_many_are_refused(sizes, text):
    """No request is refused for it: a number that Ollama does not have says nothing about the model."""

    async def story(one, _heard):
        await served(one, SMALL, MIDDLE, EMBEDDER)

    with pytest.MonkeyPatch.context() as patch:
        reword(patch, text)
        tell(story, sizes, (0,))


@pytest.mark.parametrize("visible", [(0,), (1,), (2,)])
def test_what_needs_cards_that_ollama_does_not_see_spills_at_most_twice(visible):
    """Then it is refused without a load, and others are served."""

    async def story(one, heard):
        for num_ctx in (16384, 12288, 8192, 4096):
            reply = await one.ask(hello("qwen3:32b", options={"num_ctx": num_ctx}), "/api/generate")
            assert reply.status == 503
        assert len(spilled(heard)) <= 2
        await served(one, SMALL, MIDDLE)

    tell(story, (16376,) * 3, visible)


def reword(patch, text):
    """Let a runner that refuses its card say `text`."""
    from ollama_simulator.scheduler import runner

    kill = runner.Runner.kill

    def killed(self, reason="signal: killed"):
        if "main_gpu" in reason:
            reason = f"exit status 1: {text.format(pin=self.launch.main_gpu)}".removesuffix(": ")
        kill(self, reason)

    patch.setattr(runner.Runner, "kill", killed)


def test_a_model_that_dies_everywhere_hides_no_card():
    """Its runner says nothing, on each card: the model is at fault, and both cards serve others."""

    async def story(one, _heard):
        one.sim.cards.change(fail_load={SMALL: "corrupt"})
        reply = await one.ask(hello(SMALL))
        assert reply.status == 500
        await served(one, MIDDLE, "qwen3:14b")
        assert len(one.router.router.inspector.state()["gpus"]) == 2
        assert sorted(residents(one)) == sorted([MIDDLE, "qwen3:14b"])

    with pytest.MonkeyPatch.context() as patch:
        from ollama_simulator.scheduler import runner

        kill = runner.Runner.kill
        patch.setattr(runner.Runner, "kill", lambda self, reason="signal: killed": kill(self, reason.split(": ")[0]))
        tell(story, (24564, 20000), (0, 1))


def test_the_order_of_gpus_is_ollamas_order():
    """Where the configuration says it, no load has to find out."""

    async def story(one, heard):
        await served(one, SMALL, MIDDLE, "qwen3:14b")
        assert notices(heard) == []
        return names(one)

    assert tell(story, (12288, 24564), (1, 0), {**ALONE, GPUS: [1, 0]}) == ["card 1", "card 0"]


def test_a_restart_of_ollama_forgets_what_loads_have_taught():
    """It may see other cards then; the first load finds out again."""

    async def story(one, _heard):
        await served(one, SMALL)
        assert len(world(one).cards.gpus) == 1
        world(one).cards.retry_gpu()
        assert len(world(one).cards.gpus) == 2
        await served(one, MIDDLE, "qwen3:14b")
        assert len(world(one).cards.gpus) == 1

    tell(story, (24564, 20000), (0,))


class OtherProbe(CardsProbe):
    """A probe whose cards are not Ollama's: nothing that Ollama does moves them."""

    is_right = False

    async def read(self, *, is_fresh=False):
        reading = await super().read(is_fresh=is_fresh)
        if self.is_right:
            return reading
        gpus = tuple(replace(gpu, free_bytes=gpu.total_bytes - 300 * MIB) for gpu in reading.gpus)
        return ProbeReading(gpus, reading.taken_at_s)


def other_probe(story, **more):
    """Run `story` with a router whose probe looks elsewhere."""

    async def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("router.planning.stage.CardsProbe", OtherProbe)
            async with stage(SimConfig(machine=machine((24564,), (0,)), models=MODELS, **more), ALONE) as one:
                heard = []
                one.router.router.telemetry._hooks += (Heard(heard),)
                return await story(one, heard)

    return run_virtual(run())


def test_a_probe_that_sees_no_load_is_not_believed_after_the_second_h10():
    """It is named once, free memory counts as unknown, and every load is served; until the probe sees one."""

    async def story(one, heard):
        await served(one, SMALL)
        assert notices(heard) == []
        await served(one, MIDDLE)
        (notice,) = notices(heard)
        assert "has not seen the last 2 loads" in notice
        assert notes(one)[0] == notice
        assert world(one).cards.gpus is None
        await served(one, BIG, SMALL, EMBEDDER, num_ctx=4096)
        assert (spilled(heard), notices(heard)) == ([], [notice])
        world(one).cards.probe.is_right = True
        await served(one, MIDDLE, EMBEDDER, SMALL)
        assert world(one).cards.gpus is not None
        assert notice not in notes(one)

    other_probe(story)


def test_a_lost_card_keeps_its_number():
    """A card that falls off the bus does not renumber the rest, and gets no model."""

    async def story(one, heard):
        await served(one, SMALL)
        (before,) = (tracked.options.main_gpu for tracked in world(one).residents.values())
        lose(one, {0})
        await asyncio.sleep(2)
        await served(one, "qwen3:14b", num_ctx=4096)
        assert one.sim.engine.ps()
        assert [gpu["total_bytes"] > 0 for gpu in one.router.router.inspector.state()["gpus"]] == [False, True]
        assert {tracked.options.main_gpu for tracked in world(one).residents.values() if tracked.order > 1} == {1}
        assert before == 0
        (notice,) = notices(heard)
        assert "card 0" in notice
        lose(one, {0, 1})
        await asyncio.sleep(2)
        assert world(one).cards.gpus is None
        lose(one, ())
        await asyncio.sleep(2)
        assert [gpu.total_bytes > 0 for gpu in world(one).cards.gpus] == [True, True]

    tell(story, (12288, 24564), (0, 1))


def lose(one, cards):
    """Let the probe list these cards of the bus no more."""
    probe = world(one).cards.probe
    listed = probe._cards.__class__.listed

    def remaining():
        return tuple(gpu for gpu in listed(probe._cards) if gpu.index not in cards)

    probe._cards.listed = remaining


@pytest.mark.parametrize(
    "gpus", [["GPU-typo"], [7], ["GPU-"], ["0", "GPU-00000000-0000-0000-0000-00000000000"], ["MIG-1"]]
)
def test_a_list_that_names_no_card_is_an_error_at_start(gpus):
    """The message has the cards that are there."""

    async def story(_one, _heard):
        raise AssertionError("it must not start")

    with pytest.raises(ConfigError, match="cards are 0 = .*card 0.*card 1"):
        tell(story, (24564, 20000), (0, 1), {**ALONE, GPUS: gpus})
