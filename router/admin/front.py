"""The state of a front for people: its nodes as they have told it, and which of them a model would go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router import __version__
from router.admin.askers import OPERATOR, Asker, check_question, names_for
from router.admin.board import within
from router.admin.configuration import Configuration
from router.admin.fleet import row_of
from router.admin.reporting import Reporting
from router.admin.timeline import Timeline
from router.admin.totals import Totals
from router.core.decision.fleet.passed_over import reason_of
from router.core.decision.report import as_data
from router.core.decision.verdict import Decision, Outcome
from router.core.nodes.state import NodeState
from router.core.nodes.view import NodeResident
from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest
from router.errors import ModelNotFound
from router.routing.front.assembled import FrontRoutes
from router.telemetry import RecentDecisions, Telemetry

MOST_NODES_SHOWN = 100
"""Nodes of which cards and models are shown, and of which a ranking speaks."""

DECISIONS_SHOWN = 60
NOTHING = Decision(Outcome.REJECTED, None, ())
Row = dict[str, Any]


class FrontInspector(Reporting):
    """Reports the state of a front; see `Reporting`."""

    def __init__(
        self,
        routes: FrontRoutes,
        telemetry: Telemetry,
        recent: RecentDecisions,
        configuration: Configuration,
        config_notes: Callable[[], list[str]] = list,
    ) -> None:
        super().__init__(telemetry, recent, configuration, config_notes)
        self._routes = routes
        self._members = routes.members

    def explain(self, model: str, num_ctx: int | None = None, asker: Asker = OPERATOR) -> Row:
        """Return where a plain request of a team would go, with a row per variant and per node; see `Inspector`."""
        check_question(model, asker)
        team, chains = asker.team, self._routes.chains
        asking = team or chains.default_team
        catalog = self._members.index.catalog
        chain = chains.find(model, catalog, rules=chains.rules_of(asking))
        if chain is None:
            key_of(model)
            if not self._members.usable():
                raise self._members.nobody()
            raise ModelNotFound(f"model '{model}' not found")
        request = InferenceRequest(model, num_ctx=asking.caps.reduced_num_ctx(num_ctx))
        ranked = self._routes.ranked(request, chain)
        best = ranked[0] if ranked else None
        state = self._members.index.get(best.place) if best is not None else None
        names = names_for(asker, self._names().items())
        data = as_data(chain, (best.offer.decision if best is not None else None) or NOTHING, names)
        return {
            **data,
            "reason": (reason_of(ranked) if ranked else "") or data["reason"],
            "team": team.name if team is not None else None,
            "gpus": _gpus(state) if state is not None else [],
            "ollama": self.ollama(),
            "memory": state.view.memory if state is not None else "",
            "notes": [] if asker.is_team else self.notes(),
            "backend": best.place if best is not None else None,
            "ranking": [row_of(one) for one in ranked[:MOST_NODES_SHOWN]],
        }

    def state(self) -> Row:
        """Return cards and residents of the nodes, each with its `backend`, and how each node is."""
        shown, names = self._shown(), self._names()
        return {
            "version": __version__,
            "ollama": self.ollama(),
            "gpus": [{**row, "backend": state.name} for state in shown for row in _gpus(state) or ()],
            "residents": [_resident(state, one, names) for state in shown for one in state.view.residents],
            "waiting": sum(one.waiting for state in shown for one in state.view.residents),
            "loading": ", ".join(names.get(one.weights, one.weights) for state in shown for one in state.view.loading)
            or None,
            "may_upgrade": True,
            "barred": [],
            "config": self._configuration.state(),
            "notes": self.notes(),
            "nodes": {node.name: self._node(node.name) for node in self._members.all()[:MOST_NODES_SHOWN]},
            "backends": {},
        }

    def _shown(self) -> list[NodeState]:
        return sorted(self._members.index, key=lambda state: state.name)[:MOST_NODES_SHOWN]

    def _node(self, name: str) -> Row:
        node, state = self._members.named(name), self._members.index.get(name)
        why = self._members.why_out(node) if node is not None else "it has not been heard of"
        found: Row = {"ready": not why, "error": why, "url": node.url if node is not None else None}
        if state is not None:
            view = state.view
            found |= {"version": view.version, "ollama": view.ollama, "draining": view.draining, "memory": view.memory}
            found["age_s"] = round(max(0.0, self._routes.now() - state.at_s), 1)
        return found

    def _names(self) -> Mapping[str, str]:
        """Return the names of models by their weights."""
        return {facts.weights: facts.name for facts in self._members.index.catalog.values()}

    def ollama(self) -> Row:
        """Return whether a node can be used."""
        usable = self._members.usable()
        version = usable[0].view.ollama if usable and usable[0].view is not None else ""
        error = "" if usable else self._members.nobody().message
        return {"up": bool(usable), "version": version, "error": error, "stale_since": None}

    def notes(self) -> list[str]:
        """Return what an operator should know of the nodes and of the configuration."""
        out = [(node, why) for node in self._members.all() if (why := self._members.why_out(node))]
        notes = [f"node {node.name} is out: {why}" for node, why in out[:MOST_NODES_SHOWN]]
        clashes = [node for node in self._members.all() if node.is_called_otherwise]
        notes += [f"node {node.name}: another one has its node.name, too" for node in clashes[:MOST_NODES_SHOWN]]
        return [*notes, *self._config_notes()]

    def _readiness(self) -> tuple[bool, dict[str, object]]:
        return self._routes.directory.is_ready()


class FrontBoard:
    """Builds the dashboard's data of a front, from the views of its nodes. Cards are numbered through."""

    def __init__(self, routes: FrontRoutes, inspector: FrontInspector, totals: Totals, timeline: Timeline) -> None:
        self._routes = routes
        self._inspector = inspector
        self._totals = totals
        self._timeline = timeline

    async def watch(self) -> None:
        """Do nothing: what is loaded when is in the timelines of the nodes."""

    def data(self) -> Row:
        """Return everything that the dashboard shows, except the decisions."""
        (is_ready, details), state = self._inspector.ready(), self._inspector.state()
        return {
            "version": __version__,
            "ready": is_ready,
            "draining": details["draining"],
            "memory": details["memory"],
            "ollama": state["ollama"],
            "cards": [self._card(number, gpu, state) for number, gpu in enumerate(state["gpus"])],
            "models": [self._model(row, state) for row in state["residents"]],
            "loading": None,
            "queue": [],
            "totals": {**self._totals.since_start(), "switches": None},  # nodes do not tell
            "minutes": self._totals.by_minute(),
            "timeline": self._timeline.as_data(),
            "barred": [],
            "notes": state["notes"],
            "installed": sorted(facts.name for facts in self._routes.members.index.catalog.values()),
        }

    def decisions(self) -> list[Row]:
        """Return the newest decisions, newest first."""
        return self._inspector.decisions(DECISIONS_SHOWN)

    @staticmethod
    def _card(number: int, gpu: Row, state: Row) -> Row:
        """Return a card with what is on it, as far as its node has told."""
        at = str(gpu["index"])
        here = [row for row in state["residents"] if row["backend"] == gpu["backend"] and row["held_bytes"].get(at)]
        blocks = [{"kind": "model", "model": row["name"], "bytes": row["held_bytes"][at]} for row in here]
        others = gpu["total_bytes"] - gpu["free_bytes"] - sum(block["bytes"] for block in blocks)
        blocks = within([*blocks, {"kind": "others", "model": "", "bytes": others}], gpu["total_bytes"])
        return {**gpu, "index": number, "name": f"{gpu['backend']}: {gpu['name']}", "blocks": blocks}

    @staticmethod
    def _model(row: Row, state: Row) -> Row:
        numbers = {(gpu["backend"], str(gpu["index"])): number for number, gpu in enumerate(state["gpus"])}
        cards = [numbers[row["backend"], at] for at in row["held_bytes"] if (row["backend"], at) in numbers]
        return {
            "name": row["name"],
            "bytes": row["size_vram_bytes"],
            "on_cpu_bytes": 0,
            "context": row["context_length"],
            "in_flight": row["in_flight"],
            "slots": row["slots"] or None,
            "served": None,  # nodes do not tell
            "kept": row["kept"],
            "ours": True,
            "unloads_at": None,
            "cards": sorted(cards),
            "backend": row["backend"],
        }


def _resident(state: NodeState, one: NodeResident, names: Mapping[str, str]) -> Row:
    held_bytes = sum(one.held_bytes)
    return {
        "backend": state.name,
        "name": names.get(one.weights, one.weights),
        "size_bytes": held_bytes,
        "size_vram_bytes": held_bytes,
        "context_length": one.context or None,
        "gpu_percent": 100 if one.is_full else 0,
        "is_fully_resident": one.is_full,
        "held_bytes": {str(at): held for at, held in enumerate(one.held_bytes) if held},
        "in_flight": one.in_flight,
        "slots": one.slots,
        "kept": one.is_kept,
        "loaded_by_router": True,
        "expires_at": None,
        "advice": "",
    }


def _gpus(state: NodeState) -> list[Row] | None:
    if state.view.memory == "verify":
        return None
    return [
        {
            "index": at,
            "uuid": gpu.uuid,
            "name": f"GPU {at}",
            "total_bytes": gpu.total_bytes,
            "free_bytes": gpu.free_bytes,
        }
        for at, gpu in enumerate(state.view.gpus)
    ]
