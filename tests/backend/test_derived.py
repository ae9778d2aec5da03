"""Derived tags: made once, found again, forgotten when they are gone, and all removed at the end."""

import asyncio
from dataclasses import replace

import pytest

from router.adapters.catalog import CatalogReader
from router.backend.derived import (
    CALM_S,
    MAX_WAIT_S,
    ORPHAN_S,
    OTHERS,
    UNUSED_S,
    DerivedTags,
    Replaced,
    owner_of,
)
from router.backend.digests import PIECES_AT_ONCE, ROWS_AT_ONCE, digests_of, pieces_of
from router.backend.epoch import Epoch
from router.backend.installed import Installed
from router.config import load_config
from router.core.ollama.derived_names import by_piece, derived_name, is_derived
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions
from router.errors import UpstreamError
from tests.backend.machine import BIG, SMALL, MemoryMachine, weights_of

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


def test_another_router_that_makes_tags_is_said_once(virtual):
    """Not for tags that were there from the start: it may be long gone."""

    async def story():
        one, said = Tags(), []
        one.tags = DerivedTags(one.machine, one.installed, "me", report=said.append)

        async def read(*owners):
            for owner in owners:
                one.machine.derived[derived_name(SMALL.name, SMALL.digest, OPTIONS, owner)] = (SMALL.name, {})
            await one.installed.refresh()
            await one.tags.tidy()

        await read("before")
        await read("me", "you")
        await read()
        await one.ensure()
        assert [text.count("-oyou") for text in said] == [1]
        assert one.tags.notes() == said
        await read(*(f"x{number}" for number in range(2 * OTHERS)))
        assert len(said) == len(one.tags.notes()) == OTHERS

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


# --- removal -------------------------------------------------------------------------------------------------------


class Owned(Tags):
    """Tags of a router with an owner's mark, whose catalog is read and whose card can be made busy."""

    def __init__(self, owner="aaaaaa"):
        super().__init__()
        self.is_quiet, self.loaded = True, set()
        self.tags = DerivedTags(
            self.machine, self.installed, owner, lambda: self.is_quiet, lambda weights: weights in self.loaded
        )

    def leave(self, owner, facts=SMALL, digest=None):
        """Put a tag on the server that this router does not know."""
        name = derived_name(facts.name, digest or facts.digest, OPTIONS, owner)
        self.machine.derived[name] = (facts.name, {})
        return name

    async def tidy(self, **more):
        await self.installed.refresh()
        return await self.tags.tidy(**more)


def test_own_tags_that_no_request_uses_are_leftovers_and_others_tags_are_not(virtual):
    """Before a request asks for it, a leftover is found and used: it is not made again."""

    async def story():
        one = Owned()
        own, used, others = one.leave("aaaaaa"), one.leave("aaaaaa", BIG), one.leave("bbbbbb")
        assert await one.ensure(BIG) == used
        assert one.machine.named("create_derived") == []
        await one.tidy()
        assert (own in one.machine.derived, set(one.machine.derived)) == (False, {used, others})

    virtual(story)


def test_at_the_end_other_routers_tags_stay(virtual):
    """What is left by nobody in particular goes if its model is gone."""

    async def story():
        one = Owned()
        await one.ensure()
        kept = {one.leave("bbbbbb"), one.leave("bbbbbb", digest="older"), one.leave("")}
        one.leave("", digest="older")
        await one.tags.remove_all()
        assert set(one.machine.derived) == kept

    virtual(story)


def test_a_tag_without_an_owner_stays_while_its_weights_are_loaded(virtual):
    """And for a while longer; then nobody can be using it."""

    async def story():
        one = Owned()
        name = one.leave("")
        one.loaded.add(weights_of(SMALL))
        assert await one.tidy() is None
        await asyncio.sleep(3600)
        assert await one.tidy() is None
        one.loaded.clear()
        assert await one.tidy() == UNUSED_S
        await asyncio.sleep(UNUSED_S / 2)
        assert name in one.machine.derived
        await asyncio.sleep(UNUSED_S / 2)
        await one.tidy()
        assert one.machine.derived == {}

    virtual(story)


def test_a_tag_that_was_seen_in_use_again_is_unused_from_its_end_on(virtual):
    """The time begins anew."""

    async def story():
        one = Owned()
        one.leave("")
        await one.tidy()
        one.loaded.add(weights_of(SMALL))
        await asyncio.sleep(UNUSED_S - 1)
        await one.tidy()
        one.loaded.clear()
        assert await one.tidy() == UNUSED_S

    virtual(story)


def test_another_routers_tag_goes_only_when_its_model_has_been_gone_for_long(virtual):
    """Its owner would have removed it."""

    async def story():
        one = Owned()
        name, live = one.leave("bbbbbb", digest="older"), one.leave("bbbbbb")
        assert await one.tidy() == ORPHAN_S
        await asyncio.sleep(ORPHAN_S)
        assert await one.tidy(is_waited_for=True) is None
        assert name in one.machine.derived
        await one.tidy()
        assert set(one.machine.derived) == {live}

    virtual(story)


def test_removal_waits_for_a_moment_without_loads_and_requests_and_not_for_ever(virtual):
    """One tag at a time. Where a client waits for it, it comes at once."""

    async def story():
        one, loop = Owned(), asyncio.get_running_loop()
        one.leave("aaaaaa"), one.leave("aaaaaa", BIG)
        one.is_quiet = False
        loop.call_later(3, setattr, one, "is_quiet", True)
        loop.call_later(2.9, one.tags.note_request, loop.time() + 2.9)
        started_s = loop.time()
        await one.tidy()
        assert 3 + CALM_S - 0.2 <= loop.time() - started_s < 3.5
        one.leave("aaaaaa")
        one.is_quiet = False
        started_s = loop.time()
        await one.tidy()
        assert loop.time() - started_s >= MAX_WAIT_S
        one.leave("aaaaaa")
        started_s = loop.time()
        await one.tidy(is_waited_for=True)
        assert (loop.time() - started_s < 1, one.machine.derived) == (True, {})

    virtual(story)


def test_a_tag_is_made_only_from_the_model_that_was_decided_for(virtual):
    """Ollama would pull one that is gone, and take another manifest for the old one."""

    async def story():
        one = Owned()
        await one.installed.refresh()
        one.machine.installed[SMALL.name] = replace(SMALL, digest="newer")
        with pytest.raises(Replaced):
            await one.ensure()
        del one.machine.installed[SMALL.name]
        with pytest.raises(Replaced):
            await one.ensure()
        assert (one.machine.named("create_derived"), one.installed.knows(SMALL.name)) == ([], False)

    virtual(story)


def test_a_tag_whose_model_was_replaced_goes_although_requests_have_used_it(virtual):
    """Those after it get another one."""

    async def story():
        one = Owned()
        await one.installed.refresh()
        old = await one.ensure()
        one.machine.installed[SMALL.name] = replace(SMALL, digest="newer")
        await one.tidy()
        assert (one.machine.derived, one.installed.variant_of(old)) == ({}, None)
        assert await one.ensure(digest="newer") != old

    virtual(story)


def test_a_tag_that_is_asked_for_during_its_removal_is_made_again_whenever_it_is_gone(virtual):
    """It stands for its variant: else a request would be sent to it again and again, and find nothing."""

    async def story():
        one = Owned()
        name = await one.ensure()
        await one.installed.refresh()
        one.tags.forget_all()
        delete = one.machine.delete

        async def slow(tag):
            await asyncio.sleep(0.2)
            await delete(tag)

        one.machine.delete = slow
        removing = asyncio.create_task(one.tidy(is_waited_for=True))
        await asyncio.sleep(0.1)
        assert await one.ensure() == name
        await removing
        assert (list(one.machine.derived), one.installed.variant_of(name)) == ([name], SMALL.name)
        one.machine.derived.clear()  # Ollama was restarted, which nobody has noticed
        one.tags.forget(SMALL.name)
        assert one.made() is None
        assert await one.ensure() == name
        assert list(one.machine.derived) == [name]

    virtual(story)


def test_creations_and_removals_never_overlap(virtual):
    """However many are asked for at once."""

    async def story():
        one = Owned()
        most, running = [], []

        def watched(method):
            async def call(*arguments):
                running.append(method)
                most.append(len(running))
                await asyncio.sleep(0.2)
                await method(*arguments)
                running.remove(method)

            return call

        one.machine.create_derived = watched(one.machine.create_derived)
        one.machine.delete = watched(one.machine.delete)
        one.leave("aaaaaa", digest="older")
        await asyncio.gather(one.tidy(), one.ensure(), one.ensure(BIG), one.tidy(is_waited_for=True))
        assert (max(most), len(one.machine.derived)) == (1, 2)

    virtual(story)


def test_the_owner_is_the_same_after_a_restart_and_another_for_another_router(monkeypatch):
    """By host, listener and store; a router that has none of these gets a new one each time."""

    def owner(**options):
        keys = {"listen": "127.0.0.1:11500", "store.path": ":memory:"}
        keys |= {name.replace("__", "."): value for name, value in options.items()}
        return owner_of(load_config(env={}, options=keys))

    assert owner() == owner() != owner(listen="127.0.0.1:11501")
    anywhere = {"listen": "127.0.0.1:0"}
    assert owner(**anywhere) != owner(**anywhere)
    assert owner(**anywhere, store__path="/a") == owner(**anywhere, store__path="/a") != owner(store__path="/b")
    here = owner()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert owner() != here
    assert is_derived(derived_name(SMALL.name, SMALL.digest, OPTIONS, here))


async def turns_of(work):
    turns, doing = 0, asyncio.create_task(work)
    while not doing.done():
        await asyncio.sleep(0)
        turns += 1
    return turns, await doing


def test_what_tags_were_made_from_is_looked_up_in_steps(virtual):
    """Thousands of models may be installed."""

    async def story():
        rows = [{"name": f"m{at}:1b", "digest": f"sha256:{at % 1000:064x}"} for at in range(5 * PIECES_AT_ONCE)]
        turns, digests = await turns_of(digests_of([*rows, {"name": "no name"}, {}]))
        assert turns >= len(rows) // ROWS_AT_ONCE
        assert digests == {key_of(row["name"]): row["digest"] for row in rows}
        turns, pieces = await turns_of(pieces_of(digests))
        assert turns >= 5
        assert pieces == by_piece(digests)

    virtual(story)
