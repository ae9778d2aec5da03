"""What a switch loads, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from router.core.decision.switching import Plan
from router.core.ollama.model import ModelFacts


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
    """The model that a switch loads, and the plan for it."""

    facts: ModelFacts
    plan: Plan

    @property
    def weights(self) -> str:
        return self.facts.weights or self.facts.name
