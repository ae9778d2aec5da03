"""`snapshot`: how often the world is read, and when a reading is too old."""

import asyncio

import pytest

from tests.config.keys.play import ALONE, compare_small, memory_mode, seen

SPAN_S = 12


def count_of(path):
    """A story: how often Ollama is asked for `path` within `SPAN_S`, by a router without requests."""

    async def story(one):
        await asyncio.sleep(1)
        before = len(seen(one, path))
        await asyncio.sleep(SPAN_S)
        return len(seen(one, path)) - before

    return story


async def readings(_one, page):
    """How often the cards are read within `SPAN_S`."""
    await asyncio.sleep(1)
    before = page.hits
    await asyncio.sleep(SPAN_S)
    return page.hits - before


@pytest.mark.key("snapshot.ps_interval_s")
def test_ps_is_read_every_ps_interval_s():
    """Once a second and four times a second."""
    found = compare_small(count_of("/api/ps"), "snapshot.ps_interval_s", [1, 0.25])
    assert found == [pytest.approx(12, abs=1), pytest.approx(48, abs=5)]


@pytest.mark.key("snapshot.ps_interval_s")
def test_ps_is_read_no_more_often_than_ps_interval_s_says():
    """Though the cards are read each second."""
    config = {**ALONE, "snapshot.probe_interval_s": 1}
    found = compare_small(count_of("/api/ps"), "snapshot.ps_interval_s", [1, 5], config)
    assert found == [pytest.approx(12, abs=1), pytest.approx(2, abs=1)]


@pytest.mark.key("snapshot.probe_interval_s")
def test_free_memory_is_read_every_probe_interval_s():
    """From the page that the configuration names."""
    found = compare_small(readings, "snapshot.probe_interval_s", [1, 0.25], page=True)
    assert found == [pytest.approx(12, abs=1), pytest.approx(48, abs=5)]


@pytest.mark.key("snapshot.probe_interval_s")
def test_free_memory_is_read_no_more_often_than_probe_interval_s_says():
    """Though ps is read each second."""
    config = {**ALONE, "snapshot.ps_interval_s": 1}
    found = compare_small(readings, "snapshot.probe_interval_s", [1, 5], config, page=True)
    assert found == [pytest.approx(12, abs=1), pytest.approx(2, abs=1)]


@pytest.mark.key("snapshot.stale_after_s")
def test_the_last_reading_holds_for_stale_after_s():
    """Four seconds after the cards could be read for the last time."""

    async def story(one, page):
        page.is_broken = True
        await asyncio.sleep(4)
        return await memory_mode(one)

    assert compare_small(story, "snapshot.stale_after_s", [2, 9], page=True) == ["verify", "probe"]


@pytest.mark.key("snapshot.catalog_interval_s")
def test_the_installed_models_are_read_every_catalog_interval_s():
    """While nothing else gives cause for it."""
    found = compare_small(count_of("/api/tags"), "snapshot.catalog_interval_s", [1, 6])
    assert found == [pytest.approx(12, abs=2), pytest.approx(2, abs=1)]
