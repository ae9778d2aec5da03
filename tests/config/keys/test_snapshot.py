"""`snapshot`: how often the world is read, and when a reading is too old."""

import asyncio
import json

import pytest

from ollama_simulator.clock import run_virtual
from tests.config.keys.play import ALONE, compare_small, get, in_front_of, memory_mode, seen
from tests.http.raw_upstream import answer, raw_upstream

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


def readiness(config, answers):
    """Whether the router is ready after each reading of ps; `answers` are those of an Ollama that has no models."""
    whole = {b"/api/version": {"version": "0.33.0"}, b"/api/tags": {"models": []}}
    found, left = [], list(answers)

    async def script(visit):
        if visit.target in whole:
            await answer(json.dumps(whole[visit.target]).encode())(visit)
        else:
            is_good = left.pop(0) if left else answers[-1]
            await answer(b'{"models":[]}', status=b"200 OK" if is_good else b"500 no")(visit)

    async def story():
        async with raw_upstream(script) as upstream, in_front_of(upstream.url, config) as router:
            await asyncio.sleep(0.5)
            while left:
                found.append((await get(router.admin_url, "/readyz")).status == 200)
                await asyncio.sleep(1)

    run_virtual(story())
    return found


@pytest.mark.key("snapshot.fall")
def test_ollama_counts_as_away_after_fall_failed_readings():
    """The first one is good, the others fail."""
    answers = [True] + [False] * 4
    assert readiness({"snapshot.fall": 1}, answers) == [True, False, False, False]
    assert readiness({"snapshot.fall": 3}, answers) == [True, True, True, False]


@pytest.mark.key("snapshot.rise")
def test_ollama_counts_as_back_after_rise_good_readings():
    """It was away, and answers well twice at a time."""
    answers = [True, *[False] * 3, True, True, False, False, True]
    assert readiness({"snapshot.rise": 2}, answers)[-1]
    assert not any(readiness({"snapshot.rise": 3}, answers)[3:])
