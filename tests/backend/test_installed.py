"""What is installed: when it is read, which weights a name means, and names that stand for others."""

import asyncio

import pytest

from router.adapters.catalog import CatalogReader
from router.backend.epoch import Epoch
from router.backend.installed import LOOK_UP_S, Installed
from router.core.ollama.names import key_of
from router.errors import UpstreamError
from tests.backend.machine import BIG, SMALL, MemoryMachine, weights_of

TAG = "ollama-router-derived/small:3b-d1-c8192-b512-gx"
INTERVAL_S = 30.0


@pytest.fixture
def machine():
    return MemoryMachine(SMALL)


def installed_on(machine, epoch=None):
    return Installed(CatalogReader(machine), epoch or Epoch(), INTERVAL_S)


def reads(machine):
    return len(machine.named("tags"))


def test_before_it_was_read_nothing_is_known_and_reading_is_due(machine, virtual):
    """A name of ps stands for itself then."""

    async def story():
        installed = installed_on(machine)
        assert (dict(installed.catalog), installed.is_due, installed.knows(SMALL.name)) == ({}, True, False)
        assert installed.weights_of("Small:3B") == key_of(SMALL.name)

    virtual(story)


def test_reading_voids_decisions_and_is_due_again_after_the_interval(machine, virtual):
    """Or as soon as something may have changed."""

    async def story():
        epoch = Epoch()
        installed = installed_on(machine, epoch)
        await installed.refresh()
        assert list(installed.catalog) == [key_of(SMALL.name)]
        first = epoch.number
        await installed.refresh()
        assert 0 < first < epoch.number
        await asyncio.sleep(INTERVAL_S - 1)
        assert not installed.is_due
        await asyncio.sleep(1)
        assert installed.is_due
        await installed.refresh()
        assert not installed.is_due
        installed.mark_changed()
        assert installed.is_due

    virtual(story)


def test_an_ollama_that_does_not_answer_leaves_what_was_read(machine, virtual):
    """Its list may fail for a moment while all else works, so only the first reading must not fail."""

    async def story():
        installed = installed_on(machine)
        machine.trouble["tags"] = UpstreamError("away")
        with pytest.raises(UpstreamError):
            await installed.refresh()
        del machine.trouble["tags"]
        await installed.refresh()
        machine.trouble["tags"] = UpstreamError("away")
        await installed.refresh()
        assert not installed.is_due
        await asyncio.sleep(5)
        assert installed.is_due
        await installed.look_up()
        assert installed.knows(SMALL.name)

    virtual(story)


def test_an_unknown_name_is_looked_up_at_most_once_in_a_while(machine, virtual):
    """Neither just after a reading nor just after another look-up, whatever their names."""

    async def story():
        installed = installed_on(machine)
        await installed.refresh()
        machine.installed[BIG.name] = BIG
        await installed.look_up()
        assert (reads(machine), installed.knows(BIG.name)) == (1, False)
        await asyncio.sleep(LOOK_UP_S)
        await installed.look_up()
        assert (reads(machine), installed.knows(BIG.name)) == (2, True)
        await asyncio.sleep(LOOK_UP_S / 2)
        await installed.look_up()
        assert reads(machine) == 2

    virtual(story)


def test_failed_look_ups_are_as_rare(machine, virtual):
    """Clients that ask for nonsense cost an Ollama that is away nothing."""

    async def story():
        installed = installed_on(machine)
        machine.trouble["tags"] = UpstreamError("away")
        for _ in range(5):
            await installed.look_up()
        assert reads(machine) == 1

    virtual(story)


def test_a_look_up_goes_on_when_its_request_has_left(machine, virtual):
    """What it reads is of use to the next one."""

    async def story():
        installed, show = installed_on(machine), machine.show

        async def slow_show(name, *, verbose=True):
            await asyncio.sleep(1)
            return await show(name, verbose=verbose)

        machine.show = slow_show
        looking = asyncio.create_task(installed.look_up())
        await asyncio.sleep(0.5)
        looking.cancel()
        await asyncio.sleep(1)
        assert installed.knows(SMALL.name)

    virtual(story)


def test_weights_are_those_of_the_installed_model_unless_the_name_has_moved_on(machine, virtual):
    """A name that was pulled again while the old weights are loaded means other weights than those."""

    async def story():
        installed = installed_on(machine)
        await installed.refresh()
        assert installed.weights_of("small:3b", SMALL.digest) == installed.weights_of("SMALL:3b") == weights_of(SMALL)
        assert installed.weights_of("small:3b", "older") == "gone:older"
        assert installed.weights_of("stranger:1b", "d") == key_of("stranger:1b")
        assert installed.by_weights(weights_of(SMALL)) is installed.catalog[key_of(SMALL.name)]
        assert installed.by_weights("gone:older") is None

    virtual(story)


def test_derived_tags_are_known_and_not_in_the_catalog(machine, virtual):
    """No list and no chain shows them; what they stand for is known for ours only."""

    async def story():
        installed = installed_on(machine)
        machine.derived[TAG] = (SMALL.name, {"num_ctx": 8192})
        await installed.refresh()
        assert (installed.knows(TAG), key_of(TAG) in installed.catalog) == (True, False)
        assert installed.weights_of(TAG) == weights_of(SMALL)
        assert (installed.variant_of(TAG), installed.display_name(TAG)) == (None, TAG)
        installed.derive(TAG, SMALL.name)
        assert (installed.variant_of(TAG), installed.display_name(TAG)) == (SMALL.name, SMALL.name)
        assert installed.display_name(SMALL.name) == SMALL.name

    virtual(story)
