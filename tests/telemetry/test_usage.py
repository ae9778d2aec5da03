"""What requests have used reaches the store once, whatever happens on the way."""

from __future__ import annotations

import asyncio

from ollama_simulator.clock import run_virtual
from router.core.teams.usage import Figures, Ledger, UsageBatch, UsageKey
from router.core.units import MIB
from router.telemetry import Decided, Finished, Switched, UsageHook, UsageWriter
from router.telemetry.usage import BATCH

HOUR = 1_800_000_000
ENDED = Finished(
    "r1", "coding", "/api/chat", 200, "huge", "big", "completed", queue_s=0.25, tokens_in=12, tokens_out=41,
    operation="chat", key_id="ci", card_s=1.5, load_s=9.0, vram_bytes=100 * MIB,
)  # fmt: skip
KEY = UsageKey(HOUR, "coding", "ci", "big", "local", "chat")


class Sink:
    """A store that fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches: list[UsageBatch] = []
        self.caught_up = 0

    async def add(self, batch: UsageBatch) -> bool:
        await asyncio.sleep(0)
        self.batches.append(batch)
        self.failures -= 1
        return self.failures < 0

    async def keep(self, batch: UsageBatch) -> bool:
        return await self.add(batch)

    async def catch_up(self) -> bool:
        self.caught_up += 1
        return True


def hook_of(ledger: Ledger) -> UsageHook:
    return UsageHook(ledger, is_known_model=lambda name: name == "big", unix_now=lambda: HOUR + 5.0)


def test_a_request_is_one_more_of_what_it_used() -> None:
    """In whole milliseconds; its VRAM counts for its share of the time only. Its loads count with their switches."""
    ledger = Ledger(9)
    hook_of(ledger).on_requests([Decided("r1", "coding", "huge", "big", "", "exact")], [ENDED])
    figures = Figures(requests=1, tokens_in=12, tokens_out=41, card_ms=1500, queue_ms=250, vram_mib_s=150)
    assert ledger.take(9) == ((KEY, figures),)


def test_errors_are_counted_and_unknown_figures_are_none() -> None:
    """A client that left is an error, too."""
    ledger = Ledger(9)
    hook = hook_of(ledger)
    for status, outcome in ((503, "shed"), (499, "client_gone"), (200, "upstream_error")):
        hook.on(Finished("", "coding", "/api/chat", status, "big", "big", outcome, operation="chat", key_id="ci"))
    assert ledger.take(9) == ((KEY, Figures(requests=3, errors=3)),)


def test_a_switch_is_charged_to_the_request_that_caused_it_also_if_it_failed() -> None:
    """One without a request is charged to nobody."""
    ledger = Ledger(9)
    hook = hook_of(ledger)
    for phase, took_s in (("started", None), ("finished", 4.5), ("failed", 1.0)):
        hook.on(Switched(phase, "big", (), took_s, backend="local", team="coding", key_id="ci", operation="chat"))
    hook.on(Switched("finished", "big", (), 7.0, backend="local"))
    assert ledger.take(9) == ((KEY, Figures(load_ms=5500)),)


def test_names_that_clients_invent_make_one_row() -> None:
    ledger = Ledger(99)
    hook = hook_of(ledger)
    for number in range(1000):
        hook.on(Finished("", "coding", "/api/chat", 404, f"m{number}", f"m{number}", "completed", operation="chat"))
    assert [(key.model, figures.requests) for key, figures in ledger.take(9)] == [("other", 1000)]


def test_a_store_that_keeps_batches_back_is_asked_to_catch_up_also_when_nobody_uses_anything() -> None:
    """Else what waits would wait for the next request."""

    async def story() -> None:
        sink = Sink()
        assert await UsageWriter(Ledger(9), sink, 5.0).write()
        assert (sink.batches, sink.caught_up) == ([], 1)

    run_virtual(story())


def test_a_batch_that_failed_is_written_again_under_its_number_and_later_usage_in_the_next_one() -> None:
    async def story() -> None:
        sink, ledger = Sink(failures=2), Ledger(9)
        hook, writer = hook_of(ledger), UsageWriter(ledger, sink, 5.0)
        hook.on(ENDED)
        assert not await writer.write()
        hook.on(ENDED)
        assert not await writer.write()
        assert await writer.write()
        assert await writer.write()  # there is nothing left
        assert [(batch.seq, batch.rows[0][1].requests) for batch in sink.batches] == [(1, 1)] * 3 + [(2, 1)]
        assert len({batch.writer for batch in sink.batches}) == 1

    run_virtual(story())


def test_many_rows_are_several_batches_in_the_order_of_their_keys() -> None:
    async def story() -> None:
        sink, ledger = Sink(), Ledger(9999)
        for number in range(BATCH + 1, 0, -1):
            ledger.add(KEY._replace(team=f"{number:05d}"), Figures(requests=1))
        await UsageWriter(ledger, sink, 5.0).write()
        assert [len(batch.rows) for batch in sink.batches] == [BATCH, 1]
        assert [key for batch in sink.batches for key, _ in batch.rows] == sorted(
            key for batch in sink.batches for key, _ in batch.rows
        )

    run_virtual(story())


def test_usage_is_written_every_few_seconds_and_two_writes_do_not_overlap() -> None:
    async def story() -> None:
        sink, ledger = Sink(), Ledger(9)
        hook, writer = hook_of(ledger), UsageWriter(ledger, sink, 5.0)
        watching = asyncio.create_task(writer.watch())
        hook.on(ENDED)
        await asyncio.sleep(4.9)
        assert sink.batches == []
        await asyncio.sleep(0.2)
        assert [batch.seq for batch in sink.batches] == [1]
        hook.on(ENDED)
        assert await asyncio.gather(*(writer.write() for _ in range(3))) == [True] * 3
        assert [batch.seq for batch in sink.batches] == [1, 2]
        watching.cancel()

    run_virtual(story())
