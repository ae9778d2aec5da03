"""Teams in one line: what each gets of the card, whatever the others ask for."""

import asyncio

import pytest

from ollama_simulator.machine.spec import Speeds
from router.planning.crowds import Crowd, got, play_crowds, write_teams
from tests.config.keys.play import ALONE, BIG, OTHER, SMALL, play

SPEEDS = Speeds(load_mib_per_s=10000, tokens_per_s=100, cpu_tokens_per_s=4)
WAITS = {**ALONE, "queue.wait_s": 3600}


def shares_of(one):
    return one.router.router.backend.line.shares


def between(crowds, folder, seconds=120.0, watch=None, **config):
    """Return what each crowd got, and what `watch` returned of the router each half second."""

    async def story(one):
        seen, is_over = [], False

        async def look():
            while not is_over:
                await asyncio.sleep(0.5)
                if watch is not None:
                    seen.append(watch(one))

        looking = asyncio.create_task(look())
        replies = await play_crowds(one, crowds, seconds)
        is_over = True
        await looking
        await asyncio.sleep(5)
        assert all(not row.waiting and not row.in_flight for row in shares_of(one).rows())
        return {team: got(found) for team, found in replies.items()}, seen

    return play(story, {**WAITS, "teams": write_teams(folder, crowds), **config}, speeds=SPEEDS)


def test_b7_a_flood_of_one_team_on_the_same_model_hardly_delays_another_one(tmp_path):
    """Its request waits for what is at work and the one that is ahead, not for the two hundred others."""
    rare = Crowd("rare", SMALL, every_s=10, answer_tokens=200)
    flood = Crowd("flood", SMALL, clients=200, answer_tokens=200)
    alone, _ = between((rare,), tmp_path)
    beside, _ = between((rare, flood), tmp_path)
    assert beside["rare"].p50_s <= 3 * 2 + 0.5
    assert beside["rare"].p99_s <= 2 * alone["rare"].p99_s + 2
    assert beside["flood"].served >= 0.95 * (120 / 2 - beside["rare"].served)


def test_t1_two_teams_that_wait_throughout_are_never_further_apart_than_the_window_and_a_charge(tmp_path):
    """In card-seconds, with the switches that each has caused."""
    crowds = Crowd("one", BIG, clients=8, answer_tokens=100), Crowd("two", OTHER, clients=8, answer_tokens=100)

    def lags(one):
        rows = {row.team: row for row in shares_of(one).rows()}
        both_wait = len(rows) == 2 and all(row.waiting for row in rows.values())
        return max(row.lag_s for row in rows.values()) if both_wait else 0.0

    found, seen = between(crowds, tmp_path, 240, lags, **{"fairness.window_s": 10})
    charge_s = 4.0  # the longest switch
    assert 5 < max(seen) <= 10 + charge_s
    assert abs(found["one"].served_s - found["two"].served_s) <= 2 * (10 + charge_s)


@pytest.mark.parametrize("lengths", [(100, 1000), (50, 2000)])
def test_t1_a_team_of_long_requests_gets_no_more_of_a_model_than_one_of_short_ones(lengths, tmp_path):
    """What a request waits behind another one in Ollama is that one's time: they do not take turns one by one."""
    crowds = tuple(
        Crowd(team, SMALL, clients=8, answer_tokens=length)
        for team, length in zip(("short", "long"), lengths, strict=True)
    )
    found, _ = between(crowds, tmp_path, 240)
    charge_s = lengths[1] / 100
    assert abs(found["short"].served_s - found["long"].served_s) <= 2 * (5 + charge_s)


def test_a_team_of_few_short_requests_does_not_fall_behind_one_of_many_long_ones(tmp_path):
    """It waits for the one at work and the one ahead, however long it goes on."""
    few, many = Crowd("few", SMALL, every_s=10, answer_tokens=200), Crowd("many", SMALL, clients=20, answer_tokens=1000)
    found, _ = between((few, many), tmp_path, 240)
    assert found["few"].p99_s <= 2 * 10 + 2 * 2 + 0.5


@pytest.mark.parametrize("shares", [(1, 1, 1), (50, 1, 1), (1000, 30, 1)])
def test_t2_nobody_starves_whatever_the_weights(shares, tmp_path):
    """Not even beside a team of a thousand times the weight."""
    models = BIG, OTHER, SMALL
    crowds = tuple(
        Crowd(f"team{at}", model, clients=4, answer_tokens=50, share=share)
        for at, (model, share) in enumerate(zip(models, shares, strict=True))
    )
    found, _ = between(crowds, tmp_path, 240)
    assert all(one.served > 0 for one in found.values())


def test_a_flood_on_another_model_delays_a_team_by_the_window_and_a_switch(tmp_path):
    """Its own request is served by the load that it was for, then the flood has the card again."""
    rare = Crowd("rare", BIG, every_s=20, answer_tokens=100)
    flood = Crowd("flood", OTHER, clients=40, answer_tokens=100)
    found, _ = between((rare, flood), tmp_path, 200, **{"fairness.window_s": 6})
    assert found["rare"].failed == 0
    assert found["rare"].p99_s <= 6 + 4 + 2 + 2 * 1 + 1
    assert found["flood"].served > 40


def test_one_team_is_served_by_the_rules_of_the_line_as_without_teams(tmp_path):
    """The same times, to the millisecond, with its clients named or not."""
    crowds = Crowd("one", BIG, clients=5, answer_tokens=50), Crowd("one", OTHER, clients=5, answer_tokens=50)

    async def story(one):
        replies = await play_crowds(one, crowds, 60)
        return sorted(round(reply.took_s, 3) for reply in replies["one"] if reply.status == 200), len(one.loads)

    named = play(story, {**WAITS, "teams": write_teams(tmp_path, crowds)}, speeds=SPEEDS)
    assert named == play(story, WAITS, speeds=SPEEDS)


def test_whoever_of_several_teams_leaves_takes_no_charge_along(tmp_path):
    """Clients that give up while they wait, are let in or under way: all counts are 0 at the end."""
    crowds = Crowd("one", SMALL, answer_tokens=30), Crowd("two", OTHER, answer_tokens=30)

    async def story(one):
        tasks = [
            asyncio.create_task(one.ask(crowd.body, "/api/generate", crowd.headers))
            for _ in range(30)
            for crowd in crowds
        ]
        for index, task in enumerate(tasks):
            if index % 3:
                await asyncio.sleep(0.11)
                task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert {reply.status for index, reply in enumerate(replies) if not index % 3} == {200}
        await asyncio.sleep(2)
        rows = shares_of(one).rows()
        assert {(row.team, row.waiting, row.in_flight) for row in rows} == {("one", 0, 0), ("two", 0, 0)}
        assert all(row.served_s >= 10 * 0.25 for row in rows)

    play(story, {**WAITS, "teams": write_teams(tmp_path, crowds)}, speeds=SPEEDS)


FP16 = "llama3.1:8b-instruct-fp16"
TWO_CARDS = {"cards": (24564, 24564), "models": (OTHER, FP16, BIG), "speeds": SPEEDS}


def on_two_cards(crowds, config, seconds):
    """Return what each crowd got where two cards hold two of three models."""

    async def story(one):
        replies = await play_crowds(one, crowds, seconds)
        return {team: got(found) for team, found in replies.items()}

    return play(story, {**WAITS, "backends.local.server.num_parallel": 1, **config}, **TWO_CARDS)


def test_t2_nobody_starves_on_several_cards_where_the_model_to_replace_could_be_any_of_them(tmp_path):
    """The plan names now this busy one, now that one, as their requests come and go; one of them makes room."""
    models = zip(("one", "two", "three"), (OTHER, FP16, BIG), strict=True)
    crowds = tuple(Crowd(team, model, clients=6, answer_tokens=100) for team, model in models)
    found = on_two_cards(crowds, {"teams": write_teams(tmp_path, crowds), "fairness.age_bound_s": 10}, 120)
    had_s = {team: one.served_s for team, one in found.items()}
    assert min(had_s.values()) >= sum(had_s.values()) / 3 / 2


def test_b6_without_teams_a_third_model_gets_a_card_of_two_busy_ones():
    """By the age bound of the queue."""
    crowds = tuple(Crowd(f"c{at}", model, clients=4, answer_tokens=100) for at, model in enumerate((OTHER, FP16, BIG)))
    found = on_two_cards(crowds, {}, 120)
    assert min(one.served for one in found.values()) >= 10
