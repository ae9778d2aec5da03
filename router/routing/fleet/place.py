"""One Ollama with everything that routes requests to it. A router has one of these per entry of `backends:`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.backend.backend import Backend
from router.backend.tracked import Tracked
from router.config import Config
from router.core.decision.chain import Chain
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import is_name, key_of
from router.routing.chains import Chains
from router.routing.conversations import Conversations
from router.routing.decisions import Decisions
from router.routing.directory import Directory
from router.routing.dispatch import Dispatcher
from router.routing.ends import NOWHERE_ELSE, Elsewhere
from router.routing.ruled import RulesInForce
from router.routing.warmup import Mine, Warmup
from router.telemetry import Telemetry

PACE_S = 1.0
"""Assumed time between two requests that enter a resident, until it is known."""

Catalog = Mapping[str, ModelFacts]


class Place:
    """A backend, its decisions, and what carries them out.

    `catalog` returns the models by which chains are found, `conversations` is shared with the other places, `elsewhere`
    knows those, and `is_mine` returns which models this one is to load without a request.
    """

    def __init__(
        self,
        backend: Backend,
        config: Config,
        chains: Chains,
        rules: RulesInForce,
        telemetry: Telemetry,
        *,
        catalog: Callable[[], Catalog] | None = None,
        conversations: Conversations | None = None,
        elsewhere: Elsewhere = NOWHERE_ELSE,
        is_mine: Mine | None = None,
    ) -> None:
        self.name = backend.name
        self.backend = backend
        self.decisions = Decisions(backend, chains, config.defaults, catalog, conversations)
        self.directory = Directory(backend, chains, self.decisions)
        self.dispatcher = Dispatcher(backend, chains, self.decisions, config.queue.wait_s, telemetry, elsewhere)
        self.warmup = Warmup(backend, self.decisions, chains, rules, is_mine)

    @property
    def is_up(self) -> bool:
        """True if its Ollama answers, and its state has been read."""
        return self.backend.answers

    @property
    def total_bytes(self) -> int:
        """The memory of its cards."""
        return sum(gpu.total_bytes for gpu in self.backend.cards.gpus or ())

    def has_model(self, name: str) -> bool:
        """Return whether a model of that name was installed when its Ollama last answered."""
        return is_name(name) and key_of(name) in self.backend.world.catalog

    def variants_of(self, chain: Chain) -> tuple[str, ...]:
        """Return which variants of a chain were installed when its Ollama last answered."""
        return chain.installed(self.backend.world.catalog)

    def entry_wait_s(self, tracked: Tracked, team: str = "", *, needs_slot: bool = True) -> float:
        """Return about how long one more request of a team would wait for a resident; 0 = not at all."""
        if self.backend.line.may_enter(tracked, team, needs_slot=needs_slot):
            return 0.0
        return (self.backend.world.wanted.get(tracked.weights, 0) + 1) * (tracked.slots.gap_s or PACE_S)

    def load_wait_s(self) -> float:
        """Return about how long a load would wait for those before it."""
        line = self.backend.line
        return line.expected_wait_s() if line.depth or line.is_switching else 0.0

    def switch_left_s(self) -> tuple[float, bool]:
        """Return about how long the switch under way still takes, and whether it takes longer than was estimated.

        Then it may take as long again: how long a load elsewhere takes is known no better.
        """
        whole_s, gone_s = self.backend.line.switch_s()
        is_late = gone_s > whole_s
        return whole_s if is_late else whole_s - gone_s, is_late

    def why_away(self) -> str:
        """Return why it is not up."""
        return "its state is being read" if self.backend.is_starting else self.backend.world.why_away()


class Union:
    """The catalogs of several backends as one. It is the same object until one of them changes."""

    def __init__(self, sources: Callable[[], tuple[Catalog, ...]]) -> None:
        self._sources = sources
        self._seen: tuple[Catalog, ...] = ()
        self._whole: Catalog = {}

    def __call__(self) -> Catalog:
        """Return all models by their keys; of a name that several have, the facts that say most, the first else."""
        seen = self._sources()
        if len(seen) != len(self._seen) or any(one is not other for one, other in zip(seen, self._seen, strict=True)):
            whole: dict[str, ModelFacts] = {}
            for catalog in seen:
                for key, facts in catalog.items():
                    if key not in whole or (facts.info and not whole[key].info):
                        whole[key] = facts
            self._seen, self._whole = seen, whole
        return self._whole
