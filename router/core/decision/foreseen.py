"""Whether Ollama would load a model exactly where a plan puts it, whatever it has booked for its residents. Pure.

Ollama's own check is replayed (`ollama/scheduler.py`, `foresee_load`). A plan is sound only if every outcome that its
rules allow, under every booking that is possible, evicts nobody and takes the plan's cards: an outcome that is only
likely spills now and then.

What is booked for a resident on one card is known: `/api/ps` reports it. Of one that is split only the sum is known. It
lacks the buffers that Ollama loses; how they are divided over the cards is not known, nor on which card the projector
is. So each part is bounded from both sides. More booked on a card means less believed free there, so the extremes
decide: a split needs enough free memory where most is booked, and no card that would do alone where least is booked.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.core.decision.snapshot import Resident
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import foresee_load

SPLIT_SLACK = 1.1
"""Factor on what a split runner holds per card, which is measured while others allocate and free."""

OTHER_CARDS = "Ollama would choose other cards"


def obstacle(
    facts: ModelFacts,
    options: LoadOptions,
    cards: Sequence[int],
    gpus: Sequence[Gpu],
    stay: Sequence[Resident],
    settings: ServerSettings,
) -> str:
    """Return why Ollama might not load `facts` on exactly `cards` beside `stay`; "" if it certainly does."""
    wanted = set(cards)
    for residents in _possible_bookings(options, cards, gpus, stay):
        foresight = foresee_load(facts, options, gpus, residents, settings)
        if foresight.evicts:
            return "Ollama would evict another model"
        if any(set(outcome.cards) != wanted for outcome in foresight.outcomes):
            return OTHER_CARDS
    return ""


def _possible_bookings(
    options: LoadOptions, cards: Sequence[int], gpus: Sequence[Gpu], stay: Sequence[Resident]
) -> list[list[OllamaResident]]:
    """Return the bookings that decide whether a load on `cards` is certain.

    All that is possible lies between them. On one card most is booked there and least on the others, which must not
    seem roomier; a pinned load does not depend on the others.
    """
    residents = [booked(one, gpus) for one in stay]
    if all(len(one.cards) == 1 for one in residents):
        return [residents]
    if len(cards) < len(gpus):
        here = frozenset(cards) if options.main_gpu is None else frozenset(gpu.index for gpu in gpus)
        return [[booked(one, gpus, most_on=here) for one in stay]]
    return [residents, [booked(one, gpus, most_on=frozenset()) for one in stay]]


def booked(resident: Resident, gpus: Sequence[Gpu], *, most_on: frozenset[int] | None = None) -> OllamaResident:
    """Return what Ollama has booked for `resident`, as far as it can be observed (see `OllamaResident`).

    Of a split one that is the most which is possible on the cards `most_on` (None = on all), and the least on others.
    """
    pinned = resident.options.main_gpu if resident.options else None
    context = {gpu.index: gpu.context_bytes for gpu in gpus}
    # What it holds of a card that Ollama was found not to see is another program's.
    cards = tuple(sorted(index for index, size in resident.held_bytes.items() if size and index in context)) or (0,)
    if pinned is not None and pinned in context:
        cards = (pinned,)
    free = [resident.free_at_load_bytes.get(card) for card in cards]
    return OllamaResident(
        weights=resident.weights,
        cards=cards,
        buffers_bytes=_buffers(resident, cards, context, most_on),
        free_at_load_bytes=tuple(
            None if left is None else left - context.get(card, 0) for card, left in zip(cards, free, strict=True)
        ),
        keep_alive_s=resident.keep_alive_s,
        is_idle=not resident.in_flight,
        held_bytes=tuple(resident.held_bytes.get(gpu.index, 0) for gpu in gpus),
    )


def _buffers(
    resident: Resident, cards: Sequence[int], context: dict[int, int], most_on: frozenset[int] | None
) -> tuple[int, ...]:
    """Return the bytes booked per card: all of them on a single one, else bounds.

    A part is at most what the runner holds there, and at least that less everything which Ollama has lost: buffers of
    sliding windows, projectors.
    """
    if len(cards) == 1:
        return (resident.size_vram_bytes,)
    # The probe's figures include the driver contexts, what Ollama has booked does not.
    parts = [max(0, resident.held_bytes.get(card, 0) - context.get(card, 0)) for card in cards]
    held = sum(parts) or 1
    whole = max(held, resident.size_vram_bytes)
    lost = whole - resident.size_vram_bytes
    found = []
    for card, part in zip(cards, parts, strict=True):
        full = part * whole // held
        most, least = int(full * SPLIT_SLACK), int(max(0, full - lost) / SPLIT_SLACK)
        found.append(most if most_on is None or card in most_on else least)
    return tuple(found)
