"""The state of several backends for people: what `Inspector` reports of each, and the ranking of them for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router.admin.askers import OPERATOR, Asker
from router.admin.configuration import Configuration
from router.admin.inspector import Inspector
from router.admin.outage import Outage
from router.core.decision.fleet.passed_over import reason_of
from router.core.decision.fleet.rank import Ranked
from router.core.payload.read import InferenceRequest
from router.routing.fleet.assembled import Routes
from router.telemetry import RecentDecisions, Telemetry


def inspector_of(
    routes: Routes,
    telemetry: Telemetry,
    recent: RecentDecisions,
    configuration: Configuration,
    config_notes: Callable[[], list[str]] = list,
    outage: Outage | None = None,
) -> Inspector:
    """Return what reports the state of a router with these routes."""
    first, *others = routes.places
    about = telemetry, recent, configuration
    if not others:
        return Inspector(first.backend, routes.directory, first.decisions, *about, config_notes, outage)
    each = {
        place.name: Inspector(place.backend, place.directory, place.decisions, *about, list, outage)
        for place in routes.places
    }
    return FleetInspector(routes, each, *about, config_notes, outage)


class FleetInspector(Inspector):
    """Reports the state of several backends by the inspectors of each."""

    def __init__(
        self,
        routes: Routes,
        inspectors: Mapping[str, Inspector],
        telemetry: Telemetry,
        recent: RecentDecisions,
        configuration: Configuration,
        config_notes: Callable[[], list[str]],
        outage: Outage | None,
    ) -> None:
        first = routes.places[0]
        super().__init__(
            first.backend, routes.directory, first.decisions, telemetry, recent, configuration, config_notes, outage
        )
        self._routes = routes
        self._inspectors = inspectors

    def explain(self, model: str, num_ctx: int | None = None, asker: Asker = OPERATOR) -> dict[str, Any]:
        """Return the current decision for a plain request where it would go, and the ranking of all backends, each
        with a row per variant.

        See `Inspector.explain`.
        """
        first = next((place for place in self._routes.places if place.is_up), self._routes.places[0])
        found = first.decisions.explain(model, num_ctx, asker.team)
        if found is None:
            return self._inspectors[first.name].explain(model, num_ctx, asker)  # which says why there is none
        team = asker.team
        request = InferenceRequest(model, num_ctx=num_ctx if team is None else team.caps.reduced_num_ctx(num_ctx))
        ranked = self._routes.ranked(request, found[0], team.name if team is not None else "")
        best = ranked[0].place
        data = self._inspectors[best].explain(model, num_ctx, asker)
        reason = reason_of(ranked) or data["reason"]
        ranking = [
            {**row_of(one), "variants": self._inspectors[one.place].variants(model, num_ctx, asker)} for one in ranked
        ]
        return {**data, "reason": reason, "backend": best, "ranking": ranking}

    def state(self) -> dict[str, Any]:
        """Return cards, residents and queues of all backends, each with its `backend`, and how each of them is."""
        states = {name: inspector.state() for name, inspector in self._inspectors.items()}
        first = next(iter(states.values()))
        loading = [state["loading"] for state in states.values() if state["loading"]]
        known = [state["gpus"] for state in states.values() if state["gpus"] is not None]
        return {
            **first,
            "ollama": self.ollama(),
            "gpus": _named(states, "gpus") if known else None,
            "residents": _named(answering(states), "residents"),
            "waiting": sum(state["waiting"] for state in states.values()),
            "loading": ", ".join(loading) or None,
            "may_upgrade": any(state["may_upgrade"] for state in states.values()),
            "barred": _named(states, "barred"),
            "notes": self.notes(),
            "backends": {
                name: {key: state[key] for key in ("ollama", "waiting", "loading", "may_upgrade")}
                for name, state in states.items()
            },
        }

    def of(self, name: str) -> Inspector:
        """Return what reports the state of one backend."""
        return self._inspectors[name]

    def ollama(self) -> dict[str, Any]:
        """Return how the first backend is that answers; if none does, how the first is."""
        each = [inspector.ollama() for inspector in self._inspectors.values()]
        return next((one for one in each if one["up"]), each[0])

    def barred(self) -> list[dict[str, Any]]:
        """Return what is not loaded for now, with its `backend`."""
        rows = ((name, inspector.barred()) for name, inspector in self._inspectors.items())
        return [{**row, "backend": name} for name, found in rows for row in found]

    def notes(self) -> list[str]:
        """Return what an operator should know, of all backends and of the configuration."""
        hows = {name: {"ollama": inspector.ollama()} for name, inspector in self._inspectors.items()}
        away = {name: how["ollama"]["error"] for name, how in hows.items() if name not in answering(hows)}
        notes = [f"{name}: Ollama does not answer: {error}" for name, error in away.items()]
        found = (f"{name}: {note}" for name, inspector in self._inspectors.items() for note in inspector.notes())
        return [*notes, *found, *self._config_notes()]


def answering(states: Mapping[str, dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """Return the states of the backends that answer, those of all if none does: what one that is away had loaded is
    gone with it, as far as anybody knows.
    """
    return {name: state for name, state in states.items() if state["ollama"]["up"]} or states


def _named(states: Mapping[str, dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the rows of all backends, each with the name of its own."""
    return [{**row, "backend": name} for name, state in states.items() for row in state[key] or ()]


def row_of(ranked: Ranked) -> dict[str, Any]:
    """Return one place of the ranking as data."""
    chosen = ranked.offer.chosen
    return {
        "backend": ranked.place,
        "usable": ranked.is_usable,
        "model": chosen.variant.model if chosen is not None else None,
        "state": ranked.tier.name.lower() if ranked.tier is not None else None,
        "reason": ranked.reason,
        "requests": ranked.offer.load,
        "wait_s": round(ranked.offer.wait_s, 1),
        "load_s": round(ranked.offer.copy_s, 1),
    }
