"""What people may look at: the decision now, the cards and who holds them, residents and what would be better."""

import asyncio
from dataclasses import replace
from datetime import datetime

import pytest

from router.adapters.gpu.reading import GpuProcess
from router.admin.configuration import Configuration
from router.admin.inspector import Inspector
from router.admin.outage import Outage
from router.config import load_config
from router.core.ollama.options import ServerSettings
from router.core.units import GIB
from router.errors import BadRequest, ModelNotFound, ProbeError, UpstreamError, UpstreamGone
from router.telemetry import Decided, RecentDecisions, SteadyTime, Telemetry, UpstreamDown, UpstreamUp
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, row_of, weights_of
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL)
CHAIN = {"defaults.auto_chains": "off", "chains": {"team": [BIG.name, SMALL.name], BIG.name: [BIG.name, SMALL.name]}}


def inspector_of(scene):
    recent = RecentDecisions(10)
    telemetry = Telemetry([recent, scene.heard])
    return Inspector(
        scene.backend, scene.directory, scene.decisions, telemetry, recent, Configuration(load_config(env={}))
    )


def inspected(story, machine=None, options=CHAIN, **more):
    """Run `story` with a scene and its inspector."""
    routed(lambda scene: story(scene, inspector_of(scene)), machine or MemoryMachine(*ALL), options, **more)


async def taken(scene, gib):
    scene.machine.foreign[0] = int(gib * GIB)
    await scene.backend.world.refresh_fresh()


def test_an_explanation_has_the_decision_the_cards_and_how_memory_is_known():
    """For a plain request with the context that is asked about."""

    async def story(_scene, inspector):
        found = inspector.explain("team", 4096)
        assert (found["chosen"], found["variants"][0]["num_ctx"], found["memory"]) == (BIG.name, 4096, "probe")
        assert found["gpus"] == [
            {"index": 0, "uuid": "GPU-0", "name": "card", "total_bytes": 24 * GIB, "free_bytes": 24 * GIB}
        ]
        assert found["notes"] == []

    inspected(story)


@pytest.mark.parametrize(
    ("model", "error"), [("", BadRequest), ("not a name", BadRequest), ("unknown:1b", ModelNotFound)]
)
def test_a_name_that_means_nothing_is_an_error_that_says_which(model, error):
    """No name, an impossible one, and one that is not installed."""

    async def story(_scene, inspector):
        with pytest.raises(error):
            inspector.explain(model)

    inspected(story)


def test_without_readings_the_cards_are_unknown_and_not_none():
    """In explanation and state."""

    async def story(_scene, inspector):
        assert (inspector.explain("team")["gpus"], inspector.state()["gpus"]) == (None, None)

    inspected(story, has_probe=False)


def test_the_state_has_ollama_cards_residents_and_the_line():
    """With what is being loaded."""

    async def story(scene, inspector):
        await scene.make_resident(SMALL)
        scene.backend.world.residents.enter(weights_of(SMALL))
        found = inspector.state()
        assert found["ollama"] == {"up": True, "version": "0.33.0", "error": "", "stale_since": None}
        assert (found["waiting"], found["loading"], found["may_upgrade"]) == (0, None, True)
        (row,) = found["residents"]
        assert (row["name"], row["in_flight"], row["loaded_by_router"]) == (SMALL.name, 1, True)
        assert (row["gpu_percent"], row["is_fully_resident"], row["advice"]) == (100, True, "")
        assert row["held_bytes"] == {"0": SMALL.size_bytes + GIB}
        scene.backend.leave(scene.resident(SMALL))

    inspected(story)


def test_while_a_model_loads_the_state_names_it():
    """And who waits."""

    async def story(scene, inspector):
        waiting = asyncio.create_task(scene.backend.line.wait("k", lambda: scene.decide(MIDDLE), 0.0))
        await asyncio.sleep(0.5)
        found = inspector.state()
        assert (found["loading"], found["waiting"]) == (MIDDLE.name, 1)
        await waiting

    inspected(story)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [(BIG, f"; {SMALL.name} at 32768 would fit"), (MIDDLE, "; no variant of its chain fits")],
    ids=["a chain", "alone"],
)
def test_a_model_that_is_partly_on_the_cpu_comes_with_advice(facts, advice):
    """What would run fully in its place, and why it does not itself."""

    async def story(scene, inspector):
        scene.machine.put(facts, vram_bytes=facts.size_bytes // 2)
        await taken(scene, 14)
        (row,) = inspector.state()["residents"]
        assert (row["gpu_percent"], row["is_fully_resident"], row["loaded_by_router"]) == (50, False, False)
        assert row["advice"].startswith(f"{facts.name} at 8192: too big")
        assert row["advice"].endswith(advice)

    inspected(story)


def test_advice_points_to_a_resident_that_would_serve():
    """It costs nothing."""

    async def story(scene, inspector):
        await scene.make_resident(SMALL)
        scene.machine.put(BIG, vram_bytes=1 * GIB)
        await taken(scene, 14)
        advice = {row["name"]: row["advice"] for row in inspector.state()["residents"]}[BIG.name]
        assert advice.endswith(f"; {SMALL.name} is resident and would be used")

    inspected(story)


def test_a_stranger_that_no_chain_knows_gets_no_advice():
    """Nothing is known of it; one without any size is at 0 %."""

    async def story(scene, inspector):
        row = replace(row_of(BIG, vram_bytes=0), name="stranger:1b", size_bytes=0)
        scene.machine.rows["stranger:1b"] = row
        await scene.backend.world.refresh_fresh()
        (row,) = inspector.state()["residents"]
        assert (row["name"], row["gpu_percent"], row["advice"]) == ("stranger:1b", 0, "")

    inspected(story)


def test_a_model_is_not_called_unknown_while_ollama_has_never_answered():
    """Nothing is known of its models then."""
    machine = MemoryMachine(*ALL)
    machine.trouble["version"] = UpstreamError("cannot reach Ollama: refused")

    async def story(_scene, inspector):
        with pytest.raises(UpstreamError):
            inspector.explain("unknown:1b")

    inspected(story, machine)


def test_other_programs_that_hold_much_of_a_card_are_named():
    """Ollama's own processes are not, nor those without a name: they may be runners."""
    machine = MemoryMachine(*ALL)
    machine.probe.processes = (
        GpuProcess(0, 7, "game", GIB),
        GpuProcess(0, 8, "", GIB),
        GpuProcess(0, 9, "ollama", GIB),
        GpuProcess(0, 10, "llama-server", GIB),
        GpuProcess(1, 11, "elsewhere", GIB),
    )

    async def story(scene, inspector):
        await taken(scene, 1)
        assert inspector.state()["notes"] == []
        await taken(scene, 4)
        assert inspector.state()["notes"] == ["other programs hold 4.0 GiB of card (game)"]
        machine.probe.processes = ()
        await taken(scene, 5)
        assert inspector.explain("team")["notes"] == ["other programs hold 5.0 GiB of card"]

    inspected(story, machine)


def test_the_runner_that_is_being_loaded_is_no_other_program():
    """Its memory is taken before ps lists it."""
    machine = MemoryMachine(*ALL)

    async def story(scene, inspector):
        loading = asyncio.create_task(scene.dispatcher.dispatch(scene.call(MIDDLE.name)))
        await asyncio.sleep(1)
        machine.foreign[0] = 8 * GIB
        await scene.backend.world.refresh_fresh()
        assert (inspector.state()["loading"], inspector.state()["notes"]) == (MIDDLE.name, [])
        machine.foreign[0] = 0
        await asyncio.sleep(5)
        scene.relay.sent[-1].answer()
        (await loading).release("completed")

    inspected(story, machine)


def test_readiness_ends_when_the_router_is_about_to_stop():
    """Or when Ollama is away."""

    async def story(scene, inspector):
        assert inspector.ready() == (
            True,
            {"upstream": True, "error": "", "memory": "probe", "stale": False, "draining": False},
        )
        inspector.drain()
        is_ready, facts = inspector.ready()
        assert (is_ready, facts["draining"]) == (False, True)
        scene.machine.trouble["ps"] = UpstreamError("refused")
        scene.machine.probe.error = ProbeError("lost")
        await scene.backend.world.refresh_fresh()
        assert inspector.ready()[1]["error"] == "refused"

    inspected(story)


def test_recent_decisions_are_shown_at_once():
    """Though the events of requests are handed on in batches."""

    async def story(scene):
        recent, later = RecentDecisions(10), []
        telemetry = Telemetry([recent], later=lambda _, call: later.append(call))
        inspector = Inspector(
            scene.backend, scene.directory, scene.decisions, telemetry, recent, Configuration(load_config(env={}))
        )
        telemetry.emit(Decided("id", "team", "big", "small", "fits", "fallback"))
        assert [row["requested"] for row in inspector.decisions()] == ["big"]
        assert inspector.config()["listen"] == "127.0.0.1:11435"

    routed(story, MemoryMachine(*ALL), CHAIN)


def test_what_has_drifted_is_noted():
    """What loads have taught of the server's hidden settings stands beside the decision."""

    async def story(scene, inspector):
        for version in ("0.32.0", "0.33.0"):
            lessons = scene.backend.lessons
            lessons._configured = lambda version=version: ServerSettings(version=version)
            await scene.make_resident(SMALL)
            scene.machine.drop(SMALL.name)
            await scene.backend.world.refresh_fresh()
        assert "Ollama changed from 0.32.0 to 0.33.0" in inspector.state()["notes"][0]

    inspected(story)


def test_an_old_state_says_since_when_it_is_old():
    """In state and explanation, until Ollama answers again."""

    async def story(scene):
        recent, outage = RecentDecisions(10), Outage(SteadyTime(float, float))
        telemetry = Telemetry([recent])
        inspector = Inspector(
            scene.backend,
            scene.directory,
            scene.decisions,
            telemetry,
            recent,
            Configuration(load_config(env={})),
            lambda: ["a note"],
            outage,
        )
        scene.machine.trouble["ps"] = UpstreamGone("refused")
        await scene.backend.world.refresh_fresh()
        outage.on(UpstreamDown(error="refused"))
        found = inspector.state()
        assert (found["ollama"]["up"], found["ollama"]["stale_since"]) == (False, "1970-01-01T00:00:00+00:00")
        assert inspector.explain("team")["ollama"] == found["ollama"]
        assert found["notes"] == ["a note"]
        del scene.machine.trouble["ps"]
        await scene.backend.world.refresh_fresh()
        outage.on(UpstreamUp(version="1"))
        assert inspector.state()["ollama"]["stale_since"] is None

    routed(story, MemoryMachine(*ALL), CHAIN)


def test_what_a_rule_lets_spill_is_the_routers_own():
    """Another client's load of the same model later is not."""

    async def story(scene, inspector):
        residents = scene.backend.world.residents
        residents.let_spill(weights_of(BIG))
        scene.machine.put(BIG, vram_bytes=GIB)
        await scene.backend.world.refresh_fresh()
        assert [row["loaded_by_router"] for row in inspector.state()["residents"]] == [True]
        scene.machine.drop(BIG.name)
        await scene.backend.world.refresh_fresh()
        scene.machine.put(BIG, vram_bytes=GIB)
        await scene.backend.world.refresh_fresh()
        assert [row["loaded_by_router"] for row in inspector.state()["residents"]] == [False]

    inspected(story)


def test_without_readings_the_advice_promises_nothing():
    """Neither for the model itself nor for a smaller one."""

    async def story(scene, inspector):
        scene.machine.put(BIG, vram_bytes=GIB)
        await scene.backend.world.refresh_fresh()
        (row,) = inspector.state()["residents"]
        assert "would fit" not in row["advice"]
        assert row["advice"].startswith("the next request for it loads it again at")

    inspected(story, has_probe=False)


def test_without_readings_the_advice_names_a_smaller_variant_as_one_to_be_tried():
    """The model itself has just failed to load."""

    async def story(scene, inspector):
        scene.machine.put(BIG, vram_bytes=GIB)
        await scene.backend.world.refresh_fresh()
        scene.backend.world.bar(weights_of(BIG), 60.0, "it failed")
        (row,) = inspector.state()["residents"]
        assert row["advice"].startswith(f"{BIG.name}")
        assert row["advice"].endswith(f"; {SMALL.name} at 32768 would be tried, and verified")

    inspected(story, has_probe=False)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 3e8, -3e8])
def test_an_outage_is_as_long_as_it_is_whatever_the_clock_is_set_to_j10(jump_s):
    """Not of the future, and not of another year."""
    now_s, set_by_s = [1e6], [0.0]
    outage = Outage(SteadyTime(lambda: now_s[0], lambda: 1e9 + now_s[0] + set_by_s[0]))
    outage.on(UpstreamDown(error="refused"))
    now_s[0] += 60
    outage.on(UpstreamDown(error="refused"))
    set_by_s[0] = jump_s
    assert 1e9 + now_s[0] + jump_s - datetime.fromisoformat(outage.since).timestamp() == 60
    outage.on(UpstreamUp("0.33.0"))
    assert outage.since is None
