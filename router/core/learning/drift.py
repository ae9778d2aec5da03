"""What loads show of a server that its API does not: how it is set up, the margin that it keeps, a constant.

Each load is compared with what the formula says for other setups (`Observation.alternatives`). The setup that explains
most models wins; newer loads count more, so that a change is noticed after two loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from router.core.learning.observation import Observation
from router.core.learning.setup import Setup, key_of, setup_in, setup_of, with_setup
from router.core.ollama.options import ServerSettings
from router.core.units import GIB, MIB

_NOTABLE_BYTES = 256 * MIB
_NEAR_BYTES, _NEAR_SHARE = 128 * MIB, 0.02
"""A setup explains a load if the formula is off by no more than this, or this share of it."""

_SPILLED_BYTES = 512 * MIB
"""The same for a load that spilled: it has buffers on both sides."""

_FADING = 0.7
"""Weight of a load relative to the next newer one."""

_TRUST = (1.0, 0.98, 0.75, 0.5)
"""Weight of what a setup explains, by how many settings it changes: several explain more by chance."""

_CLEAR_BYTES = GIB
"""One model is enough if it shows a setup that takes so much more; it costs nothing to be careful."""

_MARGIN_BYTES = 1280 * MIB
"""A load that spilled leaves at most this much above the margin free: a layer with its cache, or a projector."""

_MARGIN_STEP_BYTES = 256 * MIB
_MARGIN_S = 86400.0
"""For this long such loads count: once the margin is known, nothing comes near it any more."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """A server's setup and fit target per card, with the sentences that say why; `models` show the setup.

    `is_less`: loads take less by it than by the configuration.
    """

    setup: Setup
    margin_bytes: int
    models: int = 0
    notes: tuple[str, ...] = ()
    is_less: bool = False

    def applied_to(self, settings: ServerSettings) -> ServerSettings:
        """Return the settings with what was recognised."""
        return with_setup(settings, self.setup, self.margin_bytes)


@dataclass(frozen=True, slots=True)
class Unexplained:
    """By how many bytes `models` models differ from the formula, all alike and for no known reason."""

    models: int
    constant_bytes: int

    @property
    def note(self) -> str:
        """The same as a sentence."""
        direction = "more" if self.constant_bytes > 0 else "less"
        size = f"{abs(self.constant_bytes) // MIB} MiB {direction} than computed"
        return f"{_models(self.models)} {size}, for no known reason"


def recognise(
    newest: Sequence[Observation], configured: ServerSettings, seen: Sequence[Observation] = ()
) -> Recognised | None:
    """Return how the server is set up; None = as configured.

    `newest` is the newest load of each model, `seen` all loads on this version of Ollama; both the newest first.
    """
    setup, margin_bytes = setup_in(configured), configured.fit_target_bytes
    found, models = _setup_of(newest, setup)
    notes = []
    if found != setup:
        notes.append(f"{_took(models)} with {setup.variables_of(found)}")
    margin = _margin_of(seen, found, margin_bytes)
    if margin != margin_bytes:
        notes.append(
            f"loads spilled with {margin // MIB} MiB of a card free, as with LLAMA_ARG_FIT_TARGET={margin // MIB}"
        )
    return Recognised(found, margin, models, tuple(notes), _is_less(newest, found, setup)) if notes else None


def _is_less(newest: Sequence[Observation], found: Setup, configured: Setup) -> bool:
    pairs = ((one.alternatives.get(key_of(found)), one.alternatives.get(key_of(configured))) for one in newest)
    return any(here is not None and there is not None and here < there for here, there in pairs)


def unexplained(newest: Iterable[Observation]) -> Unexplained | None:
    """Return the constant by which whole loads differ from the formula, None if they do not, or each by another."""
    notable = [seen for seen in newest if not seen.spilled and abs(seen.residual_bytes) > _NOTABLE_BYTES]
    if not notable:
        return None
    middle = int(median(seen.residual_bytes for seen in notable))
    near = [seen for seen in notable if abs(seen.residual_bytes - middle) <= max(128 * MIB, abs(middle) // 5)]
    return Unexplained(len(near), middle) if near else None


# --- the setup -------------------------------------------------------------------------------------------------


def _setup_of(newest: Sequence[Observation], assumed: Setup) -> tuple[Setup, int]:
    """Return the setup that explains the loads best, and how many models show it; `assumed` if none does better."""
    scores: dict[str, float] = {}
    more_bytes: dict[str, list[int]] = {}  # what it adds to each load that `assumed` does not explain
    for age, seen in enumerate(newest):
        found, expected = _explaining(seen, assumed), seen.alternatives.get(key_of(assumed))
        for key, likeness in found.items():
            weight = _FADING**age * _TRUST[assumed.changes_in(setup_of(key))]
            scores[key] = scores.get(key, 0.0) + weight * likeness
            if key_of(assumed) not in found and expected is not None:
                more_bytes.setdefault(key, []).append(seen.alternatives[key] - expected)
    best = setup_of(max(scores, key=lambda key: scores[key], default=key_of(assumed)))
    shown = more_bytes.get(key_of(best), [])
    is_shown = len(shown) > assumed.changes_in(best) or max(shown, default=0) >= _CLEAR_BYTES
    return (best, len(shown)) if is_shown else (assumed, 0)


def _explaining(seen: Observation, assumed: Setup) -> dict[str, float]:
    """Return the setups that explain a load, each with how well it does: 1 = exactly, 0 = just so.

    `assumed` explains what is not notable; of a model over several cards that is more, because each has a context.
    """
    shown = seen.comparable_bytes
    if shown is None:
        return {}
    likeness = {}
    for key, bytes_ in seen.alternatives.items():
        notable_bytes = _NOTABLE_BYTES * max(1, len(seen.gpu_names))
        whole_bytes = notable_bytes if key == key_of(assumed) else _NEAR_BYTES
        near_bytes = max(_SPILLED_BYTES if seen.spilled else whole_bytes, _NEAR_SHARE * bytes_)
        if abs(bytes_ - shown) <= near_bytes:
            likeness[key] = 1 - (abs(bytes_ - shown) / near_bytes) ** 2
    return likeness


# --- the margin ------------------------------------------------------------------------------------------------


def _margin_of(seen: Sequence[Observation], setup: Setup, assumed_bytes: int) -> int:
    """Return the fit target by what loads left free; `assumed_bytes` unless two of them spilled with more of it.

    A model spills if its load would leave less free than the target, and leaves at least the target itself. What was
    whole since then bounds it.
    """
    recent = [one for one in seen if seen[0].at_s - one.at_s < _MARGIN_S and len(one.gpu_names) == 1]
    spills = [one.under(setup, assumed_bytes) for one in recent if one.spilled]
    odd = [one for one in spills if _is_by_margin(one, assumed_bytes)]
    if len(odd) < 2:
        return assumed_bytes
    whole = [one for one in recent if one.measured_bytes and not one.spilled and one.at_s >= odd[-1].at_s]
    margin = min(_left_bytes(one) for one in (*odd, *whole)) // _MARGIN_STEP_BYTES * _MARGIN_STEP_BYTES
    return max(assumed_bytes, margin)


def _is_by_margin(seen: Observation, assumed_bytes: int) -> bool:
    """Return True if a load took what the formula says and spilled with much left free: only its place is odd.

    More than half of the card is no margin that anybody sets.
    """
    residual, left = seen.shown_residual_bytes, _left_bytes(seen)
    if residual is None or not assumed_bytes + _MARGIN_BYTES < left < seen.free_before_bytes // 2:
        return False
    return abs(residual) <= max(_SPILLED_BYTES, _NEAR_SHARE * seen.predicted_bytes)


def _left_bytes(seen: Observation) -> int:
    return seen.free_before_bytes - seen.measured_bytes


def _models(count: int) -> str:
    return "1 model takes" if count == 1 else f"{count} models take"


def _took(count: int) -> str:
    return "1 model took what it takes" if count == 1 else f"{count} models took what they take"
