"""Why a smaller variant serves, as the backend says that comes nearest to serving the one that was asked for."""

from __future__ import annotations

import asyncio

import pytest

from router.core.units import MIB
from tests.config.keys.play import BIG, MIDDLE, SMALL, hello
from tests.routing.fleet.stage import play

DESK_TOWER = {"desk": (12288,), "tower": (24564,)}
CHAIN = {"defaults.auto_chains": "off", "chains": {"best": [BIG, MIDDLE, SMALL]}}
OWN = {"desk": (MIDDLE, SMALL), "tower": (BIG,)}


async def fill(one, name, mib=20000):
    """Let another program take memory of a backend's card."""
    one.sims[name].cards.set_foreign(0, mib * MIB)
    await asyncio.sleep(3)


async def lose(one, name):
    await one.sims[name].stop()
    await asyncio.sleep(5)


async def told(one):
    """Return why a request is served as it is, as every place says that tells it."""
    status, backend, reply = await one.ask(hello("best"))
    assert (status, backend, reply.headers["x-router-model"]) == (200, "desk", MIDDLE)
    decided = one.decided()[-1]
    reason = reply.headers["x-router-reason"]
    assert (decided.reason, one.ended()[-1].reason) == (reason, reason)
    assert (await one.admin("/router/explain?model=best"))["reason"] == reason
    return reason, decided.cause


def test_a_variant_that_is_only_on_a_backend_that_is_away_is_not_called_not_installed():
    async def story(one):
        await lose(one, "tower")
        assert await told(one) == (f"fallback: {BIG} is on tower, which is away", "missing")

    play(story, DESK_TOWER, CHAIN, models=OWN)


def test_a_variant_for_which_its_backend_is_too_full_is_too_big_there():
    async def story(one):
        await fill(one, "tower")
        assert await told(one) == (f"fallback: {BIG} too big on tower", "too_big")

    play(story, DESK_TOWER, CHAIN, models=OWN)


def test_the_reason_follows_what_the_other_backends_are_like_now():
    """Also for a resident that serves all of these requests."""

    async def story(one):
        await fill(one, "tower")
        assert (await told(one))[0] == f"fallback: {BIG} too big on tower"
        await lose(one, "tower")
        assert (await told(one))[0] == f"fallback: {BIG} is on tower, which is away"
        assert one.loads == [("desk", MIDDLE)]

    play(story, DESK_TOWER, CHAIN, models=OWN)


@pytest.mark.parametrize("is_away", [False, True])
def test_a_variant_that_all_backends_have_is_too_big_on_every_one_that_answers(is_away):
    async def story(one):
        await (lose(one, "tower") if is_away else fill(one, "tower"))
        where = "desk, and tower, which has it, is away" if is_away else "every backend"
        assert await told(one) == (f"fallback: {BIG} too big on {where}", "too_big")

    play(story, DESK_TOWER, CHAIN)


def test_a_variant_that_no_backend_has_is_not_installed():
    async def story(one):
        assert await told(one) == (f"fallback: {BIG} not installed", "missing")

    play(story, DESK_TOWER, CHAIN, models={"desk": (MIDDLE, SMALL), "tower": (SMALL,)})


def test_a_load_that_fails_on_the_backend_that_has_the_variant_is_named():
    async def story(one):
        one.sims["tower"].faults.add("status", status=500, route="/api/generate", model=BIG, times=8)
        reason, cause = await told(one)
        assert reason.startswith(f"fallback: {BIG} could not be loaded on tower: ")
        assert cause == "failed"

    play(story, DESK_TOWER, CHAIN, models=OWN)
