"""How a switch ends, and what is known, learned and reported then."""

import asyncio
from dataclasses import replace

import pytest

from router.backend.capacity import CEILING_S
from router.backend.residency import is_embedder, lease_for
from router.backend.switches import SwitchResult
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from router.errors import LoadFailed, ProbeError
from router.telemetry import Measured, Spilled, Switched
from tests.backend.machine import BIG, EMBEDDER, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.scene import play
from tests.core.facts import facts_of

ALL = (BIG, MIDDLE, SMALL, EMBEDDER)
OPTIONS = LoadOptions(num_ctx=32768, num_batch=512)
LEASE_S = 330.0


def phases(scene):
    return [(event.phase, event.model) for event in scene.heard.of(Switched)]


def switched(scene, target):
    return scene.backend.residency.switch(target)


def test_a_load_is_made_with_the_options_of_the_plan_and_a_finite_lease():
    """What it took is measured, learned and reported; the resident has exactly those options."""

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.DONE
        assert scene.machine.named("load") == [(SMALL.name, OPTIONS, LEASE_S, False)]
        tracked = scene.resident(SMALL)
        assert (tracked.options, tracked.lease_s, tracked.free_at_load_bytes) == (OPTIONS, LEASE_S, {0: 24 * GIB})
        assert (tracked.held_bytes, tracked.is_measured) == ({0: SMALL.size_bytes + GIB}, True)
        (measured,) = scene.heard.of(Measured)
        assert measured.measured_bytes == SMALL.size_bytes + GIB
        assert phases(scene) == [("started", SMALL.name), ("finished", SMALL.name)]
        assert scene.heard.of(Switched)[1].error == ""
        (learned,) = scene.backend.lessons.learned.by_weights[weights_of(SMALL)]
        assert (learned.spilled, learned.measured_bytes) == (False, SMALL.size_bytes + GIB)

    play(story, MemoryMachine(*ALL))


def test_what_is_in_the_way_is_unloaded_first():
    """And named in the event; the load comes once all of it has gone."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        await scene.make_resident(SMALL)
        target = scene.target(BIG)
        assert set(target.plan.evict) == {weights_of(MIDDLE), weights_of(SMALL)}
        assert await switched(scene, target) is SwitchResult.DONE
        assert list(scene.machine.rows) == [BIG.name]
        assert scene.heard.of(Switched)[-1].evicted == (SMALL.name, MIDDLE.name)
        calls = [call[:2] for call in scene.machine.calls if call[0] in ("load", "unload")]
        assert calls[-3:] == [("unload", MIDDLE.name), ("unload", SMALL.name), ("load", BIG.name)]

    play(story, MemoryMachine(*ALL))


def test_an_embedder_is_loaded_by_its_own_route():
    """`/api/generate` does not load it."""

    async def story(scene):
        assert await switched(scene, scene.target(EMBEDDER)) is SwitchResult.DONE
        ((_, options, _, is_embedding),) = scene.machine.named("load")
        assert (options.num_batch, is_embedding) == (None, True)

    play(story, MemoryMachine(*ALL))


class OnlyEmbeds(MemoryMachine):
    """Refuses to load its models for text, as Ollama does with an embedder."""

    async def load(self, name, options, keep_alive_s, embedding=False):
        if not embedding:
            self.calls.append(("load", name, options, keep_alive_s, embedding))
            raise LoadFailed(f'"{name}" does not support generate', status=400)
        await super().load(name, options, keep_alive_s, embedding)


def test_a_model_that_turns_out_to_embed_only_is_loaded_for_that():
    """As one may that Ollama has not shown yet."""

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.DONE
        (_, asked, *_, first), (_, again, *_, second) = scene.machine.named("load")
        assert (asked, first, second) == (again, False, True)

    play(story, OnlyEmbeds(*ALL))


def test_a_load_that_ps_shows_partly_on_the_gpu_is_undone_and_learned():
    """No request reaches it; what went elsewhere is reported."""
    machine = MemoryMachine(*ALL)
    machine.vram_share = 0.9

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.SPILLED
        assert (machine.rows, scene.resident(SMALL)) == ({}, None)
        (spilled,) = scene.heard.of(Spilled)
        assert (spilled.model, spilled.size_vram_bytes) == (SMALL.name, int(SMALL.size_bytes * 0.9))
        assert "bytes were not on the GPU" in scene.heard.of(Switched)[1].error
        (learned,) = scene.backend.lessons.learned.by_weights[weights_of(SMALL)]
        assert learned.spilled

    play(story, machine)


def test_a_load_of_which_the_probe_sees_too_little_is_undone_though_ps_shows_all_of_it():
    """Memory of another kind counts as the GPU's there."""
    machine = MemoryMachine(*ALL)
    machine.seen_share = 0.4

    async def story(scene):
        assert await switched(scene, scene.target(MIDDLE)) is SwitchResult.SPILLED
        assert machine.rows == {}

    play(story, machine)


def test_a_runner_with_less_context_than_was_asked_for_is_undone():
    """It would be loaded again for the request."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        target = scene.target(SMALL)
        smaller = replace(target.plan, options=LoadOptions(num_ctx=40960, num_batch=512))
        machine.load_s = 0.0
        machine.put(SMALL, num_ctx=32768)
        adopts = replace(smaller, adopts=True)
        assert await switched(scene, replace(target, plan=adopts)) is SwitchResult.MOVED
        assert machine.rows == {}

    play(story, machine)


@pytest.mark.parametrize("beside", [False, True])
def test_without_a_probe_a_spill_teaches_what_the_cards_hold(beside):
    """For a while, and with some slack. Beside others it is no ban: it may fit when they have gone."""
    machine = MemoryMachine(*ALL)
    machine.vram_share = 0.5

    async def story(scene):
        target = scene.target(MIDDLE)
        if beside:
            machine.put(SMALL)
        assert await switched(scene, target) is SwitchResult.SPILLED
        ceiling = scene.backend.cards.capacity.ceiling_bytes()
        assert ceiling == (SMALL.size_bytes if beside else 0) + MIDDLE.size_bytes // 2 + GIB
        assert bool(scene.backend.lessons.learned.by_weights) is not beside
        await asyncio.sleep(CEILING_S + 1)
        assert scene.backend.cards.capacity.ceiling_bytes() is None

    play(story, machine, has_probe=False)


def test_without_a_probe_a_load_for_which_ollama_evicted_shows_that_both_do_not_fit_together():
    """The next plan makes room itself."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        assert target.plan.evict == ()
        asyncio.get_running_loop().call_later(1.0, machine.drop, MIDDLE.name)
        assert await switched(scene, target) is SwitchResult.DONE
        assert scene.backend.cards.capacity.ceiling_bytes() == MIDDLE.size_bytes + BIG.size_bytes
        assert scene.decide(MIDDLE).chosen.plan.evict == (weights_of(BIG),)

    play(story, machine, has_probe=False)


def test_without_a_probe_what_was_whole_together_stays_together():
    """Neither is waited for, busy or not."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        for facts in (MIDDLE, SMALL):
            await scene.make_resident(facts)
        assert scene.backend.cards.capacity.proven_bytes == MIDDLE.size_bytes + SMALL.size_bytes
        machine.drop(SMALL.name)
        await scene.backend.world.refresh_fresh()
        scene.backend.world.residents.enter(weights_of(MIDDLE))
        plan = scene.decide(SMALL).chosen.plan
        assert (plan.evict, plan.waits_for) == ((), ())

    play(story, machine, has_probe=False)


def test_without_a_probe_a_load_that_shows_no_vram_at_all_means_that_there_is_no_gpu():
    """Nothing is unloaded: requests are passed on from now on."""
    machine = MemoryMachine(*ALL)
    machine.vram_share = 0.0

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.MOVED
        assert scene.backend.cards.gpus == ()
        assert list(machine.rows) == [SMALL.name]

    play(story, machine, has_probe=False)


def test_a_load_with_nothing_on_a_card_that_others_have_filled_is_no_finding_about_the_machine():
    """Their load was first, and its model is not in ps yet: decide again."""
    machine = MemoryMachine(*ALL)
    machine.vram_share, machine.taken_beside_bytes = 0.0, 23 * GIB

    async def story(scene):
        assert await switched(scene, scene.target(MIDDLE)) is SwitchResult.MOVED
        assert scene.heard.of(Switched)[-1].error == "other programs took memory during the load"
        assert machine.rows == {}

    play(story, machine)


@pytest.mark.parametrize("vram_share", [0.0, 1.0])
def test_a_load_of_which_nothing_is_on_the_card_is_a_finding_about_the_machine(vram_share):
    """Ollama lost the card: by ps nothing is on it, or (AMX) all of the weights and no caches. It teaches nothing."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        await scene.make_resident(MIDDLE)
        before = scene.backend.lessons.learned
        machine.drop(MIDDLE.name)
        machine.vram_share, machine.seen_share = vram_share, 0.0
        await scene.backend.world.refresh_fresh()
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.ON_CPU
        assert (machine.rows, scene.heard.of(Spilled)) == ({}, [])
        assert scene.backend.lessons.learned is before

    play(story, machine)


def test_a_load_of_which_nothing_is_on_the_card_beside_one_that_is_on_it_has_spilled():
    """Ollama uses the GPU, so this is a finding about the load."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        await scene.make_resident(SMALL)
        machine.vram_share = 0.0
        assert await switched(scene, scene.target(MIDDLE)) is SwitchResult.SPILLED
        assert [spilled.model for spilled in scene.heard.of(Spilled)] == [MIDDLE.name]
        assert scene.backend.lessons.learned.by_weights[weights_of(MIDDLE)][0].spilled

    play(story, machine)


def test_a_probe_whose_counter_does_not_move_is_doubted_and_not_the_load():
    """It may read other cards than Ollama's: ps shows weights and caches in VRAM."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        target = scene.target(SMALL)
        machine.seen_share, machine.caches_bytes = 0.0, target.plan.cache_bytes
        assert await switched(scene, target) is SwitchResult.DONE
        assert (scene.resident(SMALL).is_measured, scene.backend.lessons.learned.by_weights) == (False, {})

    play(story, machine)


@pytest.mark.parametrize("silent_from_s", [0.0, 1.0])
def test_a_probe_that_is_silent_around_a_load_leaves_the_verdict_to_ps(silent_from_s):
    """An old reading is none of this load, however young it still counts for decisions."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        target = scene.target(SMALL)

        def silence():
            machine.probe.error = ProbeError("no answer")

        asyncio.get_running_loop().call_later(silent_from_s, silence)
        await asyncio.sleep(0)
        assert await switched(scene, target) is SwitchResult.DONE
        assert scene.heard.of(Spilled) == []

    play(story, machine)


def test_a_spill_while_others_took_memory_is_no_fault_of_the_model():
    """It is decided again by what is free now."""
    machine = MemoryMachine(*ALL)
    machine.vram_share, machine.taken_beside_bytes = 0.8, 4 * GIB

    async def story(scene):
        assert await switched(scene, scene.target(MIDDLE)) is SwitchResult.MOVED
        assert "other programs took memory" in scene.heard.of(Switched)[-1].error
        assert scene.backend.lessons.learned.by_weights == {}

    play(story, machine)


@pytest.mark.parametrize(("facts", "back_gib"), [(MIDDLE, 6), (SMALL, 13)])
def test_a_load_during_which_others_gave_memory_back_is_no_spill(facts, back_gib):
    """All of it comes back when it is unloaded, so it was on the card; also if they gave back more than it took."""
    machine = MemoryMachine(*ALL)
    machine.foreign[0], machine.taken_beside_bytes = back_gib * GIB, -back_gib * GIB

    async def story(scene):
        assert await switched(scene, scene.target(facts)) is SwitchResult.MOVED
        assert "gave memory back" in scene.heard.of(Switched)[-1].error
        assert (scene.heard.of(Spilled), scene.backend.lessons.learned.by_weights) == ([], {})

    play(story, machine)


def test_a_load_during_which_others_took_memory_teaches_nothing():
    """It serves, but what it holds is only assumed."""
    machine = MemoryMachine(*ALL)
    machine.taken_beside_bytes = 6 * GIB

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.DONE
        assert not scene.resident(SMALL).is_measured
        assert scene.backend.lessons.learned.by_weights == {}

    play(story, machine)


def test_a_load_during_which_another_resident_left_teaches_nothing():
    """The readings before and after say nothing of it."""

    async def story(scene):
        await scene.make_resident(SMALL)
        target = scene.target(MIDDLE)
        asyncio.get_running_loop().call_later(1.0, scene.machine.drop, SMALL.name)
        assert await switched(scene, target) is SwitchResult.DONE
        assert not scene.resident(MIDDLE).is_measured
        assert set(scene.backend.lessons.learned.by_weights) == {weights_of(SMALL)}

    play(story, MemoryMachine(*ALL))


def test_a_stranger_is_adopted_by_a_load_with_the_options_that_follow():
    """It becomes ours, and nothing is learned: its load was not seen."""

    async def story(scene):
        scene.machine.put(SMALL)
        await scene.backend.world.refresh_fresh()
        target = scene.target(SMALL)
        assert target.plan.adopts
        assert await switched(scene, target) is SwitchResult.DONE
        tracked = scene.resident(SMALL)
        assert (tracked.options, tracked.free_at_load_bytes) == (LoadOptions(num_ctx=32768), {})
        assert (tracked.is_measured, scene.backend.lessons.learned.by_weights) == (False, {})

    play(story, MemoryMachine(*ALL))


def test_on_stated_cards_a_load_is_booked_and_not_measured():
    """What ps shows, and a context, on the card of the plan."""
    machine = MemoryMachine(*ALL)
    machine.probe.is_live = False

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.DONE
        tracked = scene.resident(SMALL)
        assert tracked.held_bytes == {0: SMALL.size_bytes + machine.cards[0].context_bytes}
        assert not tracked.is_measured

    play(story, machine)


@pytest.mark.parametrize(("keep_alive_s", "lease_s"), [(0, 60), (300, 330), (float("inf"), 3600), (7200, 3600)])
def test_ollamas_lease_outlasts_ours_and_ends(keep_alive_s, lease_s):
    """Nothing stays loaded indefinitely when the router dies."""
    assert lease_for(keep_alive_s) == lease_s


def test_a_lease_is_renewed_by_a_load_with_the_residents_own_options():
    """So nothing is reloaded; an embedder by its own route."""

    async def story(scene):
        for facts in (SMALL, EMBEDDER):
            tracked = await scene.make_resident(facts)
            await scene.backend.residency.renew(tracked)
            first, again = scene.machine.named("load")[-2:]
            assert again == first

    play(story, MemoryMachine(*ALL))


def test_an_embedder_is_what_only_embeds():
    """A chat model that can embed as well is none; what is unknown is none."""
    both = facts_of("both:1b", 1, capabilities=("completion", "embedding"))
    assert [is_embedder(facts) for facts in (EMBEDDER, SMALL, both, None)] == [True, False, False, False]
