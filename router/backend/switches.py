"""What a switch loads, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from router.core.decision.switching import Plan
from router.core.ollama.model import ModelFacts
from router.core.teams.payer import NOBODY, Payer
from router.telemetry import Switched


class SwitchResult(Enum):
    """How a switch ended; the value is the text for the log."""

    DONE = "done"
    MOVED = "the loaded models or the free memory changed; decide again"
    OVERTAKEN = "somebody else loaded a model meanwhile"
    TAKEN = "somebody else unloaded the model at once"
    RENUMBERED = "Ollama has no card of that number; decide again"
    SPILLED = "not fully on the GPU; unloaded again"
    ON_CPU = "Ollama put nothing of it on the GPU"
    FAILED = "the load failed"
    ABANDONED = "no request waits for it any more"
    AWAY = "Ollama went away"

    @property
    def is_upset(self) -> bool:
        """True if somebody else, who uses the same Ollama, was in the way."""
        return self in (SwitchResult.TAKEN, SwitchResult.OVERTAKEN)


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a switch loads, the plan for it, the request that caused it, and when it began in loop time."""

    facts: ModelFacts
    plan: Plan
    payer: Payer = NOBODY
    since_s: float = 0.0

    @property
    def weights(self) -> str:
        return self.facts.weights or self.facts.name

    def event(self, phase: str, evicted: tuple[str, ...], duration_s: float | None = None, error: str = "") -> Switched:
        """Return the event of a phase of the switch."""
        payer, need_bytes = self.payer, sum(self.plan.need_by_card)
        return Switched(
            phase,
            self.facts.name,
            evicted,
            duration_s,
            error,
            vram_bytes=need_bytes,
            team=payer.team,
            key_id=payer.key_id,
            request_id=payer.request_id,
            operation=payer.operation,
        )
