"""Runners on the cards that `/api/ps` does not list."""

import pytest

from router.adapters.gpu.reading import GpuProcess
from router.backend.tracked import Tracked
from router.backend.unlisted import LEAST_BYTES, UnlistedRunners
from router.core.units import GIB
from tests.backend.machine import BIG, MIDDLE, row_of, weights_of

LIMIT_S = 60.0


def runner(pid, used_bytes=4 * GIB, name="/usr/local/lib/ollama/llama-server", card=0):
    return GpuProcess(card, pid, name, used_bytes)


def tracked(facts, order):
    return Tracked(weights_of(facts), facts.name, row_of(facts, num_ctx=4096), order, 0.0)


def seen(*readings):
    """Return whether there are any after these readings: (at, processes, residents)."""
    runners = UnlistedRunners(LIMIT_S)
    for at_s, processes, residents in readings:
        runners.note(processes, {one.weights: one for one in residents}, at_s)
    return runners.are_there(readings[-1][0])


ONE, OTHER = tracked(BIG, order=1), tracked(MIDDLE, order=2)


def test_a_runner_more_than_models_are_listed_is_a_load_until_it_is_listed():
    """From the first reading on."""
    assert seen((0, [runner(7)], []))
    assert seen((0, [runner(7), runner(8)], [ONE]))
    assert not seen((0, [runner(7)], []), (5, [runner(7)], [ONE]))
    assert not seen((0, [runner(7), runner(8)], [ONE]), (5, [runner(7), runner(8)], [ONE, OTHER]))


def test_a_runner_that_ps_lists_no_more_is_on_its_way_out():
    """Its memory is about to come back."""
    listed = (0, [runner(7), runner(8)], [ONE, OTHER])
    assert seen(listed, (5, [runner(7), runner(8)], [ONE]))
    assert not seen(listed, (5, [runner(7)], [ONE]))


def test_what_stays_for_longer_than_a_load_takes_is_another_servers():
    """It does not make each load of ours one that is unlisted, nor does it hide one."""
    first, later = (0, [runner(7)], []), (LIMIT_S, [runner(7)], [])
    assert not seen(first, later)
    assert not seen(first, later, (100, [runner(7), runner(8)], [ONE]))
    assert seen(first, later, (100, [runner(7), runner(8)], []))


def test_a_model_that_another_client_has_reloaded_is_a_load_of_its_own():
    """Its new runner is listed."""
    old, new = [tracked(BIG, order=1)], [tracked(BIG, order=2)]
    assert not seen((0, [runner(7)], old), (100, [runner(8)], new))


@pytest.mark.parametrize(
    "process",
    [
        runner(7, name="game.exe"),
        runner(7, name="python3"),
        runner(7, used_bytes=LEAST_BYTES - 1),
        runner(7, used_bytes=None),
    ],
)
def test_programs_that_have_no_model_of_ollama_are_no_runners(process):
    """By their names, or because they hold a driver's context only, or nobody knows how much."""
    assert not seen((0, [process], []))


@pytest.mark.parametrize("name", ["", "ollama", "llama-server", r"C:\Ollama\lib\ollama\llama-server.exe"])
def test_runners_are_named_like_ollama_or_not_at_all(name):
    """A driver may not know the names, as in a container."""
    assert seen((0, [runner(7, name=name)], []))


def test_a_runner_on_several_cards_is_one():
    """Its parts count together."""
    parts = [runner(7, LEAST_BYTES // 2 + 1, card=card) for card in (0, 1)]
    assert seen((0, parts, []))
    assert not seen((0, [runner(7), runner(7, card=1)], [ONE]))
