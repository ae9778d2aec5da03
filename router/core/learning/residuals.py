"""What loads have taught: how far a model's need is from the formula, where it spilled, what the server hides.

Each verified load is an `Observation`. Its residual is what the load took beyond the formula: settings that the API
does not show (KV type, parallel slots), driver context, growth. Rules, all on the side of caution:

1. The same weights with the same options: the largest residual of the recent loads; their spread widens the safety.
2. The same weights with another context: the residual is partly constant, partly in proportion to the context. Each
   load gives an upper bound, the larger of the two; the least of these bounds counts.
   On other cards only what adds counts: their driver contexts differ, and over several the formula errs otherwise.
3. Other weights: what loads show of the server's setup (`drift.recognise`) counts for every model, and past loads are
   compared with the formula for that setup. A constant of the card (`trust.card_constants`), or one without a known
   reason, counts if two models agree on it, and only if it adds.
4. A load that spilled shows its need too: by how much the probe saw free memory drop, and what `/api/ps` reports in
   main memory. It counts for an hour, because something else may have been the cause, and only until a load that asked
   for no less was whole: that one shows the need itself.
5. Another version of Ollama resets trust: an old residual may only add, and the formula's own safety stays. So does a
   restart, until one load confirms.
6. What adds does not count for ever (`trust.is_due`): then the formula alone counts, and the load is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from router.core.learning.drift import Recognised, Unexplained, recognise, unexplained
from router.core.learning.estimate import Estimate, estimate
from router.core.learning.observation import Observation as Observation
from router.core.learning.rebased import Rebased
from router.core.learning.setup import setup_in
from router.core.learning.trust import NOISE_BYTES, OFTEN_S, card_constants, is_confirmed, is_due, shows
from router.core.memory.options import MemoryOptions
from router.core.ollama.options import ServerSettings
from router.core.units import MIB

_KEPT = 32  # observations per weights blob
BAN_S = 3600.0
_SAME_LEVEL_BYTES = 64 * MIB

AS_SHIPPED = ServerSettings()


class Ban(NamedTuple):
    """A load that is not tried again before `until_s` (Unix time): it spilled with no more than `free_bytes` free."""

    weights: str
    num_ctx: int
    free_bytes: int
    until_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Everything learned so far, a value: `of` makes a new one after each load."""

    by_weights: Mapping[str, tuple[Observation, ...]]
    version: str = ""
    earlier_version: str = ""
    server: Recognised | None = None
    is_auto: bool = True
    odd: Unexplained | None = None
    constants: Mapping[str, int] = field(default_factory=dict)
    newest: tuple[Observation, ...] = ()
    restarted_s: float = 0.0

    @staticmethod
    def of(
        observations: Iterable[Observation],
        restarted_s: float = 0.0,
        configured: ServerSettings = AS_SHIPPED,
        *,
        is_auto: bool = True,
    ) -> Learned:
        """Build the value from `observations`, in any order; `restarted_s` is the Unix time of Ollama's last start.

        Loads that show another setup than `configured` outweigh it; without `is_auto` that is only noted.
        """
        ordered = sorted(observations, key=lambda seen: seen.at_s)
        by_weights: dict[str, list[Observation]] = {}
        for seen in ordered:
            by_weights.setdefault(seen.weights, []).append(seen)
        version = ordered[-1].ollama_version if ordered else ""
        earlier = [seen.ollama_version for seen in ordered if seen.ollama_version != version]
        shown = [seen[-1] for seen in by_weights.values() if seen[-1].ollama_version == version]
        shown = sorted((seen for seen in shown if seen.is_conclusive), key=lambda seen: -seen.at_s)
        server = recognise(shown, configured, [seen for seen in ordered[::-1] if seen.ollama_version == version])
        if server is not None and server.is_less and restarted_s and not any(one.at_s >= restarted_s for one in shown):
            server = None  # as case 5: not yet confirmed
        applied = server.applied_to(configured) if server is not None and is_auto else configured
        setup, margin_bytes = setup_in(applied), applied.fit_target_bytes
        kept = Rebased({weights: seen[-_KEPT:] for weights, seen in by_weights.items()}, setup, margin_bytes)
        newest = tuple(one.under(setup, margin_bytes) for one in shown)
        return Learned(
            kept, version, earlier[-1] if earlier else "", server, is_auto, unexplained(newest),
            card_constants(newest), newest, restarted_s,
        )  # fmt: skip

    def applied_to(self, settings: ServerSettings, now_s: float | None = None) -> ServerSettings:
        """Return the configured settings with what loads show otherwise; `now_s` is Unix time.

        What takes more is tried again a day after the last load, as in case 6.
        """
        server = self.server
        if server is None or not self.is_auto:
            return settings
        is_old = now_s is not None and bool(self.newest) and now_s - self.newest[0].at_s >= OFTEN_S
        return settings if is_old and not server.is_less else server.applied_to(settings)

    def residual_bytes(
        self,
        weights: str,
        options: MemoryOptions,
        gpu_names: tuple[str, ...],
        version: str,
        *,
        now_s: float | None = None,
    ) -> Estimate:
        """Return the bytes to add to the formula for this load, the safety that then suffices, and the source (text).

        The safety is None if the footprint's own should stay. `now_s` is Unix time; without it spilled loads count
        indefinitely.
        """
        seen = self.by_weights.get(weights, ())
        if any(one.spilled or not one.is_conclusive for one in seen):
            seen = _usable(seen, now_s)
        if not seen:
            return self._of_others(gpu_names, version, now_s)
        found = estimate(seen, options, gpu_names, version)
        if found[0] < -NOISE_BYTES and not is_confirmed(seen, self.by_weights.values(), self.restarted_s):
            return 0, None, "learned before Ollama was restarted: not yet confirmed"
        support = [one for one in self.by_weights[weights] if shows(one, found[0])]
        if is_due(found[0], support or seen, now_s):
            return 0, None, "what earlier loads took beyond the formula is tried again"
        return found

    def _of_others(self, gpu_names: tuple[str, ...], version: str, now_s: float | None) -> Estimate:
        """Apply case 3 to a model that was never loaded, as far as is known."""
        if version != self.version or is_due(1, self.newest, now_s):
            return 0, None, ""
        odd = self.odd if self.odd is not None and self.odd.models >= 2 else None
        constant = sum(self.constants.get(name, 0) for name in gpu_names)
        if odd is not None and odd.constant_bytes > constant:
            return odd.constant_bytes, None, odd.note
        note = f"every load takes {constant // MIB} MiB more than computed on this card" if constant else ""
        return constant, None, note

    def shown_bytes(self, weights: str, options: MemoryOptions) -> int:
        """Return what `/api/ps` showed of the newest whole load with these options, in bytes; 0 if there was none."""
        seen = self.by_weights.get(weights, ())
        whole = (one.size_vram_bytes for one in reversed(seen) if not one.spilled and one.matches(options))
        return next(whole, 0)

    def banned(self, weights: str, options: MemoryOptions, free_bytes: int, now_s: float) -> bool:
        """Return whether such a load spilled within the last hour on this version of Ollama, and none succeeded since.

        Such a load asked for no more, with no less free. `free_bytes` is that of the scarcest card.
        """
        return bool(self.by_weights.get(weights)) and any(
            _asks_no_more(spill, options) and free_bytes <= spill.free_before_bytes + _SAME_LEVEL_BYTES
            for spill in self._standing(weights, now_s)
        )

    def bans(self, now_s: float) -> list[Ban]:
        """Return what `banned` refuses now; the longest first."""
        standing = (spill for weights in self.by_weights for spill in self._standing(weights, now_s))
        bans = [Ban(one.weights, one.num_ctx, one.free_before_bytes, one.at_s + BAN_S) for one in standing]
        return sorted(bans, key=lambda ban: -ban.until_s)

    def _standing(self, weights: str, now_s: float) -> Iterator[Observation]:
        """Yield the spills of the last hour, on this version of Ollama, that no later load has refuted."""
        seen = self.by_weights.get(weights, ())
        for at, spill in enumerate(seen):
            if self._counts(spill, now_s) and not any(_refutes(later, spill) for later in seen[at + 1 :]):
                yield spill

    def spilled_alone(self, weights: str, num_ctx: int | None, now_s: float) -> bool:
        """Return whether a load with at most `num_ctx` spilled lately.

        Free memory is not considered: in verify mode it is unknown.
        """
        seen = self.by_weights.get(weights, ())
        asked = MemoryOptions(num_ctx or 0)
        spills = (at for at, spill in enumerate(seen) if self._counts(spill, now_s) and spill.num_ctx <= asked.num_ctx)
        return any(not any(_refutes(later, seen[at]) for later in seen[at + 1 :]) for at in spills)

    def drift(self) -> tuple[str, ...]:
        """Return what has changed, as text for `explain`: a hidden setting, a new version."""
        notes = []
        if self.earlier_version:
            notes.append(
                f"Ollama changed from {self.earlier_version} to {self.version}: earlier measurements are not trusted"
            )
        if self.server is not None:
            notes.append(self.server_note())
        if self.odd is not None:
            notes.append(self.odd.note)
        return tuple(notes)

    def server_note(self) -> str:
        """Return what loads show of the server's setup beside the configuration, as a sentence; "" = nothing."""
        if self.server is None:
            return ""
        follows = "planned with that" if self.is_auto else "not planned with that, because server.auto is false"
        return f"{'; '.join(self.server.notes)}: {follows}. Set backends.NAME.server as the server is set up"

    def _counts(self, spill: Observation, now_s: float) -> bool:
        return spill.spilled and spill.ollama_version == self.version and 0 <= now_s - spill.at_s < BAN_S


def _usable(seen: tuple[Observation, ...], now_s: float | None) -> tuple[Observation, ...]:
    """Return the loads that were measured; of those that spilled, only recent ones that no later load outweighs."""
    return tuple(one for at, one in enumerate(seen) if one.is_conclusive and not _is_past(one, seen[at + 1 :], now_s))


def _is_past(spill: Observation, later: Iterable[Observation], now_s: float | None) -> bool:
    if not spill.spilled:
        return False
    is_old = now_s is not None and now_s - spill.at_s >= BAN_S
    return is_old or any(one.is_conclusive and _is_whole_and_no_less(one, spill) for one in later)


def _asks_no_more(spill: Observation, options: MemoryOptions) -> bool:
    return (
        spill.num_ctx <= options.num_ctx
        and spill.num_batch <= options.num_batch
        and spill.num_parallel <= options.num_parallel
        and spill.kv_type == options.kv_type
    )


def _refutes(later: Observation, spill: Observation) -> bool:
    """Return whether `later` asked for no less, did not spill, and had no more free or took no more than was free."""
    if not _is_whole_and_no_less(later, spill):
        return False
    had_no_more = later.free_before_bytes <= spill.free_before_bytes + _SAME_LEVEL_BYTES
    cards = max(1, len(spill.gpu_names))
    taken_bytes = later.measured_bytes + cards * spill.margin_bytes
    return had_no_more or (later.measured_bytes > 0 and taken_bytes <= cards * spill.free_before_bytes)


def _is_whole_and_no_less(later: Observation, spill: Observation) -> bool:
    asked = (later.num_ctx, later.num_batch, later.num_parallel)
    return not later.spilled and all(
        one >= other for one, other in zip(asked, (spill.num_ctx, spill.num_batch, spill.num_parallel), strict=True)
    )
