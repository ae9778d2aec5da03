"""The simulated scheduler's behaviour under concurrency and failure (ids in brackets: recorded scenarios)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.arithmetic import SimModel
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.scheduler.engine import Engine, EngineBusy, LoadError, RunnerDied
from router.core.ollama.model import ModelFacts, Tensor
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import MIB


def model(name: str, mib: int) -> SimModel:
    """Return a llama model of 16 layers with a file of `mib` MiB."""
    rows = mib * MIB // 16 // 2 // 1024
    blocks = [
        Tensor(f"blk.{il}.{part}.weight", "F16", (1024, size))
        for il in range(16)
        for part, size in (("attn_k", 256), ("ffn_up", rows - 256))
    ]
    named = {"block_count": 16, "embedding_length": 1024, "context_length": 32768, "feed_forward_length": 2048}
    heads = {"head_count": 8, "head_count_kv": 2, "key_length": 128, "value_length": 128}
    info = {f"llama.{key}": value for key, value in named.items()}
    info |= {f"llama.attention.{key}": value for key, value in heads.items()}
    facts = ModelFacts(
        name=name,
        digest=name,
        size_bytes=mib * MIB,
        capabilities=frozenset({"completion"}),
        weights=f"sha256-{name}",
        info={"general.architecture": "llama", **info},
        tensors=(
            *blocks,
            Tensor("output.weight", "F16", (1024, 1000)),
            Tensor("token_embd.weight", "F16", (1024, 1000)),
        ),
    )
    return SimModel(facts, f"sha256-{name}", mib * MIB)


SMALL, BIG, OTHER = model("small", 4000), model("big", 16000), model("other", 15000)
FIXED = LoadOptions(num_ctx=4096)


def with_engine(
    play: Callable[[Engine], Awaitable[Any]],
    *,
    settings: ServerSettings | None = None,
    cards: int = 1,
    on_event: Callable[[str, str, str], None] | None = None,
    **machine: Any,
) -> Any:
    """Run `play` on a fresh engine, in virtual time."""

    async def scenario() -> Any:
        specs = tuple(CardSpec(name=f"CUDA{index}") for index in range(cards))
        speeds = Speeds(load_mib_per_s=4000, tokens_per_s=100, cpu_tokens_per_s=4)
        book = Cards(Machine(cards=specs, speeds=speeds, **machine))
        async with Engine(book, settings, arithmetic=FootprintArithmetic(), on_event=on_event) as engine:
            return await play(engine)

    return run_virtual(scenario())


async def serve(engine: Engine, wanted: SimModel, seconds: float = 0.1, **more: Any) -> float:
    """Serve one request whose answer takes `seconds`; return the time of its end."""
    async with await engine.acquire(wanted, more.pop("options", FIXED), **more) as lease, lease.slot():
        await asyncio.sleep(seconds)
    return asyncio.get_running_loop().time()


def names(engine: Engine) -> list[str]:
    return sorted(row.model.name for row in engine.ps())


def test_load_takes_bytes_over_speed_and_shows_up_when_ready() -> None:
    """16000 MiB at 4000 MiB/s: 4 s, polled every 250 ms. `/api/ps` is empty until then, but memory is taken (d09)."""

    async def play(engine: Engine) -> None:
        task = asyncio.create_task(serve(engine, BIG))
        await asyncio.sleep(2)
        assert names(engine) == []
        assert engine.gpus()[0].free_bytes < 9000 * MIB
        assert 4 < await task < 5
        (row,) = engine.ps()
        assert (row.context_length, row.size_bytes) == (4096, row.size_vram_bytes)

    with_engine(play)


def test_spilled_model_is_slow_and_says_so() -> None:
    """A model that does not fit is loaded with part of it on the CPU."""

    async def play(engine: Engine) -> None:
        engine.cards.set_foreign(0, 12000 * MIB)
        async with await engine.acquire(BIG, FIXED) as lease:
            assert not lease.is_fully_on_gpu
            assert lease.tokens_per_s < 20
        (row,) = engine.ps()
        assert 0 < row.size_vram_bytes < row.size_bytes

    with_engine(play)


def test_client_that_leaves_kills_the_load_it_caused() -> None:
    """g04; the next in the queue starts from the beginning (g05)."""

    async def play(engine: Engine) -> None:
        first = asyncio.create_task(serve(engine, BIG))
        await asyncio.sleep(1)
        second = asyncio.create_task(serve(engine, BIG))
        await asyncio.sleep(1)
        first.cancel()
        assert await second > 6
        assert first.cancelled()

    with_engine(play)


def test_client_that_leaves_in_the_queue_is_never_loaded() -> None:
    """g06."""

    async def play(engine: Engine) -> None:
        first = asyncio.create_task(serve(engine, BIG))
        await asyncio.sleep(1)
        second = asyncio.create_task(serve(engine, SMALL))
        await asyncio.sleep(1)
        second.cancel()
        await first
        await asyncio.sleep(5)
        assert names(engine) == ["big"]

    with_engine(play)


def test_queue_is_first_in_first_out_without_coalescing() -> None:
    """g01: alternating requests for two models that do not fit together cause one load each."""
    starts: list[str] = []

    async def play(engine: Engine) -> None:
        await asyncio.gather(*(serve(engine, (BIG, OTHER)[turn % 2]) for turn in range(6)))

    with_engine(play, on_event=lambda what, name, _detail: starts.append(name) if what == "starting" else None)
    assert starts == ["big", "other"] * 3


def test_requests_for_a_loaded_model_jump_the_queue() -> None:
    """g09: they are served during the load of another model."""

    async def play(engine: Engine) -> None:
        await serve(engine, SMALL)
        loading = asyncio.create_task(serve(engine, OTHER))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        assert await serve(engine, SMALL) - began < 0.2
        assert not loading.done()
        await loading

    with_engine(play)


def test_full_queue_answers_busy() -> None:
    """g03: one is handled, MAX_QUEUE more wait; the text has two spaces. A loaded model is still served (g13)."""

    async def play(engine: Engine) -> None:
        await serve(engine, SMALL)
        waiting = [asyncio.create_task(serve(engine, one)) for one in (model("mid", 8000), OTHER)]
        await asyncio.sleep(0.1)
        with pytest.raises(EngineBusy, match="server busy, please try again.  maximum pending requests exceeded"):
            await engine.acquire(BIG, LoadOptions(num_ctx=2048))
        await serve(engine, SMALL)
        await asyncio.gather(*waiting)

    with_engine(play, settings=ServerSettings(max_queue=1))


def test_keep_alive_of_a_request_saves_a_marked_runner() -> None:
    """b20: the new model waits until that keep_alive has expired; a request without one does not save it (d25)."""

    async def play(engine: Engine) -> None:
        busy = asyncio.create_task(serve(engine, BIG, 8))
        await asyncio.sleep(6)
        newcomer = asyncio.create_task(serve(engine, OTHER))
        await asyncio.sleep(0.5)
        await serve(engine, BIG, 0.1, keep_alive_s=6.0)
        done = await busy
        assert await newcomer > done + 6

    with_engine(play)


def test_runner_expires_after_its_keep_alive() -> None:
    """Counted from the last request's end; inf = indefinitely, 0 unloads at the end."""

    async def play(engine: Engine) -> None:
        await serve(engine, SMALL, keep_alive_s=30.0)
        await asyncio.sleep(29)
        assert names(engine) == ["small"]
        await asyncio.sleep(2)
        assert names(engine) == []
        await serve(engine, SMALL, keep_alive_s=math.inf)
        await asyncio.sleep(10000)
        assert engine.ps()[0].expires_at_s == math.inf
        await serve(engine, SMALL, keep_alive_s=0.0)
        await asyncio.sleep(1)
        assert names(engine) == []

    with_engine(play)


def test_unload_of_a_busy_model_waits_for_its_request() -> None:
    """d15; unloading a model that is not loaded has no effect (d17)."""

    async def play(engine: Engine) -> None:
        engine.expire(OTHER)
        busy = asyncio.create_task(serve(engine, SMALL, 5))
        await asyncio.sleep(3)
        engine.expire(SMALL)
        await asyncio.sleep(1)
        assert names(engine) == ["small"]
        await busy
        await asyncio.sleep(0.1)
        assert names(engine) == []

    with_engine(play)


def test_late_memory_lets_the_next_model_spill() -> None:
    """d18: the wait for memory is broken: if the driver lags by a second, a model that fits spills."""

    async def play(engine: Engine) -> None:
        await serve(engine, BIG)
        await serve(engine, OTHER)
        (row,) = engine.ps()
        assert row.size_vram_bytes < row.size_bytes

    with_engine(play, free_lag_s=1.0)


def test_load_started_at_once_after_an_unload_stalls_everything_for_five_seconds() -> None:
    """d22: the new load takes the freed memory, so the wait never sees it; unloads are blocked during that time."""

    async def play(engine: Engine) -> None:
        await serve(engine, OTHER)
        engine.expire(OTHER)
        await asyncio.sleep(0.01)
        await serve(engine, SMALL)
        engine.expire(SMALL)
        await asyncio.sleep(2)
        assert names(engine) == ["small"]
        await asyncio.sleep(3)
        assert names(engine) == []

    with_engine(play)


def test_crash_in_mid_answer_leaves_the_dead_listed() -> None:
    """h04, h07: memory is free, ps still lists the model; the next request reloads it."""

    async def play(engine: Engine) -> None:
        async with await engine.acquire(SMALL, FIXED) as lease:
            lease.crash()
            with pytest.raises(RunnerDied, match="GGML_ASSERT"):
                lease.check()
        assert names(engine) == ["small"]
        assert engine.gpus()[0].free_bytes == 24564 * MIB
        await serve(engine, SMALL)
        assert engine.gpus()[0].free_bytes < 21000 * MIB
        engine.kill_runner(SMALL)
        async with await engine.acquire(SMALL, FIXED) as lease:
            engine.kill_runner(SMALL)
            with pytest.raises(RunnerDied, match="unexpected EOF"):
                lease.check()

    with_engine(play)


def test_out_of_memory_in_mid_answer_expires_everyone() -> None:
    """h06: also runners that had memory enough."""

    async def play(engine: Engine) -> None:
        await serve(engine, SMALL)
        async with await engine.acquire(model("tiny", 1000), FIXED) as lease:
            assert len(names(engine)) == 2
            lease.crash(out_of_memory=True)
            with pytest.raises(RunnerDied, match="CUDA error: out of memory"):
                lease.check()
        await asyncio.sleep(6)
        assert names(engine) == []

    with_engine(play)


def test_failed_loads_have_the_texts_of_ollama() -> None:
    """h01, h02, h10: corrupt file, out of memory even after the retry with less context, no activity."""

    async def play(engine: Engine) -> None:
        for mode, text in (
            ("corrupt", "model is corrupted or incomplete"),
            ("oom", "exit status 1: cudaMalloc failed: out of memory"),
            ("hang", "timed out waiting for llama-server to start - "),
        ):
            engine.cards.change(fail_load={"small": mode})
            with pytest.raises(LoadError, match=text):
                await engine.acquire(SMALL, LoadOptions())
        engine.cards.change(fail_load={})
        await serve(engine, SMALL)

    with_engine(play)


def test_automatic_context_is_lowered_once_after_running_out_of_memory() -> None:
    """c04: memory is taken during the load; the request is served with a context of 4096."""

    async def play(engine: Engine) -> None:
        task = asyncio.create_task(serve(engine, SMALL, options=LoadOptions()))
        await asyncio.sleep(0.5)
        engine.cards.set_foreign(0, engine.gpus()[0].free_bytes - 400 * MIB)
        await asyncio.sleep(0.8)
        await task
        assert engine.ps()[0].context_length == 4096

    with_engine(play)


def test_a_runner_has_num_parallel_slots() -> None:
    """f01: more requests wait inside the runner."""

    async def play(engine: Engine) -> None:
        await serve(engine, SMALL)
        began = asyncio.get_running_loop().time()
        ends = await asyncio.gather(*(serve(engine, SMALL, 1.0) for _ in range(4)))
        assert [round(end - began) for end in sorted(ends)] == [1, 1, 2, 2]

    with_engine(play, settings=ServerSettings(num_parallel=2))


def test_device_query_holds_up_ps_on_a_machine_with_a_free_card() -> None:
    """e17: an unload queries the devices while it holds the lock."""

    async def play(engine: Engine) -> None:
        await serve(engine, SMALL)
        engine.expire(SMALL)
        await asyncio.sleep(0.001)
        began = asyncio.get_running_loop().time()
        await engine.read_ps()
        assert asyncio.get_running_loop().time() - began > 1

    with_engine(play, cards=2, discovery_s=1.0)


def test_ps_lists_the_latest_expiry_first() -> None:
    """An infinite keep_alive comes first."""

    async def play(engine: Engine) -> None:
        for name, keep_alive_s in (("a", 60.0), ("b", math.inf), ("c", 600.0)):
            await serve(engine, model(name, 1000), keep_alive_s=keep_alive_s)
        assert [row.model.name for row in engine.ps()] == ["b", "c", "a"]

    with_engine(play)
