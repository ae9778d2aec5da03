"""Requests through the whole router in front of the simulated Ollama, on a virtual clock."""

import asyncio
import json
import random

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.backend.health import Health
from router.backend.world import NOT_ASKED
from router.core.units import MIB
from router.errors import RouterError
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from router.planning.stage import stage
from router.telemetry import Decided, Spilled, UpstreamDown

BIG, MIDDLE, SMALL = "qwen3:32b", "llama3.1:8b", "llama3.2:3b"
MODELS = ("llama3.3:70b-instruct-q4_K_M", BIG, "qwen3:14b", MIDDLE, SMALL, "nomic-embed-text:v1.5")
SPEEDS = Speeds(load_mib_per_s=10000, tokens_per_s=100, cpu_tokens_per_s=4)
ALONE = {"defaults.auto_chains": "off"}
CHAIN = {"chains": {BIG: [BIG, MIDDLE, SMALL]}}


def play(story, router=ALONE, *, cards=(24564,), has_probe=True, probe_lag_s=0.0, speeds=SPEEDS, **sim):
    """Run one story on a new stage and return its result."""
    specs = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(cards))
    config = SimConfig(machine=Machine(cards=specs, speeds=speeds), models=MODELS, **sim)

    async def run():
        async with stage(config, router, has_probe=has_probe, probe_lag_s=probe_lag_s) as one:
            return await story(one)

    return run_virtual(run())


def hello(model, tokens=4, **more):
    return {"model": model, "prompt": f"[[tokens={tokens}]] hi", **more}


def chat(model, tokens=4):
    return {"model": model, "messages": [{"role": "user", "content": f"[[tokens={tokens}]] hi"}]}


def asked(one, path):
    """Return the requests that the upstream has seen on `path`, decoded."""
    return [json.loads(seen.body) for seen in one.sim.seen if seen.path == path and seen.body]


def residents(one):
    return [row.model.name for row in one.sim.engine.ps()]


def world(one):
    return one.router.router.backend.world


CARD = 'backend="local",gpu="0",uuid="GPU-00000000-0000-0000-0000-000000000000"'


async def metric(one, name):
    """Return the samples of one metric of the admin listener: labels → value."""
    admin = HttpRelay(one.router.admin_url)
    answer = await admin.open(UpstreamRequest(b"GET", b"/metrics"))
    text = b"".join([part async for part in parts_of(answer)]).decode()
    await admin.aclose()
    rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith(f"{name}{{"))
    return {labels.partition("{")[2].rstrip("}"): float(value) for labels, _, value in rows}


async def parts_of(answer):
    while part := await answer.read():
        yield part


def test_a_cold_request_loads_with_explicit_options_and_is_served_by_that_runner():
    """The load is the router's; the request carries exactly its options, so that Ollama reloads nothing."""

    async def story(one):
        reply = await one.ask(hello(SMALL))
        load, request = asked(one, "/api/generate")
        assert load["options"] == request["options"] == {"num_ctx": 32768, "num_batch": 512}
        assert "prompt" not in load
        assert (reply.status, one.loads) == (200, [SMALL])

    play(story)


def test_requests_for_one_model_share_its_load():
    """Ten concurrent requests cause one load."""

    async def story(one):
        replies = await asyncio.gather(*(one.ask(hello(SMALL)) for _ in range(10)))
        assert [reply.status for reply in replies] == [200] * 10
        assert one.loads == [SMALL]

    play(story)


def test_a_request_for_a_resident_model_causes_no_other_request():
    """A decision for a resident needs no I/O."""

    async def story(one):
        await one.ask(hello(SMALL))
        before = len(one.sim.seen)
        await one.ask(hello(SMALL, tokens=1))
        new = [seen.path for seen in one.sim.seen[before:]]
        assert [path for path in new if path != "/api/ps"] == ["/api/generate"]

    play(story)


def test_a_load_continues_when_its_first_client_leaves():
    """The remaining request is served by the same load."""

    async def story(one):
        first = asyncio.create_task(one.ask(hello(BIG)))
        second = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(1.0)
        first.cancel()
        reply = await second
        assert (reply.status, one.loads) == (200, [BIG])

    play(story)


def test_clients_that_leave_at_random_moments_leave_no_state():
    """After their cancellations no request is in flight or waits, no connection is in use, and requests succeed."""

    async def story(one):
        rng = random.Random(7)

        async def impatient():
            task = asyncio.create_task(one.ask(hello(rng.choice([BIG, MIDDLE, SMALL]), tokens=rng.choice([1, 40]))))
            await asyncio.sleep(rng.random() * 1.5)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(15):
            await asyncio.gather(*(impatient() for _ in range(20)))
        await asyncio.sleep(15)
        assert [tracked.in_flight for tracked in world(one).residents.values()] == [0] * len(world(one).residents)
        assert one.router.router.backend.line.depth == 0
        assert one.router.router.backend.relay.open_connections == one.router.router.backend.relay.idle_connections
        assert (await one.ask(hello(SMALL))).status == 200

    play(story)


def test_a_fallback_is_reported_in_the_answers_headers():
    """They name the variant that served, as the body does, and the reason."""

    async def story(one):
        data = json.dumps(hello("llama3.3:70b-instruct-q4_K_M", stream=False)).encode()
        answer = await one.client.open(UpstreamRequest(b"POST", b"/api/generate", [], data, len(data)))
        headers = dict(answer.headers)
        body = json.loads(await answer.read())
        assert headers[b"x-router-model"] == body["model"].encode() == MIDDLE.encode()
        assert headers[b"x-router-requested-model"] == b"llama3.3:70b-instruct-q4_K_M"
        assert headers[b"x-router-reason"].startswith(b"fallback: llama3.3:70b-instruct-q4_K_M too big")
        answer.close()

    play(story, {})


def test_h5_a_spilled_load_never_answers_and_the_next_one_is_right():
    """An unknown server setting (4 slots) makes the first load spill: it is unloaded, and a smaller variant serves."""
    from router.core.ollama.options import ServerSettings

    async def story(one):
        first = await one.ask(hello("qwen3:14b", options={"num_ctx": 16384}))
        second = await one.ask(hello("qwen3:14b", options={"num_ctx": 16384}))
        assert [reply.tokens_per_s >= 95 for reply in (first, second)] == [True, True]
        assert one.loads.count("qwen3:14b") == 1

    play(story, {"chains": {"qwen3:14b": ["qwen3:14b", SMALL]}}, settings=ServerSettings(num_parallel=4))


@pytest.mark.parametrize(
    ("rule", "status", "served"),
    [("refuse", 503, ""), ("allow_partial", 200, BIG), ("passthrough", 200, BIG)],
)
def test_the_configured_rule_applies_if_nothing_fits(rule, status, served):
    """The request is refused with the bytes needed, or passed on unchanged."""

    async def story(one):
        reply = await one.ask(hello(BIG))
        assert (reply.status, reply.served) == (status, served)
        if rule == "refuse":
            assert "too big (needs 21" in reply.error

    play(story, {**ALONE, "defaults.nothing_fits": rule}, cards=(8192,))


@pytest.mark.parametrize(("path", "body"), [("/api/generate", hello(BIG)), ("/v1/chat/completions", chat(BIG))])
def test_a_model_that_may_spill_gets_the_context_of_its_chain(path, body):
    """`allow_partial` with a chain's `num_ctx` of 8192: one load at 8192, on both APIs, under the requested name."""

    async def story(one):
        for _ in range(2):
            reply = await one.ask(body, path)
            assert (reply.status, reply.served) == (200, BIG)
        (row,) = one.sim.engine.ps()
        assert (row.context_length, len(one.loads)) == (8192, 1)

    config = {"chains": {BIG: [{"model": BIG, "num_ctx": 8192}]}, "defaults.nothing_fits": "allow_partial"}
    play(story, {**ALONE, **config}, cards=(8192,))


def test_a_model_that_may_spill_is_served_again_after_another_client_has_deleted_its_tag():
    """The derived tag is created again; its name is never visible."""

    async def story(one):
        assert (await one.ask(chat(BIG), "/v1/chat/completions")).status == 200
        server = one.router.router.backend.server
        for row in await server.tags():
            if "derived" in row["name"]:
                await server.delete(row["name"])
        reply = await one.ask(chat(BIG), "/v1/chat/completions")
        assert (reply.status, reply.served) == (200, BIG)

    config = {"chains": {BIG: [{"model": BIG, "num_ctx": 8192}]}, "defaults.nothing_fits": "allow_partial"}
    play(story, {**ALONE, **config}, cards=(8192,))


def test_a_model_that_may_spill_is_not_reloaded_as_its_prompt_grows():
    """Without a context in request and chain Ollama's default applies: one load for every length."""

    async def story(one):
        for length in (9000, 12000, 9000, 16000):
            reply = await one.ask({**hello(BIG), "prompt": "[[tokens=4]] " + "x " * length})
            assert reply.status == 200
        assert len(one.loads) == 1

    play(story, {**ALONE, "defaults.nothing_fits": "allow_partial"}, cards=(8192,))


def test_with_nothing_fits_wait_a_request_is_served_when_memory_becomes_free():
    """It waits until another program has released its memory."""

    async def story(one):
        one.sim.cards.set_foreign(0, 20000 * MIB)
        await one.router.router.backend.world.refresh_fresh()
        waiting = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(10)
        assert not waiting.done()
        one.sim.cards.set_foreign(0, 0)
        assert (await waiting).status == 200

    play(story, {**ALONE, "defaults.nothing_fits": "wait"})


def test_a_strict_request_is_served_by_the_requested_model_or_refused():
    """X-Router-Strict disables the fallbacks."""

    async def story(one):
        data = json.dumps(hello("llama3.3:70b-instruct-q4_K_M")).encode()
        headers = [(b"x-router-strict", b"true")]
        answer = await one.client.open(UpstreamRequest(b"POST", b"/api/generate", headers, data, len(data)))
        assert answer.status == 503
        answer.close()

    play(story, {})


def test_an_unknown_model_gets_ollamas_own_404():
    """A name that is neither a chain nor installed is left to Ollama."""

    async def story(one):
        reply = await one.ask(hello("nobody:1b"))
        assert (reply.status, reply.error) == (404, "model 'nobody:1b' not found")

    play(story)


def test_native_and_v1_requests_share_one_runner():
    """/v1 reaches it through a derived tag, whose name is not visible."""

    async def story(one):
        for _ in range(5):
            await one.ask(hello(SMALL, options={"num_ctx": 16384}))
            reply = await one.ask(chat(SMALL), "/v1/chat/completions")
            assert (reply.status, reply.served) == (200, SMALL)
        assert one.loads == [SMALL]
        answer = await one.client.open(UpstreamRequest(b"GET", b"/api/tags", [], None, None))
        assert b"derived" not in await answer.read()

    play(story)


def test_without_derived_tags_v1_runs_at_the_automatic_context_and_never_spills():
    """It shares the runner with native requests; a model that fits only with a smaller context is not chosen."""
    router = {**CHAIN, "defaults.derived_tags": False}

    async def story(one):
        for _ in range(3):
            reply = await one.ask(chat(BIG), "/v1/chat/completions")
            # The automatic context is 32768 on 24 GB, with which the big one does not fit.
            assert (reply.status, reply.served) == (200, MIDDLE)
            reply = await one.ask(hello(MIDDLE, options={"num_ctx": 8192}))
            assert (reply.status, reply.tokens_per_s > 95) == (200, True)
        assert one.loads == [MIDDLE]
        assert one.evictions == []
        assert [tracked.row.context_length for tracked in world(one).residents.values()] == [32768]
        answer = await one.client.open(UpstreamRequest(b"GET", b"/api/tags", [], None, None))
        assert b"derived" not in await answer.read()

    play(story, router)


def test_derived_tags_of_a_crashed_router_are_deleted():
    """They are deleted when Ollama answers (again); the loaded model is used further."""

    async def story(one):
        await one.ask(chat(SMALL), "/v1/chat/completions")
        server = one.router.router.backend.server
        assert any("derived" in row["name"] for row in await server.tags())
        for _ in range(3):  # Ollama does not answer for a moment
            one.sim.faults.add("reset", route="/api/ps", after_chunks=0)
        await asyncio.sleep(6)
        assert not any("derived" in row["name"] for row in await server.tags())
        assert (await one.ask(chat(SMALL), "/v1/chat/completions")).status == 200
        assert one.loads == [SMALL]

    play(story)


def test_g10_a_different_context_with_each_request_causes_few_loads():
    """As by aider: contexts are rounded up, and a larger loaded context is kept."""

    async def story(one):
        for turn in range(12):
            await one.ask(hello(SMALL, options={"num_ctx": 8192 + 137 * turn}))
        assert len(one.loads) <= 2

    play(story)


def test_a_requested_maximum_context_is_served_by_a_smaller_variant():
    """As by LlamaIndex: 131072 tokens fit only with the small model."""

    async def story(one):
        reply = await one.ask(hello(MIDDLE, options={"num_ctx": 131072}))
        assert (reply.status, reply.served) == (200, SMALL)

    play(story, {"chains": {MIDDLE: [MIDDLE, SMALL]}}, cards=(20000,))


@pytest.mark.slow
def test_a_keep_alive_of_minus_one_stays_and_of_zero_unloads_immediately():
    """The first, as by Home Assistant, outlasts Ollama's own lease."""

    async def story(one):
        await one.ask(hello(SMALL, keep_alive=-1))
        assert "keep_alive" not in asked(one, "/api/generate")[1]
        await asyncio.sleep(1200)
        assert residents(one) == [SMALL]
        reply = await one.ask({"model": SMALL, "keep_alive": 0})
        await asyncio.sleep(1)
        assert (reply.status, residents(one)) == (200, [])

    play(story)


def test_a_keep_alive_starts_with_the_end_of_the_last_request():
    """The model is unloaded after its 10 s, although Ollama's lease is five minutes."""

    async def story(one):
        await one.ask(hello(SMALL, keep_alive="10s"))
        await asyncio.sleep(8)
        assert residents(one) == [SMALL]
        await asyncio.sleep(5)
        assert residents(one) == []

    play(story)


def test_h7_an_unload_of_a_chain_unloads_its_loaded_variant_and_loads_nothing():
    """`ollama stop` with the chain's name."""

    async def story(one):
        await one.ask(hello("llama3.3:70b-instruct-q4_K_M"))
        assert residents(one) == [MIDDLE]
        await one.ask({"model": "llama3.3:70b-instruct-q4_K_M", "keep_alive": "0s"})
        await asyncio.sleep(1)
        assert (residents(one), one.loads) == ([], [MIDDLE])

    play(story, {})


def test_an_embedder_is_loaded_beside_a_chat_model_with_default_options():
    """The chat model is not evicted."""

    async def story(one):
        await one.ask(hello(MIDDLE))
        body = {"model": "nomic-embed-text:v1.5", "input": "hi"}
        assert (await one.ask(body, "/api/embed")).status == 200
        assert (await one.ask(body, "/v1/embeddings")).status == 200
        assert sorted(residents(one)) == sorted([MIDDLE, "nomic-embed-text:v1.5"])
        assert len(one.loads) == 2

    play(story)


def test_without_a_probe_the_first_variant_that_ps_shows_fully_on_the_gpu_serves():
    """Verify mode: bigger variants are tried once, spill, and are unloaded."""

    async def story(one):
        first = await one.ask(hello(BIG))
        assert (first.served, first.tokens_per_s >= 95) == (MIDDLE, True)
        tried = len(one.loads)
        assert (await one.ask(hello(BIG))).served == MIDDLE
        assert len(one.loads) == tried

    play(story, CHAIN, cards=(8192,), has_probe=False)


def test_without_any_gpu_requests_pass_unchanged():
    """A first load without any VRAM means that there is no GPU."""

    async def story(one):
        replies = [await one.ask(hello(SMALL)) for _ in range(2)]
        assert [reply.status for reply in replies] == [200, 200]
        assert world(one).cards.gpus == ()

    play(story, {}, cards=(1000,), has_probe=False)


def test_an_upstream_that_starts_later_is_found_without_a_restart():
    """Requests get 502 while it does not answer, and are served when it does."""

    async def story(one):
        port = int(one.sim.url.rsplit(":", 1)[1])
        await one.sim.stop()
        await asyncio.sleep(3)
        assert (await one.ask(hello(SMALL))).status == 502
        assert one.router.router.directory.is_ready()[0] is False
        await one.sim.start(port=port)
        await asyncio.sleep(3)
        assert (await one.ask(hello(SMALL))).status == 200

    play(story)


def test_alternating_requests_for_two_models_that_do_not_fit_together_cause_two_loads():
    """Twenty waiting requests are served model by model."""

    async def story(one):
        names = [BIG, "qwen3:14b"] * 10
        replies = await asyncio.gather(*(one.ask(hello(name, options={"num_ctx": 8192})) for name in names))
        assert all(reply.status == 200 for reply in replies)
        assert len(one.loads) == 2

    play(story)


def test_b5_a_full_queue_refuses_immediately_with_ollamas_text():
    """One of three requests is beyond `queue.max_waiting` of 2."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        busy = asyncio.create_task(one.ask(hello(BIG, tokens=400)))
        await asyncio.sleep(0.5)
        waiting = [asyncio.create_task(one.ask(hello("qwen3:14b"))) for _ in range(3)]
        await asyncio.sleep(0.1)
        replies = await asyncio.gather(*waiting, busy)
        refused = [reply for reply in replies if reply.status == 503]
        assert len(refused) == 1
        assert refused[0].error == "server busy, please try again.  maximum pending requests exceeded"

    play(story, {**ALONE, "queue.max_waiting": 2})


def test_a_steady_stream_for_a_resident_does_not_starve_another_model():
    """After the age bound the resident takes no new requests."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        is_over = asyncio.Event()

        async def hot(seed):
            rng = random.Random(seed)
            while not is_over.is_set():
                await one.ask(hello(BIG, tokens=rng.randrange(100, 400)))

        tasks = [asyncio.create_task(hot(seed)) for seed in range(6)]
        reply = await one.ask(hello("qwen3:14b"))
        is_over.set()
        await asyncio.gather(*tasks)
        assert reply.status == 200
        assert reply.took_s < 60

    play(story, {**ALONE, "queue.affinity_count": 1000, "queue.age_bound_s": 10})


def test_a_request_on_one_card_does_not_overtake_one_that_waits_for_another():
    """Only requests served by a resident in its way count as overtaking."""

    async def story(one):
        await one.ask(hello(MIDDLE, tokens=1, options={"num_ctx": 8192}))
        await one.ask(hello(BIG, tokens=1, options={"num_ctx": 8192}))
        assert sorted(residents(one)) == sorted([MIDDLE, BIG])
        busy = asyncio.create_task(one.ask(hello(BIG, tokens=600, options={"num_ctx": 8192})))
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(one.ask(hello("qwen3:14b", options={"num_ctx": 8192})))
        await asyncio.sleep(0.2)
        for _ in range(8):
            await one.ask(hello(MIDDLE, tokens=1, options={"num_ctx": 8192}))
        reply = await one.ask(hello(BIG, tokens=1, options={"num_ctx": 8192}))
        assert (reply.status, waiting.done(), one.evictions) == (200, False, [])
        await asyncio.gather(busy, waiting)

    play(story, {**ALONE, "queue.affinity_count": 8, "queue.age_bound_s": 1000}, cards=(24564, 12288))


def test_the_memory_that_a_load_under_way_needs_is_a_metric():
    """`vram_reserved_bytes` is the need of the switch per card while it runs, and 0 after it."""

    async def story(one):
        loading = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(1.0)
        assert one.router.router.backend.line.is_switching
        during = await metric(one, "ollama_router_vram_reserved_bytes")
        await loading
        assert during[CARD] > 15 << 30
        assert await metric(one, "ollama_router_vram_reserved_bytes") == {CARD: 0.0}

    play(story)


def test_a_failed_load_leads_to_the_next_variant_or_to_ollamas_own_error():
    """The error is passed on if there is no other variant."""

    async def story(one):
        one.sim.cards.change(fail_load={MIDDLE: "corrupt"})
        assert (await one.ask(hello(BIG))).served == SMALL
        reply = await one.ask(hello(MIDDLE))
        assert reply.status == 500
        assert reply.error

    play(story, {"chains": {BIG: [MIDDLE, SMALL]}, **ALONE})


def test_a_switch_waits_for_memory_that_is_released_late():
    """With a driver that lags by 1.5 s no load spills."""
    specs = (CardSpec(total_mib=24564),)
    config = SimConfig(machine=Machine(cards=specs, speeds=SPEEDS, free_lag_s=1.5), models=MODELS)

    async def run():
        async with stage(config, ALONE) as one:
            for name in (BIG, "qwen3:14b", BIG, "qwen3:14b"):
                reply = await one.ask(hello(name, options={"num_ctx": 16384}))
                assert (reply.status, reply.tokens_per_s >= 95) == (200, True)
            assert len(one.loads) == 4

    run_virtual(run())


def test_an_explanation_lists_the_verdicts_and_loads_nothing():
    """An unknown name is an error."""

    async def story(one):
        found = one.router.router.inspector.explain("llama3.3:70b-instruct-q4_K_M")
        assert [row["verdict"] for row in found["variants"]] == ["too_big", "fits"]
        assert one.loads == []
        with pytest.raises(RouterError):
            one.router.router.inspector.explain("nobody:1b")

    play(story, {})


def test_memory_taken_during_a_load_causes_at_most_one_more_load_and_no_spilled_answer():
    """Another program takes 12 GB while a 20 GB model loads: it is unloaded again, and a smaller variant serves."""

    async def story(one):
        asked_for = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(0.02)
        one.sim.cards.set_foreign(0, 12000 * MIB)
        reply = await asked_for
        assert (reply.served, reply.tokens_per_s >= 95) == (MIDDLE, True)
        assert len(one.loads) <= 2

    play(story, CHAIN)


def test_h2_a_slow_probe_delays_switches_but_no_request_for_a_resident():
    """A load waits for the reading, which takes 1.5 s; a request for a resident does not."""

    async def story(one):
        for name in (BIG, "qwen3:14b", BIG):
            reply = await one.ask(hello(name, options={"num_ctx": 16384}))
            assert (reply.status, reply.tokens_per_s >= 95) == (200, True)
        assert (await one.ask(hello(BIG, tokens=1, options={"num_ctx": 16384}))).took_s < 0.2

    play(story, probe_lag_s=1.5)


def test_a_model_loaded_by_another_client_of_ollama_is_used():
    """It is not loaded again, and its memory is booked."""

    async def story(one):
        direct = type(one.client)(one.sim.url)
        data = json.dumps(hello(SMALL, tokens=1)).encode()
        answer = await direct.open(UpstreamRequest(b"POST", b"/api/generate", [], data, len(data)))
        while await answer.read():
            pass
        await direct.aclose()
        await asyncio.sleep(2.5)
        assert (await one.ask(hello(SMALL))).status == 200
        assert one.loads == [SMALL]
        assert sum(next(iter(world(one).residents.values())).held_bytes.values()) > 2 << 30

    play(story)


def test_h1_a_lost_probe_leads_to_verify_mode():
    """The last reading is used for `stale_after_s`; then loads are verified by ps, and residents serve further."""

    async def story(one):
        await one.ask(hello(SMALL))
        world(one).cards.probe.is_lost = True
        await asyncio.sleep(15)
        assert world(one).cards.gpus is None
        assert (await one.ask(hello(SMALL))).status == 200
        assert (await one.ask(hello(MIDDLE))).status == 200
        assert "verify" in str(one.router.router.directory.is_ready()[1])

    play(story)


STATIC = {"kind": "static", "gpus": [{"name": "card", "total_mib": 24564}]}


def test_with_a_static_probe_residents_are_booked_by_ps():
    """Nothing can be measured; models are loaded and evicted by the router, and nothing spills."""

    async def story(one):
        for name in (SMALL, BIG, "qwen3:14b", SMALL):
            reply = await one.ask(hello(name))
            assert (reply.status, reply.served, reply.tokens_per_s >= 95) == (200, name, True)
        assert one.loads == [SMALL, BIG, "qwen3:14b", SMALL]
        assert one.evictions == []
        assert all(not tracked.is_measured for tracked in world(one).residents.values())

    play(story, {**ALONE, "backends.local.probe": STATIC}, has_probe=None)


def test_with_a_static_probe_a_model_is_booked_on_its_card():
    """The second model is loaded on the second card."""
    probe = {"kind": "static", "gpus": [{"name": "card", "total_mib": 16000}] * 2}

    async def story(one):
        for name in ("qwen3:14b", MIDDLE):
            reply = await one.ask(hello(name, options={"num_ctx": 16384}))
            assert (reply.status, reply.tokens_per_s >= 95) == (200, True)
        held = [set(tracked.held_bytes) for tracked in world(one).residents.values()]
        assert sorted(map(sorted, held)) == [[0], [1]]

    play(story, {**ALONE, "backends.local.probe": probe}, cards=(16000, 16000), has_probe=None)


@pytest.mark.slow
def test_b6_under_overload_all_requests_are_served_and_the_model_is_never_idle():
    """3 × the capacity is offered for a minute."""

    async def story(one):
        await one.ask(hello(SMALL))
        loop = asyncio.get_running_loop()
        alone_s = (await one.ask(hello(SMALL, tokens=50))).took_s
        started_s = loop.time()

        async def send(index):
            await asyncio.sleep(index * alone_s / 3)
            return await one.ask(hello(SMALL, tokens=50))

        count = int(3 * 60 / alone_s)
        replies = await asyncio.gather(*(send(index) for index in range(count)))
        assert {reply.status for reply in replies} == {200}
        assert count * alone_s >= 0.95 * (loop.time() - started_s)

    play(story)


def test_c7_disconnects_and_client_errors_never_count_against_the_upstream():
    """After 1,000 of them the upstream counts as up, and the next request is served."""

    async def story(one):
        await one.ask(hello(SMALL))

        async def impatient(index):
            task = asyncio.create_task(one.ask(hello(SMALL, tokens=40)))
            await asyncio.sleep(0.001 * (index % 50))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(20):
            await asyncio.gather(*(impatient(index) for index in range(50)))
        for _ in range(50):
            assert (await one.ask({"model": "no-such-model", "prompt": "x"})).status == 404
            assert (await one.ask({"model": SMALL, "prompt": 1})).status == 400
        assert world(one).is_up
        assert (await one.ask(hello(SMALL))).status == 200
        assert len(one.loads) == 1

    play(story)


def test_c9_if_all_loads_fail_the_last_error_is_answered_after_a_bounded_number_of_calls():
    """Each variant is tried once, and the client gets the upstream's own text."""

    async def story(one):
        one.sim.cards.change(fail_load=dict.fromkeys((BIG, MIDDLE, SMALL), "corrupt"))
        reply = await one.ask(hello(BIG))
        assert (reply.status, "llama" in reply.error) == (500, True)
        loads = [body for body in asked(one, "/api/generate") if not body.get("prompt") and body.get("keep_alive")]
        assert len(loads) <= 3 + 2

    play(story, CHAIN)


def test_an_option_of_the_wrong_type_gets_ollamas_error_even_after_valid_requests():
    """A cached decision does not hide the error of a request."""

    async def story(one):
        for _ in range(3):
            assert (await one.ask(hello(SMALL))).status == 200
            reply = await one.ask(hello(SMALL, options={"num_ctx": "abc"}))
            assert (reply.status, reply.error) == (500, 'option "num_ctx" must be of type integer')

    play(story)


def test_h4_two_models_that_do_not_fit_together_are_never_loaded_together():
    """Requested at the same moment, in any order, they are served one after the other, without a spill."""
    rng = random.Random(4)

    async def story(one):
        for _ in range(25):
            pair = [hello("qwen3:14b", options={"num_ctx": 16384}), hello(BIG, options={"num_ctx": 8192})]
            rng.shuffle(pair)
            replies = await asyncio.gather(*(one.ask(body) for body in pair))
            assert [reply.status for reply in replies] == [200, 200]
            assert min(reply.tokens_per_s for reply in replies) > 95
            assert len(residents(one)) == 1

    play(story)


@pytest.mark.slow
def test_a_loaded_model_serves_all_requests_that_waited_for_it_before_it_is_unloaded():
    """Even if loads take longer than the age bound, and other requests have become impatient."""
    slow = Speeds(load_mib_per_s=1500, tokens_per_s=40, cpu_tokens_per_s=3)

    async def story(one):
        async def send(index):
            await asyncio.sleep(index * 0.5)
            return await one.ask(hello((BIG, "qwen3:14b")[index % 2], tokens=100, options={"num_ctx": 8192}))

        replies = await asyncio.gather(*(send(index) for index in range(24)))
        assert [reply.status for reply in replies] == [200] * 24
        assert len(one.loads) <= 5

    play(story, speeds=slow)


def test_answers_and_events_have_the_backends_configured_name_and_the_reason():
    """In the headers and in the end of each request."""

    async def story(one):
        data = json.dumps(hello(SMALL, stream=False)).encode()
        for _ in range(2):
            answer = await one.client.open(UpstreamRequest(b"POST", b"/api/generate", [], data, len(data)))
            await answer.read()
            assert dict(answer.headers)[b"x-router-backend"] == b"gpu1"
        telemetry = one.router.router.telemetry
        telemetry.flush()
        ends = one.router.router.recent._ended
        assert {(end.backend, end.reason) for end in ends} == {("gpu1", "fits"), ("gpu1", "resident")}

    async def run():
        async with stage(SimConfig(models=MODELS), ALONE, backend="gpu1") as one:
            await story(one)

    run_virtual(run())


def ends(one):
    """Return the ends of requests so far: outcome, status, phase, and whether there is an error text."""
    one.router.router.telemetry.flush()
    return [(end.outcome, end.status, end.phase, bool(end.error)) for end in one.router.router.recent._ended]


def test_every_request_that_reached_the_dispatcher_is_reported_once_with_its_outcome():
    """Served, refused, queue full, client gone while queued or before the answer, Ollama away: one end each."""

    async def story(one):
        await one.ask(hello(SMALL))
        await one.ask(hello("llama3.3:70b-instruct-q4_K_M"))
        switching = asyncio.create_task(one.ask(hello(MIDDLE, tokens=500)))
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(one.ask(hello("qwen3:14b")))
        await asyncio.sleep(0.2)
        await one.ask(hello(BIG, options={"num_ctx": 8192}))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await switching
        long = asyncio.create_task(one.ask(hello(MIDDLE, tokens=5000, stream=False)))
        await asyncio.sleep(1.0)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        await asyncio.sleep(1.0)
        await one.sim.stop()
        await asyncio.sleep(5.0)
        await one.ask(hello(MIDDLE))
        assert sorted(ends(one)) == sorted(
            [
                ("completed", 200, "", False),
                ("shed", 503, "", True),
                ("shed", 503, "", True),
                ("client_gone", 499, "queued", False),
                ("completed", 200, "", False),
                ("client_gone", 499, "before_answer", False),
                ("upstream_error", 502, "", True),
            ]
        )

    play(story, ALONE | {"queue.max_waiting": 2})


def test_a_request_keeps_its_id_when_its_tag_was_deleted_and_it_is_decided_again():
    """Sent on the fast path, answered 404, decided again: one id in all events, and one end."""

    async def story(one):
        path = "/v1/chat/completions"
        for _ in range(3):
            await one.ask(chat(SMALL), path)
        server, recent = one.router.router.backend.server, one.router.router.recent
        for row in await server.tags():
            if "derived" in row["name"]:
                await server.delete(row["name"])
        before = len(ends(one))
        assert (await one.ask(chat(SMALL), path)).status == 200
        assert len(ends(one)) == before + 1
        decided = [event.request_id for _, event in recent._begun if hasattr(event, "request_id")]
        assert decided[-2] == decided[-1] == recent._ended[-1].request_id

    play(story)


def test_requests_ended_by_a_shutdown_are_reported_as_such():
    """One that is being answered and one that is queued: both end as shutdown with 503, not as client_gone."""

    async def story(one):
        await one.ask(hello(SMALL))
        bodies = [hello(SMALL, tokens=5000, stream=False), hello("qwen3:14b")]
        asked = [asyncio.create_task(one.ask(body)) for body in bodies]
        await asyncio.sleep(0.5)
        await one.router.clients.stop(0.5)
        replies = await asyncio.gather(*asked)
        assert [reply.status for reply in replies] == [503, 503]
        assert ends(one)[1:] == [("shutdown", 503, "", True)] * 2

    play(story)


def test_a_load_waits_for_the_memory_of_a_clients_unload():
    """`ollama stop`, and at once another model: with a reading from before, its load would look like a spill."""

    async def story(one):
        one.router.router.backend.world.cards.probe.cache_s = 0.3
        await one.ask(hello(SMALL))
        for _ in range(5):
            for old, new in ((SMALL, MIDDLE), (MIDDLE, SMALL)):
                await one.ask({"model": old, "keep_alive": 0})
                assert (await one.ask(hello(new))).status == 200
        assert one.loads == [SMALL, *[MIDDLE, SMALL] * 5]
        assert [event for _, event in one.router.router.recent._begun if isinstance(event, Spilled)] == []

    play(story)


def decided(one):
    one.router.router.telemetry.flush()
    return [event for _, event in one.router.router.recent._begun if isinstance(event, Decided)]


@pytest.mark.parametrize("rule", ["allow_partial", "passthrough"])
def test_a_request_passed_on_although_nothing_fits_is_reported_with_its_verdicts(rule):
    """With the rule, the variant, and why none fits."""

    async def story(one):
        assert (await one.ask(hello(BIG))).status == 200
        (event,) = decided(one)
        assert (event.outcome, event.reason, event.chosen) == ("passthrough", rule, BIG)
        assert event.decision.chosen is None

    play(story, {**ALONE, "defaults.nothing_fits": rule}, cards=(8192,))


def test_a_request_that_caused_a_load_is_reported_with_the_decision_to_load():
    """Not with the later one, for which the model is already resident."""

    async def story(one):
        await one.ask(hello(SMALL))
        await one.ask(hello(SMALL))
        first, second = decided(one)
        assert (first.reason, second.reason) == ("fits", "resident")
        assert first.decision.chosen.need_bytes > 0

    play(story)


def test_an_option_of_the_wrong_type_gets_ollamas_error_for_a_virtual_model_too():
    """The request is passed on to the first installed variant; the log has the reason."""

    async def story(one):
        reply = await one.ask(hello("team", options={"num_ctx": "big"}))
        assert (reply.status, reply.error) == (500, 'option "num_ctx" must be of type integer')
        one.router.router.telemetry.flush()
        assert "num_ctx" in one.router.router.recent._ended[-1].reason

    play(story, {**ALONE, "chains": {"team": ["nowhere:1b", SMALL]}})


def test_an_ollama_that_does_not_answer_at_start_is_reported_once():
    """It is polled repeatedly, but there is one event."""

    async def story(one):
        world = one.router.router.backend.world
        world.health, world.last_error, seen = Health(rise=3, fall=3), NOT_ASKED, []
        one.router.router.telemetry._hooks = (*one.router.router.telemetry._hooks, Collector(seen))
        await one.sim.stop()
        await asyncio.sleep(10)
        assert [type(event) for event in seen if isinstance(event, UpstreamDown)] == [UpstreamDown]

    play(story)


class Collector:
    def __init__(self, seen):
        self.on = seen.append
