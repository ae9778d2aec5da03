"""A load that Ollama makes for a request which was passed on is under way like a switch: nobody decides against it."""

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.backend.cards import Cards
from router.backend.loads import Loads
from router.planning.stage import stage
from tests.routing.test_dispatch import ALONE, BIG, MIDDLE, SMALL

HUGE = "llama3.3:70b-instruct-q4_K_M"
CONFIG = {**ALONE, "chains": {BIG: [BIG, MIDDLE, SMALL]}, "defaults.nothing_fits": "allow_partial"}
SPEEDS = Speeds(load_mib_per_s=10000, tokens_per_s=100, cpu_tokens_per_s=4)
LIMIT_S = 60.0


def ask(model, **options):
    """Return a request of four tokens."""
    return {"model": model, "prompt": "[[tokens=4]] hi", "stream": False, "options": options}


def played(story, config=CONFIG):
    """Return what `story` returns on a card of 24 GB."""

    async def run():
        machine = Machine(cards=(CardSpec(total_mib=24564),), speeds=SPEEDS)
        async with stage(SimConfig(machine=machine, models=(HUGE, BIG, MIDDLE, SMALL)), config) as one:
            return await story(one)

    return run_virtual(run())


@pytest.mark.parametrize("options", [{}, {"num_gpu": 30}])
def test_a_newcomer_gets_its_best_variant_while_a_model_that_may_spill_loads(options):
    """The memory that goes meanwhile is Ollama's own, and can be had again."""

    async def story(one):
        first = asyncio.create_task(one.ask(ask(HUGE, num_ctx=4096, **options)))
        await asyncio.sleep(1.0)
        reply = await one.ask(ask(BIG, num_ctx=8192))
        assert (await first).status == reply.status == 200
        assert reply.served == BIG
        assert reply.tokens_per_s > 50
        assert reply.took_s < 10
        assert [load.model for load in one.loaded if not load.is_spilled] == [BIG]

    played(story)


class Shelf(dict):
    """Stands for the residents: nothing is loaded until a test says so."""


class StillCards(Cards):
    """Cards of which only the holding of a floor is observed."""

    def __init__(self):
        self.is_held = False

    def hold_floor(self, *, is_switching):
        self.is_held = is_switching


class Clockwork:
    """An epoch that nobody reads."""

    def advance(self):
        """Do nothing."""


def told(story):
    """Run `story` with loads, the residents, and the cards."""

    async def run():
        residents, cards = Shelf(), StillCards()
        await story(Loads(cards, residents, Clockwork(), LIMIT_S), residents, cards)

    run_virtual(run())


def test_a_passed_on_load_ends_when_it_is_listed_or_by_the_reading_after_its_answer():
    """An answer in one piece comes long after the load; and until ps was read the model is not known."""

    async def story(loads, residents, cards):
        loads.pass_on("answered", "a")
        loads.pass_on("listed", "b")
        assert (loads.are_on, cards.is_held, loads.hold_s) == (True, True, LIMIT_S)
        residents["b"] = True
        loads.note_listed(0.0)
        assert not loads.answered("listed")
        await asyncio.sleep(1.0)
        assert loads.answered("answered")
        loads.note_listed(0.5)
        assert (loads.are_on, cards.is_held) == (True, True)
        loads.note_listed(1.5)
        assert (loads.are_on, cards.is_held, loads.hold_s) == (False, False, 0.0)

    told(story)


def test_what_is_loaded_already_is_no_load():
    """Ollama answers at once."""

    async def story(loads, residents, _cards):
        residents["a"] = True
        loads.pass_on("request", "a")
        assert not loads.are_on

    told(story)


def test_memory_stays_held_until_the_last_load_has_ended():
    """A switch and a request that was passed on may overlap."""

    async def story(loads, residents, cards):
        loads.begin("switched", 8192)
        loads.pass_on("request", "a")
        loads.end()
        assert (loads.are_on, cards.is_held, loads.switch) == (True, True, None)
        residents["a"] = True
        loads.note_listed(0.0)
        assert (loads.are_on, cards.is_held) == (False, False)

    told(story)


def test_a_client_cannot_hold_back_switches_for_ever_by_requests_that_are_passed_on():
    """Many in a row hold them back only until the limit of the first has passed."""

    async def story(loads, _residents, _cards):
        for number in range(int(LIMIT_S) + 1):
            loads.pass_on(number, "a")
            await asyncio.sleep(1.0)
            loads.answered(number - 1)
        assert loads.hold_s <= 0
        loads.note_listed(0.0)
        assert not loads.are_on

    told(story)
