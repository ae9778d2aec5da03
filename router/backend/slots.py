"""Slots: how many requests go into one runner at a time.

Ollama lets `num_parallel` requests into a runner and makes the others wait, in an order that nobody can change any
more. So the router sends as many, and `queue.ahead` more, so that the runner finds its next request already there when
one ends. All others wait in the line. While answers are short (embeddings, say) more are ahead, as many as take a
moment together.

A number that is too small would throttle, so it corrects itself: a runner whose answers show more requests at work
than it has slots gets another one. A request is at work if its answer has begun, or if one that was sent `SURELY_S`
later has been answered, because Ollama lets requests in by the order in which they come.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from router.core.ollama.model import ModelFacts
from router.core.ollama.options import ServerSettings, parallel_slots

SURELY_S = 1.0
"""Within this time a request has been read and rendered by Ollama, and waits for a slot if it has none."""

CONFIRM_S = 0.05
"""The others have to be at work for this much longer: the end of an answer may be read after the begin of the next."""


AHEAD_S = 0.25
"""Requests ahead may be more than `queue.ahead` if all of them together take no longer than this."""

SHORT_ROW, MOST_AHEAD = 8, 64
"""For so many short answers in a row one more may be ahead, up to the second number: the next may be long."""

SHORT_S, LONG_ROW = AHEAD_S / MOST_AHEAD, SHORT_ROW * MOST_AHEAD
"""After so many answers in a row that took no longer, the most may be ahead."""


_NOBODY: Sequence[Sent] = ()


class Sent(Protocol):
    """The answer to a request that was sent; `is_complete` once all of it has arrived."""

    @property
    def is_complete(self) -> bool: ...


class RunnerSlots:
    """The slots of one runner: `count` of them, 0 until the first request asks.

    `ahead` is how many requests may be ahead while answers are short, 0 while they are not.
    """

    __slots__ = ("_begun", "_ended_s", "_longest_s", "_sent", "_short", "ahead", "count", "gap_s")

    def __init__(self) -> None:
        self.count = self.ahead = 0
        self._sent: dict[Sent, float] = {}  # those without an answer, in order: when each was sent
        self._begun: dict[Sent, None] = {}  # those whose answers have begun: few, while many may be ahead
        self.gap_s = 0.0
        self._short = 0  # answers in a row that took little
        self._longest_s = 0.0  # of those, about
        self._ended_s = -math.inf

    def renew(self) -> None:
        """Forget the count: this is another runner."""
        self.count = 0

    def set(self, count: int) -> None:
        """Set the number of slots."""
        self.count = count

    def took(self, seconds: float) -> None:
        """Note what a request has taken of the runner."""
        self._longest_s = longest_s = max(seconds, 0.95 * self._longest_s)
        self._short = short = self._short + 1 if longest_s < AHEAD_S / 2 else 0
        if longest_s <= SHORT_S and short >= LONG_ROW:  # most often: as many as may be
            self.ahead = MOST_AHEAD
        elif short < 2 * SHORT_ROW:
            self.ahead = 0
        else:
            self.ahead = min(MOST_AHEAD, short // SHORT_ROW, int(AHEAD_S / max(1e-6, longest_s)))

    def ended(self, now_s: float) -> None:
        """Note that a request has ended while others waited for a slot: `gap_s` is the mean time between two."""
        gap_s, self._ended_s = now_s - self._ended_s, now_s
        if math.isfinite(gap_s):
            self.gap_s = 0.8 * self.gap_s + 0.2 * gap_s if self.gap_s else gap_s

    def pause(self) -> None:
        """Note that nobody waits for a slot: the time until the next end says nothing."""
        self._ended_s = -math.inf

    def send(self, sent: Sent, now_s: float) -> None:
        """Note a request that needs a slot, and was sent."""
        self._sent[sent] = now_s

    def begin(self, sent: Sent) -> Sequence[Sent]:
        """Note that its answer has begun; return which others are at work, if they are as many as there are slots."""
        sent_s = self._sent.pop(sent, None)
        if sent_s is None:
            return _NOBODY
        others = [one for one in self._begun if not one.is_complete] if self._begun else []
        self._begun[sent] = None
        for one, other_s in self._sent.items():
            if other_s > sent_s - SURELY_S:
                break
            others.append(one)
        return others if len(others) >= self.count else _NOBODY

    def end(self, sent: Sent) -> None:
        """Note that a request has ended, however."""
        self._sent.pop(sent, None)
        self._begun.pop(sent, None)

    @property
    def under_way(self) -> int:
        """The number of requests that were sent and have not ended."""
        return len(self._sent) + len(self._begun)

    def is_at_work(self, sent: Sent) -> bool:
        """Return True if a request has not ended and its answer is not complete."""
        return (sent in self._begun or sent in self._sent) and not sent.is_complete

    @property
    def places(self) -> int:
        """The number of requests that may be at work; those whose answers are complete hold none."""
        return self.count + self.arrived() if self._begun else self.count

    def arrived(self) -> int:
        """Return how many answers are complete: their clients still read, but the slot is free."""
        return sum([sent.is_complete for sent in self._begun]) if self._begun else 0


class Runner(Protocol):
    """What holds the slots: a resident."""

    @property
    def weights(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def slots(self) -> RunnerSlots: ...


class Slots:
    """The slots of all runners of one Ollama; `ahead` as `queue.ahead`.

    `settings` returns those of the server, by configuration and by what loads have shown; `facts_of` returns a model by
    its weights.
    """

    def __init__(
        self,
        ahead: int,
        settings: Callable[[], ServerSettings],
        facts_of: Callable[[str], ModelFacts | None],
        on_more: Callable[[Runner], object],
    ) -> None:
        self._ahead = ahead
        self._settings = settings
        self._facts_of = facts_of
        self._on_more = on_more
        self._proven = 0  # slots that a runner of this server has shown
        self._loop = asyncio.get_running_loop()

    def is_free(self, runner: Runner, reserved: int = 0) -> bool:
        """Return True if one more request may be sent; `reserved` were let in, and are about to be."""
        slots, least = runner.slots, self._ahead
        # Common case first: it has room whatever has arrived.
        has_room = slots.count + (slots.ahead if least else 0) > runner.in_flight + reserved
        return has_room or self.free(runner, reserved) > 0

    def free(self, runner: Runner, reserved: int = 0) -> int:
        """Return how many more requests may be sent, 0 or less if none."""
        return self.room(runner) - runner.in_flight - reserved + runner.slots.arrived()

    def room(self, runner: Runner) -> int:
        """Return how many requests the runner takes, those ahead included."""
        slots, least = runner.slots, self._ahead
        return (slots.count or self._counted(runner)) + (max(least, slots.ahead) if least else 0)

    def forget(self) -> None:
        """Forget what runners have shown: the server was started anew."""
        self._proven = 0

    def _counted(self, runner: Runner) -> int:
        facts, settings = self._facts_of(runner.weights), self._settings()
        count = parallel_slots(facts, settings) if facts is not None else settings.num_parallel
        if facts is None or parallel_slots(facts, ServerSettings(num_parallel=2)) > 1:
            count = max(count, self._proven)
        runner.slots.set(count)
        return count

    # --- calibration -------------------------------------------------------------------------------------------

    def answered(self, runner: Runner, sent: Sent) -> None:
        """Note that its answer has begun."""
        if others := runner.slots.begin(sent):
            self._loop.call_later(CONFIRM_S, self._confirm, runner, runner.order, others)

    def _confirm(self, runner: Runner, order: int, others: Sequence[Sent]) -> None:
        slots = runner.slots
        if runner.order != order or not all(map(slots.is_at_work, others)):
            return
        if len(others) >= slots.count:
            slots.set(len(others) + 1)
            self._proven = max(self._proven, slots.count)
            self._on_more(runner)
