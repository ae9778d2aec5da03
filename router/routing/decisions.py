"""Decisions, remembered while the world stays the same, and what they mean for one request: name, options, headers.

`choose` decides (core/policy.py); here stands what it is asked with, and how long its answer holds.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from router.backend.backend import Backend
from router.config import Defaults
from router.core.decision.chain import Chain
from router.core.decision.policy import Decision, Verdict, VerdictKind, choose
from router.core.ollama.derived_names import parameters_of
from router.core.ollama.runner import RunnerOptions
from router.core.payload.read import InferenceRequest, Patch
from router.routing.call import Call, header_lines, router_headers, spelled
from router.routing.chains import Chains

RECENT_CHAINS = 32
"""Chains that `upgrade: idle` looks after: those asked for lately."""

MOST_REMEMBERED = 4096
"""Settled decisions that are kept while the world stays the same."""

PROMPT_STEP_BYTES = 8192
"""Prompts whose lengths differ by less than this get the same decision."""

IN_OPTIONS = tuple(key for key in RunnerOptions.__struct_fields__ if key != "shift")
"""The options of a runner; `shift` is none but a top-level key with a meaning for clients."""

NO_PATCH = Patch.of({})
_KEEP_ALIVE = frozenset({"keep_alive"})
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ready:
    """What a settled decision means for every request with the same key, as long as the world stays the same."""

    chosen: Verdict
    weights: str
    reason: str
    name: str
    patch: Patch
    rename: tuple[bytes, bytes] | None
    headers: list[tuple[bytes, bytes]]
    lines: bytes
    told: tuple[object, ...]


class Decisions:
    """See the module. `decide` and `ready_for` remember; `decide_anew` does not."""

    def __init__(self, backend: Backend, chains: Chains, defaults: Defaults) -> None:
        self._name = backend.name
        self._world = backend.world
        self._line = backend.line
        self._derived = backend.derived
        self._rules = backend.rules
        self._chains = chains
        self._response_model = defaults.response_model
        self._has_derived_tags = defaults.derived_tags
        self._remembered: dict[Hashable, Decision] = {}
        self._ready: dict[Hashable, Ready] = {}
        self._epoch = -1
        self._recent: dict[str, Chain] = {}

    def chain_of(self, call: Call) -> Chain | None:
        """The chain of the requested name; None where Ollama itself should answer (unknown, cloud, no valid name)."""
        chain = self._chains.find(call.request.model, self._world.catalog)
        if chain is not None and call.strict:
            return Chain(chain.name, chain.variants[:1])
        return chain

    def decide(self, request: InferenceRequest, chain: Chain) -> Decision:
        """`choose`, remembered while nothing has changed for a request whose first usable variant is resident."""
        self._forget_what_changed()
        key = self.key(request, chain)
        known = self._remembered.get(key)
        if known is None:
            known = self.decide_anew(request, chain)
            if known.chosen is not None and _is_settled(known):
                self._remembered[key] = known
        return known

    def decide_anew(self, request: InferenceRequest, chain: Chain) -> Decision:
        may_upgrade = self._line.may_upgrade() and self._chains.rule(chain.name).upgrade != "never"
        snapshot = self._world.snapshot(may_upgrade=may_upgrade)
        return choose(request, chain, snapshot, self._rules())

    def key(self, request: InferenceRequest, chain: Chain) -> Hashable:
        """Requests with equal keys get equal decisions (the prompt's length in steps)."""
        return (chain.name, len(chain.variants), _shape(request))

    def _forget_what_changed(self) -> None:
        """Decisions hold for one epoch of the world; what clients ask for is without bounds, so it is counted too."""
        is_old = self._epoch != self._world.epoch.number
        if is_old or len(self._remembered) > MOST_REMEMBERED or len(self._ready) > MOST_REMEMBERED:
            self._remembered.clear()
            self._ready.clear()
            self._epoch = self._world.epoch.number

    def ready_for(self, call: Call) -> Ready | None:
        """What `at_once` does for this call; None where something has to be waited for or looked at."""
        self._forget_what_changed()
        request = call.request
        if request.is_unload or request.options_error or not self._world.is_up or self.is_automatic(call):
            return None
        key = (call.route.kind, request.model, _shape(request))
        known = self._ready.get(key)
        if known is None and (found := self._make_ready(call)) is not None:
            known = self._ready[key] = found
        return known

    def _make_ready(self, call: Call) -> Ready | None:
        request = call.request
        if not request.has_model or (chain := self.chain_of(call)) is None:
            return None
        decision = self.decide(request, chain)
        chosen = decision.chosen
        if chosen is None or chosen.resident is None or not _is_settled(decision):
            return None
        tracked = self._world.residents.get(chosen.resident.weights)
        if tracked is None:
            return None
        options = tracked.sent_options
        name = spelled(request.model, chosen.variant.model)
        if self.needs_tag(call, options):
            tag = self._derived.made(chosen.variant.model, digest_of(chosen), options)
            if tag is None:
                return None
            name = tag
        self.note(chain)
        patch = patch_of(options) if call.route.dialect == "ollama" else NO_PATCH
        headers = router_headers(request.model, chosen.variant.model, decision.reason, 0.0, self._name)
        return Ready(
            chosen,
            tracked.weights,
            decision.reason,
            name,
            patch,
            self.rename(call, chosen, name),
            headers,
            header_lines(headers),
            told(request.model, chain, decision),
        )

    def needs_tag(self, call: Call, options: RunnerOptions) -> bool:
        """True where the runner's options can only travel in a derived tag."""
        is_v1 = call.route.dialect != "ollama"
        return is_v1 and self._has_derived_tags and bool(parameters_of(options))

    def is_automatic(self, call: Call) -> bool:
        """True where a request can carry no options and no tag may carry them: it runs at Ollama's own."""
        return call.route.dialect != "ollama" and not self._has_derived_tags

    def rename(self, call: Call, chosen: Verdict, name: str) -> tuple[bytes, bytes] | None:
        """What the answer calls the model and what it shall call it; None where that is the same."""
        is_echo = self._response_model == "requested"
        shown = call.request.model if is_echo else spelled(call.request.model, chosen.variant.model)
        return None if name == shown else (name.encode(), shown.encode())

    def note(self, chain: Chain) -> None:
        """`chain` was asked for."""
        if chain.name in self._recent:
            return
        if len(self._recent) >= RECENT_CHAINS:
            del self._recent[next(iter(self._recent))]
        self._recent[chain.name] = chain

    def recent_chains(self) -> list[Chain]:
        """The chains that were asked for lately."""
        return list(self._recent.values())

    def explain(self, model: str, num_ctx: int | None = None) -> tuple[Chain, Decision] | None:
        """The decision now for a plain request; None for a name that is neither a chain nor installed."""
        request = InferenceRequest(model, num_ctx=num_ctx)
        chain = self._chains.find(model, self._world.catalog)
        return None if chain is None else (chain, self.decide_anew(request, chain))


@lru_cache(maxsize=256)
def patch_of(options: RunnerOptions) -> Patch:
    """Exactly these options in a body, none of a client's own."""
    return Patch.of({key: getattr(options, key) for key in IN_OPTIONS})


def _shape(request: InferenceRequest) -> Hashable:
    """What a decision depends on beside the chain."""
    tokens = request.prompt_bytes // PROMPT_STEP_BYTES, request.num_predict
    return request.num_ctx, request.options, request.needs, request.is_automatic, tokens


def _is_settled(decision: Decision) -> bool:
    """True when only a change of the world (its epoch) can change the decision: no swap budget is in it."""
    assert decision.chosen is not None
    kinds = {verdict.kind for verdict in decision.verdicts}
    return decision.chosen.kind is VerdictKind.RESIDENT and VerdictKind.HELD_BACK not in kinds


def told(requested: str, chain: Chain, decision: Decision) -> tuple[object, ...]:
    """What `Decided` says of a decision, behind the request's id and team."""
    chosen = decision.chosen.variant.model if decision.chosen else ""
    cause = decision.verdicts[0].kind.name.lower() if decision.verdicts else ""
    return requested, chosen, decision.reason, decision.outcome.value, chain.name, cause, decision


def dropped(call: Call) -> frozenset[str]:
    """The top-level keys that do not go upstream: a keep_alive is honoured here."""
    return _KEEP_ALIVE if call.route.dialect == "ollama" else _NOTHING


def digest_of(chosen: Verdict) -> str:
    """What a derived tag stands for: the variant's manifest, so that one created anew gets a new tag."""
    return chosen.facts.digest if chosen.facts is not None else ""
