"""The router's state for people: the decision for a model now, the cards, recent decisions, the configuration.

Plain data for `GET /router/…`, `ollama-router explain` and `ollama-router ps`. Nothing here changes any state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router import __version__
from router.admin.askers import OPERATOR, Asker, check_question, names_for, sight_of
from router.admin.configuration import Configuration
from router.admin.outage import Outage
from router.admin.reporting import Reporting
from router.backend.backend import Backend
from router.backend.tracked import Tracked
from router.core.advice.nearest import nearest
from router.core.decision.report import as_data, line
from router.core.decision.snapshot import Snapshot
from router.core.decision.verdict import VerdictKind
from router.core.ollama.names import key_of
from router.core.ollama.runner import Gpu
from router.core.units import GIB
from router.errors import ModelNotFound, UpstreamError
from router.routing.decisions import Decisions
from router.routing.directory import Directory
from router.telemetry import RecentDecisions, Telemetry


class Inspector(Reporting):
    """Reports state as plain data; see `Reporting`. `outage` knows since when Ollama does not answer."""

    def __init__(
        self,
        backend: Backend,
        directory: Directory,
        decisions: Decisions,
        telemetry: Telemetry,
        recent: RecentDecisions,
        configuration: Configuration,
        config_notes: Callable[[], list[str]] = list,
        outage: Outage | None = None,
    ) -> None:
        super().__init__(telemetry, recent, configuration, config_notes)
        self._backend = backend
        self._world = backend.world
        self._directory = directory
        self._decisions = decisions
        self._outage = outage

    def explain(self, model: str, num_ctx: int | None = None, asker: Asker = OPERATOR) -> dict[str, Any]:
        """Return the current decision for a plain request of a team, with a row per variant.

        Raises ModelNotFound, BadRequest, or Forbidden if the team may not use the model. A team that asks itself does
        not read what is loaded for others, nor the operator's notes.
        """
        check_question(model, asker)
        found = self._decisions.explain(model, num_ctx, asker.team)
        if found is None:
            key_of(model)
            if not self._world.is_up:  # nothing is known of its models
                raise UpstreamError(self._world.why_away())
            raise ModelNotFound(f"model '{model}' not found{self._hint(model, asker)}")
        snapshot = self._world.snapshot()
        data = as_data(*found, _names_for(asker, snapshot))
        data["team"] = asker.team.name if asker.team is not None else None
        data["gpus"] = None if snapshot.gpus is None else [_gpu(gpu) for gpu in snapshot.gpus]
        data["ollama"] = self.ollama()
        data["memory"] = self._directory.is_ready()[1]["memory"]
        data["denied"] = [] if asker.is_team else list(self._directory.denied(model, asker.team))
        data["notes"] = [] if asker.is_team else self._notes()
        return data

    def variants(self, model: str, num_ctx: int | None, asker: Asker) -> list[dict[str, Any]]:
        """Return the rows of `explain`; none if Ollama does not answer, or does not know the model."""
        found = self._decisions.explain(model, num_ctx, asker.team) if self._world.is_up else None
        if found is None:
            return []
        rows: list[dict[str, Any]] = as_data(*found, _names_for(asker, self._world.snapshot()))["variants"]
        return rows

    def _hint(self, model: str, asker: Asker) -> str:
        """Return the name that a misspelt one probably means, of those that who asks may see."""
        names = (name for name in self._directory.names(asker.team) if sight_of(asker)(name))
        near = nearest(model, names)
        return f" (did you mean {near}?)" if near else ""

    def state(self) -> dict[str, Any]:
        """Return the cards, the residents, the queue and the switch under way."""
        world, queue = self._world, self._backend.line
        loading = queue.loading
        return {
            "version": __version__,
            "ollama": self.ollama(),
            "gpus": None if world.cards.gpus is None else [_gpu(gpu) for gpu in world.cards.gpus],
            "residents": [self._resident(tracked) for tracked in world.residents.values()],
            "waiting": queue.depth,
            "loading": loading.facts.name if loading else None,
            "may_upgrade": queue.may_upgrade(),
            "barred": self.barred(),
            "config": self._configuration.state(),
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """Return what an operator should know of the machine, of what was learned and of the configuration."""
        return [*self._notes(), *self._config_notes()]

    def barred(self) -> list[dict[str, Any]]:
        """Return what is not loaded for now: after setbacks (any model if `model` is None), and after spills."""
        now_s = self._backend.now()
        rows: list[dict[str, Any]] = [
            {"model": self._model(weights), "why": why, "for_s": round(until_s - now_s)}
            for weights, (until_s, why) in self._world.bars(now_s).items()
        ]
        for ban, for_s in self._backend.lessons.bans():
            free = f"{ban.free_bytes / GIB:.1f} GiB free" if ban.free_bytes else "an unknown amount of memory free"
            why = f"spilled at {ban.num_ctx} tokens with {free}"
            rows.append({"model": self._model(ban.weights), "why": why, "for_s": round(for_s)})
        return rows

    def _model(self, weights: str) -> str | None:
        facts = self._backend.installed.by_weights(weights)
        return facts.name if facts is not None else weights or None

    def ollama(self) -> dict[str, Any]:
        """Return whether Ollama answers; if not, everything else is its state of `stale_since`."""
        world = self._world
        since = self._outage.since if self._outage is not None and not world.is_up else None
        return {"up": world.is_up, "version": world.version, "error": world.last_error, "stale_since": since}

    def _resident(self, tracked: Tracked) -> dict[str, Any]:
        row = tracked.row
        expiry = self._backend.keepalive.expiry(tracked) or row.expires_at
        is_full = row.size_vram_bytes >= row.size_bytes > 0 and not tracked.is_spilled
        return {
            "name": tracked.name,
            "size_bytes": row.size_bytes,
            "size_vram_bytes": row.size_vram_bytes,
            "context_length": row.context_length,
            "gpu_percent": round(100 * row.size_vram_bytes / row.size_bytes) if row.size_bytes else 0,
            "is_fully_resident": is_full,
            "held_bytes": {str(card): held for card, held in tracked.held_bytes.items()},
            "in_flight": tracked.in_flight,
            "loaded_by_router": self._world.residents.is_ours(tracked),
            "expires_at": expiry.isoformat(),
            "advice": "" if is_full else self._advice(tracked.name),
        }

    def _advice(self, name: str) -> str:
        """Return what would run fully on the GPU instead of a model that is partly on the CPU."""
        found = self._decisions.explain(name)
        if found is None:
            return ""
        _, decision = found
        why = line(decision.verdicts[0]) if decision.verdicts else ""
        if decision.chosen is None:
            return f"{why}; no variant of its chain fits"
        if decision.chosen.variant.model == name:
            return (
                f"the next request for it loads it again at {decision.chosen.num_ctx}, fully on the GPU or not at all"
            )
        if decision.chosen.kind is VerdictKind.TRIES:
            return f"{why}; {decision.chosen.variant.model} at {decision.chosen.num_ctx} would be tried, and verified"
        if decision.chosen.kind is VerdictKind.RESIDENT:
            return f"{why}; {decision.chosen.variant.model} is resident and would be used"
        return f"{why}; {decision.chosen.variant.model} at {decision.chosen.num_ctx} would fit"

    def _notes(self) -> list[str]:
        """Return what an operator should know: drift, odd cards, others on the same Ollama, other programs."""
        found = self._backend
        failing = [f"the work in the background fails and is begun again: {name}" for name in found.upkeep.failing]
        others = (*failing, *found.residency.loaded_limit.notes(), *found.contest.notes(), *found.derived.notes())
        return [*found.lessons.learned.drift(), *self._world.cards.notes(), *others, *self._foreign()]

    def _foreign(self) -> list[str]:
        """Return a note per card of which other programs hold more than 5 %, with their names if the probe has them.

        None while a model is loaded or unloaded: its runner's memory is in no resident's book yet, or still in one. A
        process without a name may be a runner of Ollama's, so its number is no name for others.
        """
        notes = []
        for gpu in () if self._backend.line.is_switching else self._world.cards.gpus or ():
            if (foreign := self.foreign_bytes(gpu)) > gpu.total_bytes // 20:
                names = self.programs_on(gpu)
                who = f" ({', '.join(names)})" if names else ""
                notes.append(f"other programs hold {foreign / (1 << 30):.1f} GiB of {gpu.name}{who}")
        return notes

    def foreign_bytes(self, gpu: Gpu) -> int:
        """Return the bytes of a card that no resident holds; during a switch they say nothing."""
        return gpu.total_bytes - gpu.free_bytes - self._world.residents.held_on(gpu.index)

    def programs_on(self, gpu: Gpu) -> list[str]:
        """Return the names of other programs on a card, as far as the probe knows them."""
        here = (process for process in self._world.cards.processes if process.gpu_index == gpu.index)
        return sorted({process.name for process in here if not process.may_be_runner})

    def _readiness(self) -> tuple[bool, dict[str, object]]:
        return self._directory.is_ready()


def _names_for(asker: Asker, snapshot: Snapshot) -> dict[str, str]:
    """Return the names of what is loaded by its weights, as far as who asks may see them."""
    return names_for(asker, ((one.weights, one.name) for one in snapshot.residents))


def _gpu(gpu: Any) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_bytes": gpu.total_bytes,
        "free_bytes": gpu.free_bytes,
    }
