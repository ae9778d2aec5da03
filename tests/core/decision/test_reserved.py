"""Memory that is reserved for teams: what others may evict is what a team holds beyond its floor."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.core.decision.chain import Chain, Variant
from router.core.decision.need import MachineRules
from router.core.decision.plan import Plan, Shortage
from router.core.decision.policy import choose
from router.core.decision.reserved import held_by_team, reserving
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import plan_at
from router.core.decision.unprobed import plan_unprobed
from router.core.decision.verdict import Rules
from router.core.decision.victims import cost_of, never_waiting
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest
from router.core.units import GIB
from tests.core.facts import catalog_of, facts_of, gpu_of, resident_of

OLD, OTHER, NEW = facts_of("old:8b", 8), facts_of("other:8b", 8), facts_of("new:14b", 14)
LITTLE = facts_of("little:3b", 3)
RULES = MachineRules(ServerSettings(max_loaded_models=100))


def loaded(facts, *users, held_gib=9.0, **more):
    return replace(resident_of(facts, held_gib=held_gib, **more), users=users)


def world(*residents):
    free_gib = 24 - sum(sum(one.held_bytes.values()) for one in residents) / GIB
    return Snapshot((gpu_of(free_gib=free_gib),), residents, catalog=catalog_of(NEW))


def reserved(snapshot, asking, **floors_gib):
    found = reserving(snapshot, asking, {team: int(gib * GIB) for team, gib in floors_gib.items()})
    return [one.name for one in found.residents if one.is_reserved], found


def planned(snapshot):
    return plan_at(NEW, LoadOptions(num_ctx=8192, num_batch=512), snapshot, RULES, may_pin=True)


def test_what_a_team_holds_up_to_its_floor_is_not_evicted_by_others() -> None:
    """By the team itself it is, and beyond the floor by everybody."""
    one = world(loaded(OLD, "coding"))
    assert isinstance(planned(one), Plan)
    names, seen = reserved(one, "chat", coding=8)
    assert names == [OLD.name]
    shortage = planned(seen)
    assert isinstance(shortage, Shortage)
    assert shortage.need_bytes > shortage.have_bytes
    assert reserved(one, "coding", coding=8)[0] == []
    assert reserved(one, "chat", chat=8)[0] == []
    two = world(loaded(OLD, "coding"), loaded(OTHER, "coding", order=2))
    assert reserved(two, "chat", coding=9)[0] == []
    assert reserved(two, "chat", coding=10)[0] == [OLD.name, OTHER.name]


def test_what_several_teams_use_is_held_by_them_in_equal_parts() -> None:
    """A floor of one of them keeps it from a third one."""
    one = world(loaded(OLD, "coding", "chat"), loaded(OTHER, "coding", order=2))
    assert held_by_team(one.residents) == {"coding": int(13.5 * GIB), "chat": int(4.5 * GIB)}
    assert reserved(one, "third", chat=1)[0] == [OLD.name]
    assert reserved(one, "coding", chat=1)[0] == [OLD.name]
    assert reserved(one, "third", coding=9)[0] == [OTHER.name]


def test_what_nobody_has_used_lately_is_reserved_for_nobody() -> None:
    """A team that has gone home holds nothing."""
    one = world(loaded(OLD))
    assert reserving(one, "chat", {"coding": 24 * GIB}) is one


def test_another_resident_goes_instead() -> None:
    """Though the reserved one is idle, and the cheapest."""
    one = world(loaded(LITTLE, "coding", held_gib=4), loaded(OTHER, "chat", order=2, held_gib=12, free_at_load_gib=20))
    _, seen = reserved(one, "third", coding=1)
    plan = planned(seen)
    assert isinstance(plan, Plan)
    assert plan.evict == (OTHER.weights,)


def test_an_older_runner_of_the_same_model_goes_in_any_case() -> None:
    """Whoever uses it gets the new one."""
    one = world(loaded(NEW, "coding", held_gib=13.0))
    _, seen = reserved(one, "chat", coding=13)
    plan = planned(seen)
    assert isinstance(plan, Plan)
    assert plan.evict == (NEW.weights,)


def test_without_a_probe_it_goes_last() -> None:
    """What fits is not known then, and somebody has to go."""
    mine, theirs = loaded(OLD, "coding", order=1), loaded(OTHER, "chat", order=2, in_flight=1)
    _, seen = reserved(world(mine, theirs), "third", coding=1)
    unprobed = replace(seen, gpus=None, ceiling_bytes=int(22 * GIB))
    plan = plan_unprobed(NEW, LoadOptions(), 10 * GIB, unprobed)
    assert plan.evict == (OTHER.weights,)
    first = seen.residents[0]
    assert cost_of(first) > cost_of(theirs)
    assert cost_of(first) < cost_of(replace(theirs, kept=True))
    assert never_waiting(seen.residents) == ()


@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.lists(st.sampled_from("abc"), unique=True, max_size=3)), min_size=1, max_size=5
    ),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 24), max_size=3),
    st.sampled_from("abcd"),
)
def test_no_eviction_takes_another_team_below_its_floor(drawn, floors_gib, asking) -> None:
    """One eviction at a time, of what is not reserved; what a team has less than its floor stays all."""
    floors = {team: gib * GIB for team, gib in floors_gib.items()}
    residents = tuple(
        replace(resident_of(facts_of(f"m{at}:1b", gib), held_gib=gib, order=at), users=tuple(users))
        for at, (gib, users) in enumerate(drawn)
    )
    seen = reserving(Snapshot((gpu_of(),), residents), asking, floors)
    before = held_by_team(residents)
    for one in seen.residents:
        after = held_by_team(other for other in residents if other.weights != one.weights)
        hurt = [team for team in one.users if team != asking and after.get(team, 0) < floors.get(team, 0)]
        assert one.is_reserved == bool(hurt)
        assert all(before[team] > 0 for team in one.users)


def test_a_variant_that_has_no_room_says_that_memory_is_reserved() -> None:
    """Beside the bytes that are missing."""
    _, seen = reserved(world(loaded(OLD, "coding")), "chat", coding=8)
    decision = choose(InferenceRequest("new"), Chain("new", (Variant(NEW.name),)), seen, Rules())
    assert decision.chosen is None
    assert "reserved for other teams" in decision.verdicts[0].detail
