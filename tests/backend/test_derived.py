"""Derived tags: made once, found again, forgotten when they are gone, and all removed at the end."""

import asyncio

import pytest

from router.adapters.catalog import CatalogReader
from router.backend.derived import DerivedTags
from router.backend.epoch import Epoch
from router.backend.installed import Installed
from router.core.ollama.derived_names import is_derived
from router.core.ollama.runner import LoadOptions
from router.errors import UpstreamError
from tests.backend.machine import BIG, SMALL, MemoryMachine

OPTIONS = LoadOptions(num_ctx=8192, num_batch=512)


class Tags:
    """Derived tags under test on a machine with two models."""

    def __init__(self):
        self.machine = MemoryMachine(SMALL, BIG)
        self.installed = Installed(CatalogReader(self.machine), Epoch(), 30.0)
        self.tags = DerivedTags(self.machine, self.installed)

    async def ensure(self, facts=SMALL, options=OPTIONS, digest=None):
        return await self.tags.ensure(facts.name, digest or facts.digest, options)

    def made(self, facts=SMALL, options=OPTIONS):
        return self.tags.existing(facts.name, facts.digest, options)


def test_a_tag_carries_the_options_of_the_runner_and_stands_for_its_variant(virtual):
    """It is there when `ensure` returns, and found without a call from then on."""

    async def story():
        one = Tags()
        assert one.made() is None
        name = await one.ensure()
        assert one.machine.derived == {name: (SMALL.name, {"num_ctx": 8192, "num_batch": 512})}
        assert (is_derived(name), one.installed.display_name(name), one.made()) == (True, SMALL.name, name)
        assert await one.ensure() == name
        assert len(one.machine.named("create_derived")) == 1

    virtual(story)


def test_a_runner_without_options_needs_no_tag(virtual):
    """The variant's own name reaches it."""

    async def story():
        one = Tags()
        assert await one.ensure(options=LoadOptions()) == SMALL.name
        assert one.machine.named("create_derived") == []

    virtual(story)


def test_other_options_and_another_manifest_are_other_tags(virtual):
    """One that was created again must not be reached by the old tag."""

    async def story():
        one = Tags()
        names = {
            await one.ensure(),
            await one.ensure(options=LoadOptions(num_ctx=16384, num_batch=512)),
            await one.ensure(digest="another"),
            await one.ensure(BIG),
        }
        assert len(names) == len(one.machine.derived) == 4

    virtual(story)


def test_many_requests_at_once_make_one_tag_even_when_the_first_leaves(virtual):
    """The creation belongs to none of them."""

    async def story():
        one = Tags()
        first = asyncio.create_task(one.ensure())
        others = [asyncio.create_task(one.ensure()) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert one.made() is None
        first.cancel()
        names = await asyncio.gather(*others)
        assert set(names) == set(one.machine.derived)
        assert len(one.machine.named("create_derived")) == 1

    virtual(story)


def test_a_creation_that_failed_is_tried_again_by_the_next_request(virtual):
    """The error is of those who waited for it."""

    async def story():
        one = Tags()
        one.machine.trouble["create_derived"] = UpstreamError("disk full")
        for _ in range(2):
            with pytest.raises(UpstreamError):
                await one.ensure()
        assert one.made() is None
        one.machine.trouble.clear()
        assert await one.ensure() == one.made()

    virtual(story)


def test_tags_that_are_gone_upstream_are_made_again(virtual):
    """Those of the one variant only."""

    async def story():
        one = Tags()
        name = await one.ensure()
        await one.ensure(BIG)
        one.machine.derived.clear()
        one.tags.forget(SMALL.name)
        assert (one.made(), one.made(BIG) is None) == (None, False)
        assert await one.ensure() == name
        assert list(one.machine.derived) == [name]

    virtual(story)


def test_at_the_end_every_derived_tag_is_removed_and_nothing_else(virtual):
    """Also those that a router which died has left."""

    async def story():
        one = Tags()
        await one.ensure()
        one.machine.derived["ollama-router-derived/old:x-d1"] = (SMALL.name, {})
        await one.tags.remove_all()
        assert (one.machine.derived, set(one.machine.installed)) == ({}, {SMALL.name, BIG.name})
        assert one.made() is None

    virtual(story)


@pytest.mark.parametrize("method", ["tags", "delete"])
def test_an_ollama_that_is_away_at_the_end_is_no_error(method, virtual):
    """The next router removes them."""

    async def story():
        one = Tags()
        await one.ensure()
        one.machine.trouble[method] = UpstreamError("away")
        await one.tags.remove_all()
        assert len(one.machine.derived) == 1

    virtual(story)
