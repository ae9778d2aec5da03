"""`fairness`: how teams that compete share the cards."""

import asyncio

import pytest

from router.config import load_config, prepare
from router.planning.crowds import Crowd, got, play_crowds, write_teams
from tests.config.keys.play import ALONE, BIG, OTHER, compare

ONE, TWO = Crowd("one", BIG, clients=6, answer_tokens=50), Crowd("two", OTHER, clients=6, answer_tokens=50)
WAITS = {**ALONE, "queue.wait_s": 3600}


@pytest.mark.key("fairness.window_s")
def test_window_s_is_how_far_a_team_may_be_ahead_of_one_that_waits_to_replace_its_model(tmp_path):
    """The longer, the fewer loads."""

    async def story(one):
        replies = await play_crowds(one, (ONE, TWO), 60)
        served = [got(found).served for found in replies.values()]
        assert min(served) > 5
        return len(one.loads)

    config = {**WAITS, "teams": write_teams(tmp_path, (ONE, TWO))}
    few, auto, many = compare(story, "fairness.window_s", [15, "auto", 2], config)
    assert few < many
    assert few <= auto <= many


@pytest.mark.key("fairness.age_bound_s")
def test_the_team_that_was_served_least_gets_its_model_after_age_bound_s(tmp_path):
    """However far the other one may be ahead."""

    async def story(one):
        crowds = asyncio.create_task(play_crowds(one, (ONE,), 40))
        await asyncio.sleep(5)
        reply = await one.ask(TWO.body, "/api/generate", TWO.headers)
        await crowds
        assert reply.status == 200
        return reply.took_s

    config = {**WAITS, "fairness.window_s": 1000, "teams": write_teams(tmp_path, (ONE, TWO))}
    waits = compare(story, "fairness.age_bound_s", [3, 12], config)
    assert waits == [pytest.approx(3 + 4, abs=2), pytest.approx(12 + 4, abs=2)]


@pytest.mark.key("fairness.age_bound_s")
def test_a_reload_changes_the_bounds_of_those_that_wait_already(tmp_path):
    """In the running router: what each team has had stays."""

    async def story(one):
        crowds = asyncio.create_task(play_crowds(one, (ONE,), 60))
        await asyncio.sleep(5)
        asking = asyncio.create_task(one.ask(TWO.body, "/api/generate", TWO.headers))
        await asyncio.sleep(10)
        before = {row.team: row.served_s for row in one.router.router.backend.line.shares.rows()}
        one.router.take_over(prepare(load_config(env={}, options={**config, "fairness.age_bound_s": 3}), 2))
        after = {row.team: row.served_s for row in one.router.router.backend.line.shares.rows()}
        assert before == after
        reply = await asking
        await crowds
        return reply.took_s

    config = {**WAITS, "fairness.window_s": 1000, "teams": write_teams(tmp_path, (ONE, TWO))}
    waits = compare(story, "fairness.age_bound_s", [1000, 2000], config)
    assert waits == [pytest.approx(10 + 4, abs=3)] * 2
