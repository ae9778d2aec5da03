"""Shows run in the background: few at once, those that are needed first, and one that hangs holds up no other."""

import asyncio
import gc
from collections import Counter

import pytest

from ollama_simulator.clock import run_virtual
from router.adapters.catalog import ROWS_AT_ONCE, SETTLE_S, SHOWN_AT_ONCE, CatalogReader
from router.adapters.control import Refused
from router.adapters.leaving import AT_ONCE as LEAVING_AT_ONCE
from router.adapters.leaving import SOON_S
from router.adapters.shown_models import ShownModels
from router.adapters.shows import AT_ONCE, HANGING_IN_BACKGROUND, IN_BACKGROUND, LONG_S, PAUSE_S
from router.core.ollama.names import key_of
from router.core.ollama.show import MAX_BYTES
from router.errors import ModelNotFound, UpstreamError, UpstreamTimeout

PATIENCE_S = 10.0


class Shower:
    """Implements the catalog's server: each show takes `show_s`, those of `hanging` as long as the client waits."""

    def __init__(self, *names, show_s=0.1):
        self.names = list(names)
        self.show_s = show_s
        self.hanging, self.errors = set(), {}
        self.tags_errors = []
        self.asked, self.under_way, self.most = [], 0, 0

    async def tags(self):
        if self.tags_errors:
            raise self.tags_errors.pop(0)
        return [{"name": name, "digest": f"d-{name}", "size": 1000} for name in self.names]

    async def show(self, name, **_options):
        self.asked.append(name)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if name in self.hanging:
                await asyncio.sleep(60)
                raise UpstreamTimeout("late")
            await asyncio.sleep(self.show_s)
            if self.errors.get(name):
                raise self.errors[name].pop(0)
            return {"modelfile": f"FROM sha256-{ord(name[0]):064x}", "model_info": {"general.architecture": "llama"}}
        finally:
            self.under_way -= 1


def play(story, server, **more):
    said = []

    async def run():
        reader = CatalogReader(server, patience_s=PATIENCE_S, report=said.append, **more)
        changes = []
        reader.notify(lambda: changes.append(reader.catalog()))
        try:
            return await story(reader, changes)
        finally:
            await reader.aclose()
            assert server.under_way == 0

    run_virtual(run())
    return said


def is_shown(catalog, name):
    return bool(catalog[key_of(name)].info)


async def elapsed_s(work):
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    await work
    return loop.time() - started_s


def test_few_models_are_shown_before_the_reading_ends():
    """The catalog is complete then."""

    async def story(reader, _changes):
        catalog = await reader.refresh()
        assert [is_shown(catalog, name) for name in "abc"] == [True] * 3
        assert (reader.is_reading, server.most) == (False, IN_BACKGROUND)

    server = Shower(*"abc")
    assert play(story, server) == []


def test_a_reading_does_not_wait_for_many_models():
    """They have coarse facts until each is shown, and every change is reported."""

    async def story(reader, changes):
        assert await elapsed_s(reader.refresh()) == pytest.approx(SETTLE_S)
        assert not is_shown(reader.catalog(), "m99")
        await asyncio.sleep(100 * 0.3)
        assert all(is_shown(changes[-1], name) for name in server.names)
        assert server.most <= IN_BACKGROUND
        assert await reader.refresh() == changes[-1]
        assert len(server.asked) == 100

    server = Shower(*(f"m{number}" for number in range(100)), show_s=0.3)
    play(story, server)


@pytest.mark.parametrize("hanging", ["a", "ab", "abc", "abcd"])
def test_hanging_shows_hold_up_no_other_one(hanging):
    """They leave their places to others after a while; even more of them only until their own end."""

    async def story(reader, _changes):
        assert await elapsed_s(reader.refresh()) == pytest.approx(SETTLE_S)
        await asyncio.sleep(2 * LONG_S if len(hanging) < HANGING_IN_BACKGROUND else 60 + LONG_S)
        assert [is_shown(reader.catalog(), name) for name in "efgh"] == [True] * 4
        assert server.most <= HANGING_IN_BACKGROUND

    server = Shower(*"abcdefgh")
    server.hanging = set(hanging)
    play(story, server)


def test_a_model_that_is_needed_is_shown_at_once():
    """Although the places in the background are taken."""

    async def story(reader, _changes):
        await reader.refresh()
        assert reader.awaited([key_of("z")]) == [key_of("z")]
        assert await elapsed_s(reader.read_first([key_of("z")])) == pytest.approx(0.1)
        assert is_shown(reader.catalog(), "z")
        assert reader.awaited([key_of("z"), key_of("unknown"), "nonsense"]) == []

    server = Shower(*"abcdefz")
    server.hanging = set("abcdef")
    play(story, server)


def test_a_model_whose_show_hangs_is_waited_for_once():
    """By all that need it together, from when the first of them asked."""

    async def story(reader, _changes):
        await reader.refresh()
        keys = [key_of("a")]
        first = asyncio.create_task(elapsed_s(reader.read_first(keys)))
        await asyncio.sleep(4)
        assert await elapsed_s(reader.read_first(keys, 5.0)) == pytest.approx(1, abs=0.1)
        assert await elapsed_s(reader.read_first(keys)) == pytest.approx(PATIENCE_S - 5, abs=0.1)
        assert await first == pytest.approx(PATIENCE_S, abs=0.1)
        assert await elapsed_s(reader.read_first(keys)) == 0
        assert reader.catalog()[keys[0]].weights == "manifest-d-a"

    server = Shower("a", "b")
    server.hanging = {"a"}
    play(story, server)


def test_many_models_that_are_needed_are_shown_in_bounds():
    """The rest in their turn."""

    async def story(reader, _changes):
        await reader.refresh()
        await reader.read_first([key_of(name) for name in server.names])
        assert server.most == AT_ONCE
        assert all(is_shown(reader.catalog(), name) for name in server.names)

    server = Shower(*(f"m{number}" for number in range(40)), show_s=1.5)
    play(story, server)


def test_a_show_that_did_not_end_in_time_is_tried_again_after_a_pause():
    """A disk that is gone is not asked all the time."""

    async def story(reader, _changes):
        for _ in range(20):
            await reader.refresh()
            await asyncio.sleep(30)
        assert 3 <= len(server.asked) <= 5
        server.hanging.clear()
        await asyncio.sleep(16 * PAUSE_S)
        await reader.refresh()
        assert is_shown(reader.catalog(), "a")

    server = Shower("a")
    server.hanging = {"a"}
    said = play(story, server)
    assert said == ["a is sized by its download until Ollama shows it: late"]


@pytest.mark.parametrize(
    "error", [ModelNotFound("not found"), Refused("/api/show", 400, "x"), Refused("/api/show", 500, "x")]
)
def test_a_refused_show_is_asked_once_more(error):
    """Ollama refuses any model while a manifest vanishes during its listing."""

    async def story(reader, _changes):
        assert is_shown(await reader.refresh(), "a")

    server = Shower("a", "b")
    server.errors = {"a": [error]}
    assert play(story, server) == []
    assert server.asked.count("a") == 2


def test_a_show_that_is_refused_twice_costs_its_model_alone():
    """It is tried again with the next reading, and reported once."""

    async def story(reader, _changes):
        catalog = await reader.refresh()
        assert (is_shown(catalog, "a"), is_shown(catalog, "b")) == (False, True)
        assert reader.awaited([key_of("a")]) == []
        await reader.refresh()
        assert is_shown(await reader.refresh(), "a")

    server = Shower("a", "b")
    server.errors = {"a": [UpstreamError("broken")] * 2}
    assert play(story, server) == ["a is sized by its download until Ollama shows it: broken"]


def test_a_model_that_is_gone_is_not_shown_any_more():
    """Nor does anything wait for it."""

    async def story(reader, _changes):
        await reader.refresh()
        server.names = ["a", "b"]
        await reader.refresh()
        await asyncio.sleep(300)
        assert "z" not in server.asked
        assert reader.awaited([key_of("z")]) == []

    server = Shower(*"abcdz")
    server.hanging = set("abcd")
    play(story, server)


def test_metadata_that_breaks_a_formula_costs_its_model_alone(monkeypatch):
    """Whatever the checks of single figures overlook."""

    def broken(facts):
        raise ZeroDivisionError(facts.name)

    async def story(reader, _changes):
        assert reader.catalog() == {}
        facts = (await reader.refresh())[key_of("a")]
        assert (facts.info, facts.weights) == ({}, f"sha256-{ord('a'):064x}")

    monkeypatch.setattr("router.adapters.shows.shape_of", broken)
    (text,) = play(story, Shower("a"))
    assert "ZeroDivisionError" in text


def test_a_list_that_cannot_be_read_is_reported_once():
    """However often it is tried."""

    async def story(reader, _changes):
        assert len(await reader.refresh()) == 1
        for _ in range(2):
            server.tags_errors = [Refused("/api/tags", 500, "x")]
            with pytest.raises(UpstreamError):
                await reader.refresh()

    server = Shower("a")
    (text,) = play(story, server)
    assert text.startswith("the list of models cannot be read: ")


@pytest.mark.parametrize("count", [200, 800])
def test_the_catalog_is_read_a_few_times_however_many_models_are_shown(count):
    """Each reading takes all models, so one per show would be quadratic; what something waits for is there at once."""
    server = Shower(*(f"m{number}" for number in range(count)), show_s=0.001)

    async def story(reader, changes):
        await reader.refresh()
        await reader.read_first([key_of(f"m{count - 1}")])
        assert changes[-1][key_of(f"m{count - 1}")].weights
        while reader.is_reading:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert all(facts.weights for facts in reader.catalog().values())
        assert changes[-1].keys() == reader.catalog().keys()
        assert len(changes) <= 8

    play(story, server)


class CountedRow(dict):
    """A row that counts how often any of them is read."""

    reads = 0

    def get(self, *args):
        CountedRow.reads += 1
        return super().get(*args)


class Counting(Shower):
    """Lists rows that count."""

    async def tags(self):
        return [CountedRow(row) for row in await super().tags()]


def test_a_catalog_of_thousands_is_made_in_steps():
    """Others get their turn in between: no turn of the loop reads more than a part of the rows."""
    most = [0]

    async def watch():
        for _ in range(200):  # not for ever: no time passes meanwhile
            CountedRow.reads = 0
            await asyncio.sleep(0)
            most[0] = max(most[0], CountedRow.reads)

    async def story(reader, _changes):
        watching = asyncio.create_task(watch())
        catalog = await reader.refresh()
        await watching
        assert len(catalog) == len(server.names)

    CountedRow.reads = 0
    server = Counting(*(f"m{number}" for number in range(10 * ROWS_AT_ONCE)), show_s=60)
    play(story, server)
    whole_per_row = 20  # what making the facts of one reads, at least
    assert 0 < most[0] < 5 * ROWS_AT_ONCE * whole_per_row


def test_what_is_shown_of_one_model_leaves_the_facts_of_all_others():
    """Only what was not shown yet is looked at again."""

    async def story(reader, _changes):
        before = await reader.refresh()
        await asyncio.sleep(1)
        after = reader.catalog()
        assert [is_shown(after, name) for name in "abcd"] == [True] * 4
        CountedRow.reads = 0
        assert reader.catalog() is after
        assert CountedRow.reads == 0
        assert set(before) == set(after)

    play(story, Counting(*"abcd", show_s=0.6))


class OneDigest(Shower):
    """All names stand for one model."""

    async def tags(self):
        return [row | {"digest": "d"} for row in await super().tags()]


def test_of_very_many_names_of_one_model_the_facts_are_told_in_parts():
    """One show says what all of them are; making the facts of all in one step would hold the loop."""
    count = 2 * SHOWN_AT_ONCE + 1

    async def story(reader, changes):
        await reader.refresh()
        while reader.is_reading:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        shown = [sum(bool(facts.info) for facts in catalog.values()) for catalog in changes]
        steps = [after - before for before, after in zip([0, *shown], shown, strict=False)]
        assert shown[-1] == count
        assert max(steps) == SHOWN_AT_ONCE

    play(story, OneDigest(*(f"m{number}" for number in range(count)), show_s=SETTLE_S + 1))


def test_the_facts_of_models_that_are_gone_are_freed_in_steps():
    """Even if whoever read the old list lets it go long after, in one step."""

    async def story(reader, changes):
        before = await reader.refresh()
        await asyncio.sleep(5)
        server.names = ["last"]
        await reader.refresh()
        await asyncio.sleep(10)
        left = len(reader._shows.leaving)
        assert left >= 300  # they are still read
        del before
        changes.clear()
        counts = []
        while len(reader._shows.leaving):
            await asyncio.sleep(SOON_S)
            counts.append(len(reader._shows.leaving))
        steps = [one - other for one, other in zip([left, *counts], counts, strict=False)]
        assert max(steps) <= 2 * LEAVING_AT_ONCE

    server = Shower(*(f"m{number}" for number in range(300)))
    play(story, server, kept=ShownModels(most_unlisted_bytes=0))


class Odd(Shower):
    """Lists a size that no file has."""

    async def tags(self):
        return [row | {"size": 10**30} for row in await super().tags()]


def test_a_number_that_no_model_has_does_not_hide_its_row():
    """It counts as the largest size."""

    async def story(reader, _changes):
        (facts,) = (await reader.refresh()).values()
        assert facts.size_bytes == MAX_BYTES

    play(story, Odd("a"))


def test_a_long_list_of_models_is_held_as_few_objects():
    """Python's garbage collector looks at what is new in one step, and each row would be three objects."""

    async def story(reader, _changes):
        await reader.refresh()
        gc.collect()
        assert not any(map(gc.is_tracked, reader._rows.values()))
        kinds = Counter(type(one).__name__ for one in gc.get_objects())
        server.names += [f"more{number}" for number in range(1000)]
        await reader.refresh()
        gc.collect()
        more = Counter(type(one).__name__ for one in gc.get_objects()) - kinds
        assert more["ModelFacts"] == 1000
        assert more["dict"] + more["list"] + more["frozenset"] + more["Row"] < 20

    server = Shower(*(f"m{number}" for number in range(10)), show_s=60)
    play(story, server)
