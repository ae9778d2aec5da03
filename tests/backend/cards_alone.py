"""The cards of one backend without the rest of it: a probe in memory, a book of residents, and a virtual clock."""

from ollama_simulator.clock import run_virtual
from router.backend.cards import Cards
from router.backend.epoch import Epoch
from router.backend.residents import Residents
from router.config import load_config
from router.core.units import GIB
from router.telemetry import Telemetry
from tests.backend.machine import ONE_CARD, MemoryMachine, row_of
from tests.backend.scene import Heard


class Hand:
    """Cards under test, the machine that they are on, and the book of residents."""

    def __init__(self, cards=ONE_CARD, gpus="auto", *, has_probe=True, is_live=True, options=None):
        self.machine, self.epoch, self.heard = MemoryMachine(cards=cards), Epoch(), Heard()
        self.machine.probe.is_live = is_live
        self.residents = Residents(frozenset(), self.epoch)
        probe = self.machine.probe if has_probe else None
        config = load_config(env={}, options=options or {})
        self.cards = Cards(probe, self.residents, self.epoch, Telemetry([self.heard]), gpus, config)

    async def read(self, **foreign_gib):
        """Read the probe while others hold `card0=…` GiB and so on."""
        self.machine.foreign = {int(card[4:]): int(gib * GIB) for card, gib in foreign_gib.items()}
        await self.cards.read(is_fresh=True)

    def loaded(self, *facts, vram_bytes=None):
        """ps shows these models, and nothing else; the entries."""
        seen = {one.name: row_of(one, vram_bytes=vram_bytes) for one in facts}
        gone = self.residents.merge(seen, lambda name: name, self.cards.guess_held, 0.0)
        for tracked in gone:
            self.cards.expect_back(tracked)
        return [self.residents[one.name] for one in facts]

    def free(self):
        return [gpu.free_bytes / GIB for gpu in self.cards.gpus]


def on_cards(story, *args, **more):
    """Run `story` with a Hand on a virtual clock."""

    async def run():
        await story(Hand(*args, **more))

    run_virtual(run())
