"""Requests while Ollama shows its models slowly or never, for models that run elsewhere, and under an old Ollama."""

import asyncio
from dataclasses import replace

import pytest

from router.core.decision.verdict import VerdictKind
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import LoadOptions
from router.errors import Forbidden, NoVariantFits
from router.routing.outcomes import REMOTE_REFUSED
from tests.backend.machine import EMBEDDER, SMALL, MemoryMachine, weights_of
from tests.core.facts import facts_of
from tests.routing.scene import routed

MESSAGES = [{"role": "user", "content": "hi"}]
ALONE = {"defaults.auto_chains": "off"}
QWEN, LLAMA, LLAMA_SMALL = (
    facts_of("qwen3:8b", 5, family="qwen3"),
    facts_of("llama3.1:8b", 5),
    facts_of("llama3.2:3b", 2),
)
OLD = facts_of("llama2:7b", 4, context_length=4096)
REMOTE = replace(facts_of("my-gpt:latest", 0.0), is_remote=True, size_bytes=384)
PATIENCE_S = 10.0


def now_s():
    return asyncio.get_running_loop().time()


async def until(is_so):
    """Wait until `is_so()`, in steps as short as a show."""
    async with asyncio.timeout(120):
        while not is_so():  # noqa: ASYNC110 (nobody tells it)
            await asyncio.sleep(0.01)


async def sent_after(scene, call):
    """Return the request that went upstream for `call`, and the seconds until then."""
    started_s, before = now_s(), len(scene.relay.sent)
    task = asyncio.create_task(scene.dispatcher.dispatch(call))
    while len(scene.relay.sent) == before:
        if task.done():
            task.result()
        assert now_s() - started_s < 120
        await asyncio.sleep(0.05)
    took_s = now_s() - started_s
    scene.relay.sent[-1].answer()
    (await task).release("completed")
    return scene.relay.sent[-1], took_s


class CuttingMachine(MemoryMachine):
    """An Ollama whose models were trained with a context of 4096: it cuts every other to that."""

    async def load(self, name, options, keep_alive_s, embedding=False):
        await super().load(name, options.at(min(options.num_ctx or 4096, 4096), None), keep_alive_s, embedding)


def show_late(machine, name):
    """Let the machine show `name` only once the returned event is set."""
    late, show = asyncio.Event(), machine.show

    async def late_show(asked, **options):
        if asked == name:
            await late.wait()
        return await show(asked, **options)

    machine.show = late_show
    return late


# --- shows that hang -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/api/generate", "/v1/chat/completions"])
def test_a_hanging_show_delays_no_request_for_another_model(route):
    """Neither the first ones nor those after the next readings of the catalog."""

    async def story(scene):
        for name in (LLAMA.name, LLAMA_SMALL.name):
            _, took_s = await sent_after(scene, scene.call(name, route, messages=MESSAGES))
            assert took_s < scene.machine.load_s + 1.5
            await asyncio.sleep(31)

    machine = MemoryMachine(QWEN, LLAMA, LLAMA_SMALL)
    machine.hanging = {QWEN.name}
    routed(story, machine)


def test_a_hanging_show_of_a_possible_substitute_is_hardly_waited_for():
    """The chain goes without it as well as it can."""

    async def story(scene):
        _, took_s = await sent_after(scene, scene.call(LLAMA.name))
        assert took_s < scene.machine.load_s + 2
        _, took_s = await sent_after(scene, scene.call(LLAMA.name))
        assert took_s < 0.2

    machine = MemoryMachine(QWEN, LLAMA, LLAMA_SMALL)
    machine.hanging = {LLAMA_SMALL.name}
    routed(story, machine)


@pytest.mark.parametrize("patience_s", [3, PATIENCE_S])
def test_a_model_whose_show_hangs_is_served_by_its_size_after_facts_s(patience_s):
    """The next requests for it do not wait."""

    async def story(scene):
        sent, took_s = await sent_after(scene, scene.call(QWEN.name))
        assert patience_s < took_s < patience_s + scene.machine.load_s + 1
        assert sent.body["model"] == QWEN.name
        assert len(scene.machine.named("load")) == 1
        _, took_s = await sent_after(scene, scene.call(QWEN.name))
        assert took_s < 0.2
        assert scene.facts(QWEN).tensors == ()

    machine = MemoryMachine(QWEN, LLAMA)
    machine.hanging = {QWEN.name}
    routed(story, machine, {"timeouts.facts_s": patience_s})


def test_a_hanging_show_of_a_model_that_is_too_big_is_refused_by_name():
    """Its download alone says so."""
    huge = facts_of("huge:70b", 40)

    async def story(scene):
        with pytest.raises(NoVariantFits, match="huge:70b"):
            await scene.dispatcher.dispatch(scene.call(huge.name))

    machine = MemoryMachine(huge, LLAMA)
    machine.hanging = {huge.name}
    routed(story, machine, ALONE)


def test_a_model_without_known_facts_is_served_after_one_load_though_ollama_cuts_its_context():
    """Its maximum is not known, so a smaller context than that of the plan is no fault of the load."""

    async def story(scene):
        for _ in range(2):
            await sent_after(scene, scene.call(OLD.name))
        assert [one.context_length for one in scene.machine.rows.values()] == [4096]
        assert (len(scene.machine.named("load")), scene.machine.named("unload")) == (1, [])

    machine = CuttingMachine(OLD)
    machine.hanging = {OLD.name}
    routed(story, machine, ALONE)


@pytest.mark.parametrize("is_target", [True, False])
def test_a_model_that_is_shown_during_a_load_stays_the_same_resident(is_target):
    """The one that is loaded, or one beside it: nothing has left, and nothing is loaded again."""

    async def story(scene):
        ceiling_bytes = scene.backend.cards.capacity.ceiling_bytes()
        task = asyncio.create_task(scene.dispatcher.dispatch(scene.call((QWEN if is_target else LLAMA).name)))
        await until(lambda: machine.loading)
        late.set()
        await until(lambda: scene.relay.sent)
        assert len(machine.named("load")) == 1
        assert scene.backend.cards.capacity.ceiling_bytes() == ceiling_bytes
        scene.relay.sent[-1].answer()
        (await task).release("completed")

    machine = MemoryMachine(QWEN, LLAMA)
    late = show_late(machine, QWEN.name)
    if not is_target:
        machine.put(QWEN)
    routed(story, machine, ALONE, has_probe=is_target)


def test_a_request_for_a_model_that_is_deleted_while_its_show_hangs_waits_no_longer_than_facts_s():
    """Ollama's own answer says the rest."""

    async def story(scene):
        asyncio.get_running_loop().call_later(1.0, delete, scene)
        _, took_s = await sent_after(scene, scene.call(QWEN.name))
        assert took_s < PATIENCE_S + 1.5

    def delete(scene):
        del machine.installed[QWEN.name]
        scene.directory.catalog_changed()

    machine = MemoryMachine(QWEN, LLAMA)
    machine.hanging = {QWEN.name}
    routed(story, machine, ALONE)


def test_a_runner_whose_model_is_shown_late_stays_the_same_resident():
    """Its requests in flight are counted, and it is not loaded again."""

    async def story(scene):
        call = scene.call(QWEN.name)
        task = asyncio.create_task(scene.dispatcher.dispatch(call))
        await asyncio.sleep(PATIENCE_S + 5)
        assert list(scene.backend.world.residents) == [f"manifest-{QWEN.digest}"]
        held.set()
        await asyncio.sleep(0.1)
        assert list(scene.backend.world.residents) == [weights_of(QWEN)]
        assert scene.resident(QWEN).in_flight == 1
        await asyncio.sleep(3)
        scene.relay.sent[-1].answer()
        (await task).release("completed")
        assert scene.in_flight() == 0
        _, took_s = await sent_after(scene, scene.call(QWEN.name))
        assert took_s < 0.2
        assert len(scene.machine.named("load")) == 1

    machine = MemoryMachine(QWEN, LLAMA)
    held = show_late(machine, QWEN.name)
    routed(story, machine, ALONE)


def test_a_loaded_model_whose_show_hangs_does_not_keep_the_router_from_starting():
    """Nor does it make each reading of ps slow."""

    async def story(scene):
        assert scene.backend.world.is_up
        assert now_s() < 5
        before = len(machine.named("ps"))
        await asyncio.sleep(10)
        assert len(machine.named("ps")) - before >= 9

    machine = MemoryMachine(QWEN, LLAMA)
    machine.put(QWEN)
    machine.hanging = {QWEN.name}
    routed(story, machine)


def test_models_to_load_at_start_are_shown_first():
    """A preload is decided by exact sizes."""

    async def story(scene):
        scene.warmup.restart()
        await scene.warmup.check()
        assert scene.resident(LLAMA) is not None
        assert scene.facts(LLAMA).tensors

    others = [facts_of(f"other{number}:8b", 5) for number in range(8)]
    machine = MemoryMachine(*others, LLAMA)
    machine.hanging = {facts.name for facts in others}
    routed(story, machine, {"defaults.preload": [LLAMA.name], **ALONE})


# --- models that were just installed ---------------------------------------------------------------------------------


async def begin_slow_reading(scene):
    """Somebody installs a model whose show hangs; return while the regular reading of the catalog waits for it."""
    await asyncio.sleep(3)
    scene.machine.installed[QWEN.name] = QWEN
    scene.machine.hanging.add(QWEN.name)
    await until(lambda: (QWEN.name,) in scene.machine.named("show"))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_model_that_was_installed_during_a_reading_is_routed(is_told):
    """That reading has listed the models before; whether the pull went through the router or not."""

    async def story(scene):
        await begin_slow_reading(scene)
        scene.machine.installed[LLAMA_SMALL.name] = LLAMA_SMALL
        if is_told:
            scene.directory.catalog_changed()
        sent, _ = await sent_after(scene, scene.call(LLAMA_SMALL.name))
        assert sent.body["options"]["num_ctx"] == scene.machine.named("load")[0][1].num_ctx

    routed(story, MemoryMachine(LLAMA), ALONE)


@pytest.mark.parametrize(("slow_s", "requests"), [(3.0, 1), (0.5, 2)], ids=["slow", "several at once"])
def test_all_requests_for_a_model_that_was_just_installed_wait_for_the_list(slow_s, requests):
    """However long Ollama takes for it; one list does for all."""

    async def story(scene):
        await asyncio.sleep(3)
        scene.machine.installed[LLAMA_SMALL.name] = LLAMA_SMALL
        tags, before = scene.machine.tags, len(scene.machine.named("tags"))

        async def slow_tags():
            await asyncio.sleep(slow_s)
            return await tags()

        scene.machine.tags = slow_tags
        calls = [scene.call(LLAMA_SMALL.name) for _ in range(requests)]
        tasks = [asyncio.create_task(scene.dispatcher.dispatch(call)) for call in calls]
        await until(lambda: len(scene.relay.sent) == requests)
        for sent, task in zip(scene.relay.sent, tasks, strict=True):
            assert sent.body["options"]["num_ctx"]
            sent.answer()
            (await task).release("completed")
        assert (len(scene.machine.named("load")), len(scene.machine.named("tags"))) == (1, before + 1)

    routed(story, MemoryMachine(LLAMA), ALONE)


def test_a_change_during_a_reading_is_read_with_the_next_look():
    """That reading knows nothing of it."""
    newer = replace(LLAMA, digest="f" * 64)

    async def story(scene):
        await begin_slow_reading(scene)
        scene.machine.installed[LLAMA.name] = newer
        scene.directory.catalog_changed()
        await asyncio.sleep(4)
        assert scene.facts(LLAMA).digest == newer.digest

    routed(story, MemoryMachine(LLAMA), ALONE)


# --- models on other servers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/api/generate", "/api/chat", "/v1/chat/completions", "/api/embed"])
@pytest.mark.parametrize("name", ["my-gpt", "my-gpt:latest", "MY-GPT", "library/my-gpt"])
def test_a_model_that_another_server_runs_is_passed_on(name, route):
    """Unchanged: it has no size here, and needs no memory."""

    async def story(scene):
        sent, took_s = await sent_after(scene, scene.call(name, route, messages=MESSAGES, options={"num_ctx": 1 << 20}))
        assert (sent.body["model"], sent.body["options"], took_s < 0.2) == (name, {"num_ctx": 1 << 20}, True)
        assert (scene.machine.named("load"), scene.machine.named("create_derived")) == ([], [])

    routed(story, MemoryMachine(REMOTE, LLAMA))


def test_that_it_runs_elsewhere_may_be_known_from_its_show_alone():
    """A list does not have to say it."""

    async def story(scene):
        await sent_after(scene, scene.call("my-gpt"))
        assert scene.machine.named("load") == []

    machine = MemoryMachine(replace(REMOTE, is_remote=False))
    show = machine.show

    async def remote_show(name, **options):
        return await show(name, **options) | {"remote_model": "gpt-oss:120b", "remote_host": "https://ollama.com:443"}

    machine.show = remote_show
    routed(story, machine)


def test_it_is_refused_where_cloud_models_are():
    """With Ollama's own text, whatever its name."""

    async def story(scene):
        call = scene.call("my-gpt")
        call.may_use_remote = False
        with pytest.raises(Forbidden, match=REMOTE_REFUSED):
            await scene.dispatcher.dispatch(call)
        local = scene.call(LLAMA.name)
        local.may_use_remote = False
        await sent_after(scene, local)

    routed(story, MemoryMachine(REMOTE, LLAMA))


def test_it_is_no_variant_of_a_chain():
    """A chain that lists it goes on to the next one; an automatic chain never has it."""
    kin = replace(facts_of("llama3.3:1b", 0.5), is_remote=True)

    async def story(scene):
        chain, decision = scene.decisions.explain("team")
        assert [verdict.kind for verdict in decision.verdicts] == [VerdictKind.INCAPABLE, VerdictKind.FITS]
        assert "another server" in decision.verdicts[0].detail
        chain, _ = scene.decisions.explain(LLAMA.name)
        assert kin.name not in [variant.model for variant in chain.variants]

    routed(story, MemoryMachine(REMOTE, LLAMA, kin), {"chains": {"team": [REMOTE.name, LLAMA.name]}})


# --- an Ollama before 0.9.7 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [LLAMA, EMBEDDER], ids=["a chat model", "an embedder"])
@pytest.mark.parametrize("has_probe", [True, False], ids=["probe", "verify mode"])
def test_a_context_that_is_not_reported_is_unknown_and_not_zero(facts, has_probe):
    """One load, and every later request finds the model loaded."""

    async def story(scene):
        route = "/api/embed" if facts is EMBEDDER else "/api/generate"
        for _ in range(3):
            await sent_after(scene, scene.call(facts.name, route))
            await asyncio.sleep(2)
        assert len(scene.machine.named("load")) == 1
        assert scene.machine.named("unload") == []

    machine = MemoryMachine(facts, SMALL)
    machine.reports_context = False
    routed(story, machine, ALONE, has_probe=has_probe)


def test_a_runner_of_another_client_with_an_unknown_context_is_loaded_again_with_a_known_one():
    """Its context may be smaller than what the request needs; it is never named as 0."""

    async def story(scene):
        assert scene.resident(LLAMA).sent_options == LoadOptions()
        await sent_after(scene, scene.call(LLAMA.name, options={"num_ctx": 16384}))
        assert all(load[1].num_ctx for load in scene.machine.named("load"))
        assert scene.resident(LLAMA).context_length == 16384

    machine = MemoryMachine(LLAMA, SMALL)
    machine.reports_context = False
    machine.put(LLAMA, num_ctx=4096)
    routed(story, machine, ALONE)


def test_models_without_a_digest_are_kept_apart():
    """Before they are shown, their names stand for their weights."""
    rows = [{"name": name, "size": 1} for name in ("a:latest", "b:latest")]
    assert len({ModelFacts.of_show(row, {}).weights for row in rows}) == 2
