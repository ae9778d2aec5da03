"""What Ollama would do with a load: prediction, free memory as it believes, placement, batch, pre-flight check, victim.

The rules are in docs/ollama.md, "One request at a time" and "Prediction and placement". They are used twice: the router
calls `foresee_load` before it sends a load, and the simulator takes the same steps one by one. Where Ollama depends on
the order of a Go map, the functions here return every possible outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from router.core.ollama.bookkeeping import Free, OllamaResident, believed_free_outcomes, live_free, predicted_bytes
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import (
    EffectiveOptions,
    ServerSettings,
    automatic_num_ctx,
    can_complete,
    clamped,
    has_flash_attention,
    merged,
)
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import GIB

SURCHARGES = ((2048, 2 * GIB), (1024, 768 << 20))
"""(least num_batch, bytes that Ollama adds to its prediction)."""


class Preflight(NamedTuple):
    """Ollama's check before a load: the cards, the batch, and whether a resident must be evicted first.

    `is_single`: one card was chosen out of several, or by `main_gpu` (no split).
    """

    evicts: bool
    cards: tuple[int, ...]
    is_single: bool
    num_batch: int
    predicted_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """One possible outcome of a load: the weights evicted, in order, then its cards and its batch."""

    evicts: tuple[str, ...]
    cards: tuple[int, ...]
    num_batch: int


@dataclass(frozen=True, slots=True)
class Foresight:
    """Every possible outcome of a load. `num_ctx` is per slot, clamped."""

    num_ctx: int
    num_parallel: int
    outcomes: tuple[LoadOutcome, ...]

    @property
    def evicts(self) -> tuple[str, ...]:
        """The weights of every resident that may be evicted, in the order of eviction; () = certainly none."""
        return tuple(dict.fromkeys(weights for outcome in self.outcomes for weights in outcome.evicts))

    @property
    def cards(self) -> tuple[int, ...]:
        """The cards of the load; () if they are not certain."""
        places = {outcome.cards for outcome in self.outcomes}
        return next(iter(places)) if len(places) == 1 else ()

    @property
    def num_batch(self) -> int:
        """The largest batch that Ollama may choose, which takes the most memory."""
        return max(outcome.num_batch for outcome in self.outcomes)


def surcharge_bytes(num_batch: int) -> int:
    """Return the bytes that Ollama adds to its prediction for a large batch."""
    return next((size for least, size in SURCHARGES if num_batch >= least), 0)


def automatic_batch(cells: int, predicted: int, available: int, free: Sequence[int], *, flash_attention: bool) -> int:
    """Return Ollama's num_batch if none was sent, for num_ctx × slots = `cells`.

    `free` are the bytes free on each chosen card (CUDA).
    """
    if not flash_attention and free:
        return 256 if cells > 4096 and any(0 < left <= 8 * GIB for left in free) else 512
    wanted = 2048 if cells > 32768 else 1024 if cells > 4096 else 512
    return next(batch for batch in (2048, 1024, 512) if batch <= wanted and _batch_fits(batch, predicted, available))


def _batch_fits(batch: int, predicted: int, available: int) -> bool:
    if batch <= 512 or not predicted or not available:
        return True
    threshold, headroom = available * 80 // 100, available * (60 if batch >= 2048 else 75) // 100
    return predicted <= min(threshold, headroom) and surcharge_bytes(batch) <= threshold - predicted


def placement(
    free: Free, predicted: int, launch: EffectiveOptions, settings: ServerSettings
) -> tuple[tuple[int, ...], bool]:
    """Return the cards of a load, and whether one was chosen: `main_gpu`, else the emptiest with room, else all."""
    everywhere = tuple(range(len(free)))
    if launch.num_gpu == 0:
        return (), False
    if launch.main_gpu is not None and 0 <= launch.main_gpu < len(free):
        return (launch.main_gpu,), True
    if len(free) <= 1 or launch.main_gpu is not None or settings.sched_spread:
        return everywhere, False
    most = max(free)
    return ((free.index(most),), True) if predicted <= most * 80 // 100 else (everywhere, False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A load that Ollama is asked for: what its checks take from model and options. Free memory has no part in it.

    `cells` is num_ctx × slots. `wanted_bytes` is the prediction with the surcharge of the batch; None if Ollama chooses
    the batch. `is_partial`: the options name fewer layers than the model has, so nothing is evicted.
    """

    launch: EffectiveOptions
    settings: ServerSettings
    cells: int
    predicted_bytes: int
    wanted_bytes: int | None
    is_partial: bool

    @staticmethod
    def of(
        facts: ModelFacts, launch: EffectiveOptions, settings: ServerSettings, *, blob_bytes: int | None = None
    ) -> Asked:
        """Return what is asked for; `blob_bytes` is as in `predicted_bytes`."""
        cells = clamped(launch.num_ctx, facts) * launch.num_parallel
        is_partial = 0 < launch.num_gpu <= int(facts.value("block_count", 0))
        predicted = predicted_bytes(facts, cells, blob_bytes)
        wanted = predicted + (surcharge_bytes(launch.num_batch) if can_complete(facts) else 0)
        is_automatic = launch.num_batch_auto and can_complete(facts)
        return Asked(launch, settings, cells, predicted, None if is_automatic else wanted, is_partial)

    def preflight(self, gpus: Sequence[Gpu], free: Free, *, has_residents: bool) -> Preflight:
        """Return Ollama's check, given the bytes that it believes to be `free` per card.

        Without residents nothing is evicted.
        """
        cards, is_single = placement(free, self.predicted_bytes, self.launch, self.settings)
        chosen = [free[card] for card in cards]
        available = sum(chosen)
        batch, wanted = self.launch.num_batch, self.wanted_bytes
        if wanted is None:
            batch = self._batch(gpus, cards, chosen, available)
            wanted = self.predicted_bytes + surcharge_bytes(batch)
        evicts = has_residents and bool(cards) and not self.is_partial and wanted > available * 80 // 100
        return Preflight(evicts, cards, is_single, batch, self.predicted_bytes, available)

    def _batch(self, gpus: Sequence[Gpu], cards: Sequence[int], chosen: Sequence[int], available: int) -> int:
        has_flash = has_flash_attention([gpus[card] for card in cards], self.settings)
        return automatic_batch(self.cells, self.predicted_bytes, available, chosen, flash_attention=has_flash)


def preflight(
    facts: ModelFacts,
    launch: EffectiveOptions,
    gpus: Sequence[Gpu],
    free: Free,
    settings: ServerSettings,
    *,
    has_residents: bool,
    blob_bytes: int | None = None,
) -> Preflight:
    """Return Ollama's check before a load of `facts`: `Asked.preflight` for a single check."""
    return Asked.of(facts, launch, settings, blob_bytes=blob_bytes).preflight(gpus, free, has_residents=has_residents)


def least_free_bytes(facts: ModelFacts, launch: EffectiveOptions) -> int:
    """Return the bytes that Ollama must believe free on the chosen cards beside a resident, or it evicts.

    For a batch that it chooses itself this is the least: a smaller batch adds less.
    """
    if launch.num_gpu == 0 or 0 < launch.num_gpu <= int(facts.value("block_count", 0)):
        return 0
    batch = 0 if launch.num_batch_auto or not can_complete(facts) else launch.num_batch
    wanted = predicted_bytes(facts, clamped(launch.num_ctx, facts) * launch.num_parallel) + surcharge_bytes(batch)
    return -(-wanted * 100 // 80)


def victim(residents: Sequence[OllamaResident]) -> OllamaResident:
    """Return the resident that Ollama unloads: idle before busy, then the shortest keep-alive, then the blob's name.

    `residents` must not be empty.
    """
    return min(residents, key=lambda resident: (not resident.is_idle, resident.keep_alive_s, resident.weights))


def max_loaded(gpu_count: int, settings: ServerSettings) -> int:
    """Return how many models may be resident."""
    return settings.max_loaded_models or 3 * max(gpu_count, 1)


def foresee_load(
    facts: ModelFacts,
    options: LoadOptions,
    gpus: Sequence[Gpu],
    residents: Sequence[OllamaResident],
    settings: ServerSettings,
    *,
    blob_bytes: int | None = None,
) -> Foresight:
    """Return what Ollama would do if it were asked now to load `facts` with `options` beside `residents`.

    `gpus` is every card of that server, in its order, with free memory as the probe reads it now. A resident with the
    weights of `facts` counts as reloaded: it is unloaded first. Sound, not tight: every outcome that can happen is
    included.
    """
    launch = merged(facts, options, settings, automatic_num_ctx(gpus, settings))
    asked = Asked.of(facts, launch, settings, blob_bytes=blob_bytes)
    found: dict[LoadOutcome, None] = {}
    own = tuple(resident for resident in residents if resident.weights == facts.weights)
    others = tuple(resident for resident in residents if resident.weights != facts.weights)
    gone = tuple(resident.weights for resident in own)
    waiting = [(gone, others, _given_back(gpus, own))]
    while waiting:
        gone, left, cards = waiting.pop()
        must_go = len(left) >= max_loaded(len(gpus), settings)
        frees = [live_free(cards)] if not left or must_go else sorted(believed_free_outcomes(cards, left))
        checks = [asked.preflight(cards, free, has_residents=bool(left)) for free in frees]
        if must_go or any(check.evicts for check in checks):
            out = victim(left)
            rest = tuple(resident for resident in left if resident is not out)
            waiting.append(((*gone, out.weights), rest, _given_back(cards, (out,))))
        if not must_go:
            found.update(
                {LoadOutcome(gone, check.cards, check.num_batch): None for check in checks if not check.evicts}
            )
    return Foresight(clamped(launch.num_ctx, facts), launch.num_parallel, tuple(found))


def _given_back(gpus: Sequence[Gpu], gone: Sequence[OllamaResident]) -> tuple[Gpu, ...]:
    """Return the cards after the driver has freed what `gone` held."""
    freed = {gpu.index: sum(dict(enumerate(r.held_bytes)).get(gpu.index, 0) for r in gone) for gpu in gpus}
    return tuple(replace(gpu, free_bytes=min(gpu.total_bytes, gpu.free_bytes + freed[gpu.index])) for gpu in gpus)


__all__ = [
    "EffectiveOptions",
    "Foresight",
    "LoadOutcome",
    "OllamaResident",
    "Preflight",
    "ServerSettings",
    "foresee_load",
    "victim",
]
