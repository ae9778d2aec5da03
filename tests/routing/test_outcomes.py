"""What becomes of a request that no variant can serve, or that needs none."""

import asyncio
import json

import pytest

from router.adapters.gpu.reading import GpuProcess
from router.config import Defaults, Switch, load_config
from router.core.decision.verdict import Decision, Outcome
from router.core.units import GIB
from router.errors import LoadFailed, NeverFits, NoVariantFits
from router.routing.destination import Destination
from router.routing.destinations import Destinations
from router.routing.ends import Ends
from router.routing.outcomes import LOOK_AGAIN_S, Blocked, Outcomes
from router.telemetry import Decided, Telemetry
from tests.backend.machine import BIG, EMBEDDER, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.scene import took_s
from tests.routing.scene import routed

ALL = (BIG, MIDDLE, SMALL, EMBEDDER)
WAIT_S = 20.0
ALONE = {"defaults.auto_chains": "off"}
CHAIN = {**ALONE, "chains": {"team": [BIG.name, SMALL.name]}}
AT_4096 = {**ALONE, "chains": {"team": [{"model": BIG.name, "num_ctx": 4096}]}}


class Case:
    """Outcomes under test, on a machine whose card others have filled."""

    def __init__(self, scene, **defaults):
        config = load_config(env={}, options={f"defaults.{key}": value for key, value in defaults.items()})
        self.scene, telemetry = scene, Telemetry([scene.heard])
        self.destinations = Destinations("local", config.defaults)
        ends = Ends("local", telemetry, scene.backend.now)
        self.outcomes = Outcomes(scene.backend, scene.chains, self.destinations, ends, WAIT_S)

    def call(self, model, path="/api/generate", rule=None, **body):
        call = self.scene.call(model, path, **body)
        call.demand(is_strict=False, nothing_fits=rule)
        return call

    def outcome(self, call):
        chain = self.scene.decisions.chain_of(call)
        return self.outcomes.nothing_fits(call, chain, self.scene.decisions.decide_afresh(call.request, chain))

    async def after_reading(self, call):
        """Return the outcome once memory was read for this request."""
        found = self.outcome(call)
        if isinstance(found, Blocked) and found.why == "reading":
            await found.until()
            return self.outcome(call)
        return found


def on_full_card(story, options=CHAIN, installed=ALL, **defaults):
    """Run `story` with a Case where nothing fits."""

    async def run(scene):
        scene.machine.foreign[0] = 23 * GIB
        await scene.backend.world.refresh_fresh()
        await story(Case(scene, **defaults))

    routed(run, MemoryMachine(*installed), options)


def patch_of(destination, call):
    return destination.body(call.request, call.body)


def test_nobody_is_refused_by_what_was_true_a_moment_ago():
    """Memory is read for the request first; one reading does for all that came ahead of it."""

    async def story(case):
        call, other = case.call("team"), case.call("team")
        first = case.outcome(call)
        assert (type(first), first.why) == (Blocked, "reading")
        reads = len(case.scene.machine.probe.reads)
        await first.until()
        assert case.scene.machine.probe.reads[reads:] == [True]
        with pytest.raises(NoVariantFits):
            case.outcome(other)
        await asyncio.sleep(0.5)
        assert isinstance(case.outcome(case.call("team")), Blocked)

    on_full_card(story)


def test_a_refusal_says_why_and_when_to_try_again_and_is_reported_as_a_decision():
    """With every variant's bytes; all of its time was spent waiting."""

    async def story(case):
        call = case.call("team")
        await asyncio.sleep(3)
        with pytest.raises(NoVariantFits, match=f"{BIG.name} .*; {SMALL.name} ") as refused:
            await case.after_reading(call)
        assert (refused.value.retry_after_s, call.queue_s) == (1.0, 3.0)
        (event,) = case.scene.heard.of(Decided)
        assert (event.request_id, event.chosen, event.outcome) == ("id-1", "", "rejected")

    on_full_card(story)


def test_what_no_wait_can_change_is_refused_with_a_cure():
    """Not installed, or bigger than all cards together: no time to try again is named."""

    async def story(case):
        call = case.call("never")
        with pytest.raises(NeverFits, match=r"not installed.* What helps: `ollama pull gone:3b`$") as refused:
            await case.after_reading(call)
        assert refused.value.retry_after_s is None
        (event,) = case.scene.heard.of(Decided)
        assert (event.chosen, event.outcome) == ("", "rejected")

    on_full_card(story, {"chains": {"never": ["gone:8b", "gone:3b"]}})


def test_a_chain_whose_only_variant_was_pulled_a_moment_ago_is_not_refused():
    """The list of models is read again before it is called not installed."""

    async def story(case):
        case.scene.machine.foreign.clear()
        await asyncio.sleep(3)
        case.scene.machine.installed[MIDDLE.name] = MIDDLE
        task = asyncio.create_task(case.scene.dispatcher.dispatch(case.call("never")))
        while not case.scene.relay.sent:
            await asyncio.sleep(0.05)
            if task.done():
                task.result()
        assert case.scene.relay.sent[-1].body["model"] == MIDDLE.name
        case.scene.relay.sent[-1].answer()
        (await task).release("completed")

    on_full_card(story, {**ALONE, "chains": {"never": [MIDDLE.name]}}, installed=(BIG, SMALL))


def test_a_variant_that_just_failed_to_load_gives_ollamas_own_words():
    """They say more than that it was tried."""

    async def story(case):
        world, residency = case.scene.backend.world, case.scene.backend.residency
        case.scene.machine.foreign.clear()
        await world.refresh_fresh()
        case.scene.machine.trouble["load"] = LoadFailed("llama runner terminated", status=500)
        await residency.switch(case.scene.target(SMALL))
        world.bar(weights_of(SMALL), 30.0, "the load failed")
        with pytest.raises(LoadFailed, match="llama runner terminated"):
            await case.after_reading(case.call(SMALL.name))
        world.bar(weights_of(MIDDLE), 30.0, "it would not stay")
        with pytest.raises(NoVariantFits, match="it would not stay"):
            await case.after_reading(case.call(MIDDLE.name))

    on_full_card(story)


def test_waiting_for_room_looks_again_until_its_time_is_over():
    """Then it is refused like the others."""

    async def story(case):
        call = case.call("team", rule="wait")
        found = await case.after_reading(call)
        assert (type(found), found.why) == (Blocked, "room")
        assert (await took_s(found.until()))[0] == LOOK_AGAIN_S
        await asyncio.sleep(WAIT_S - LOOK_AGAIN_S - 0.1)
        assert case.outcome(call).why == "room"
        await asyncio.sleep(0.1)
        with pytest.raises(NoVariantFits):
            case.outcome(call)

    on_full_card(story)


def test_in_a_contest_a_request_waits_for_memory_that_a_load_of_others_may_have_taken():
    """For as long as a contest is assumed; not for what no wait can change."""

    async def story(case):
        case.scene.backend.contest.note(is_clear=True)
        call = case.call("team")
        found = await case.after_reading(call)
        assert (type(found), found.why) == (Blocked, "room")
        await asyncio.sleep(Switch().contest_s + 1)
        with pytest.raises(NoVariantFits):
            case.outcome(call)

    on_full_card(story)


@pytest.mark.parametrize(("name", "waits"), [("ollama", True), ("game", False)])
def test_a_request_waits_while_a_runner_is_on_the_card_that_ps_does_not_list(name, waits):
    """For as long as a load may take; a program of another name is refused for at once."""

    async def story(case):
        case.scene.machine.probe.processes = (GpuProcess(0, 7, name, 22 * GIB),)
        call = case.call("team")
        if waits:
            found = await case.after_reading(call)
            assert (type(found), found.why) == (Blocked, "room")
            await asyncio.sleep(Defaults().max_load_wait_s + 1)
        with pytest.raises(NoVariantFits):
            await case.after_reading(call)

    on_full_card(story)


@pytest.mark.parametrize("rule", ["passthrough", "allow_partial"])
def test_a_request_may_be_passed_on_though_it_spills(rule):
    """To the first variant that is able, with a reason, and reported with its verdicts."""

    async def story(case):
        call = case.call("team", rule=rule, prompt="hi")
        found = await case.after_reading(call)
        assert (found.weights, found.variant, found.reason.partition(":")[0]) == ("", BIG.name, rule)
        assert patch_of(found, call) == b'{"model":"big:32b","prompt":"hi"}'
        assert (found.decided.reason, found.decided.chosen, found.decided.outcome) == (rule, BIG.name, "passthrough")
        assert len(found.decided.decision.verdicts) == 2

    on_full_card(story)


@pytest.mark.parametrize("rule", ["passthrough", "allow_partial"])
def test_where_no_variant_is_installed_the_request_is_passed_on_unchanged(rule):
    """Ollama says that it does not know the model."""

    async def story(case):
        call = case.call("ghost", rule=rule)
        found = await case.after_reading(call)
        assert (found.variant, found.name, found.decided.chosen) == ("", "ghost", "ghost")

    on_full_card(story, {**ALONE, "chains": {"ghost": ["absent:1b"]}})


def test_a_variant_that_cannot_do_what_is_asked_is_not_let_spill():
    """The next one is."""

    async def story(case):
        found = await case.after_reading(case.call("team", rule="allow_partial"))
        assert found.variant == BIG.name

    on_full_card(story, {**ALONE, "chains": {"team": ["absent:1b", EMBEDDER.name, BIG.name]}})


def test_the_clients_own_rule_goes_before_the_chains():
    """The chain's before the default."""

    async def story(case):
        assert (await case.after_reading(case.call("team"))).reason.startswith("passthrough")
        with pytest.raises(NoVariantFits):
            await case.after_reading(case.call("team", rule="refuse"))
        with pytest.raises(NoVariantFits):
            await case.after_reading(case.call(BIG.name))

    chain = {"variants": [BIG.name], "nothing_fits": "passthrough"}
    on_full_card(story, {**ALONE, "chains": {"team": chain}})


def test_what_may_spill_gets_the_context_of_its_chain_and_no_more():
    """More of it spills more; a client that names one gets its own."""

    async def story(case):
        call = case.call("team", rule="allow_partial", options={"temperature": 1})
        found = await case.after_reading(call)
        assert json.loads(patch_of(found, call))["options"] == {"temperature": 1, "num_ctx": 4096}
        own = case.call("team", rule="allow_partial", options={"num_ctx": 2048})
        assert json.loads(patch_of(await case.after_reading(own), own))["options"] == {"num_ctx": 2048}

    on_full_card(story, AT_4096)


def test_on_v1_a_tag_carries_that_context():
    """It is made first; without tags the request goes unchanged."""

    async def story(case):
        call = case.call("team", "/v1/completions", rule="allow_partial", prompt="hi")
        found = await case.after_reading(call)
        assert (type(found), found.why) == (Blocked, "tag")
        name = await found.until()
        found = case.outcome(call)
        assert (found.name, found.rename) == (name, (name.encode(), BIG.name.encode()))
        assert case.scene.machine.derived[name] == (BIG.name, {"num_ctx": 4096})

    async def without_tags(case):
        call = case.call("team", "/v1/completions", rule="allow_partial", prompt="hi")
        found = await case.after_reading(call)
        assert (found.name, found.rename) == (BIG.name, None)
        assert b"4096" not in patch_of(found, call)

    on_full_card(story, AT_4096)
    on_full_card(without_tags, AT_4096, derived_tags=False)


def test_without_a_gpu_a_request_passes_unchanged_and_at_once():
    """No reading would change that."""

    async def story(case):
        call = case.call("team")
        chain = case.scene.decisions.chain_of(call)
        found = case.outcomes.nothing_fits(call, chain, Decision(Outcome.PASSTHROUGH, None, ()))
        assert isinstance(found, Destination)
        assert (found.name, found.reason, found.decided.outcome) == ("team", "passthrough: no GPU", "passthrough")

    on_full_card(story)


def test_an_option_of_the_wrong_type_is_left_to_ollama():
    """Under the asked name if that is a model, else under the chain's first installed variant."""

    async def story(case):
        for model, sent in ((BIG.name, BIG.name), ("team", SMALL.name), ("ghost", "ghost")):
            call = case.call(model, options={"num_ctx": "big"})
            found = case.outcomes.bad_option(call, case.scene.decisions.chain_of(call))
            assert (found.name, "num_ctx" in found.reason) == (sent, True)

    chains = {"team": ["absent:1b", SMALL.name], "ghost": ["absent:1b"]}
    on_full_card(story, {**ALONE, "chains": chains})


def test_an_unload_goes_to_the_variant_that_is_loaded_and_nobody_else_is_let_in_to_it():
    """It is gone as far as decisions know."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        case = Case(scene)
        call = case.call("team", keep_alive=0)
        found = case.outcomes.unload(call, scene.decisions.chain_of(call))
        assert (found.name, found.reason, tracked.client_keep_alive_s) == (SMALL.name, "unload", 0.0)
        assert not scene.backend.world.snapshot().residents[0].is_fully_resident

    routed(story, MemoryMachine(*ALL), CHAIN)


def test_an_unload_of_what_is_not_loaded_loads_nothing():
    """It goes to the first variant: Ollama does nothing then."""

    async def story(case):
        call = case.call("team", keep_alive=0)
        found = case.outcomes.unload(call, case.scene.decisions.chain_of(call))
        assert (found.name, found.reason) == (BIG.name, "unload: not loaded")

    on_full_card(story)


def test_what_is_not_the_routers_is_passed_on_with_a_reason():
    """Unchanged."""

    async def story(case):
        call = case.call("unknown:1b", prompt="hi")
        found = case.outcomes.pass_unchanged(call, "not installed")
        assert (found.reason, found.weights, found.may_vanish) == ("passthrough: not installed", "", False)
        assert json.loads(patch_of(found, call)) == json.loads(call.body)

    on_full_card(story)
