"""The dispatcher's input: a call. Data only."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from router.backend.tracked import Tracked
from router.config import ChainRules, NothingFits, Rulebook
from router.core.decision.fleet.passed_over import NOT_PASSED_OVER, PassedOver
from router.core.decision.verdict import Decision
from router.core.ollama.routes import Route
from router.core.payload.conversation import beginning_of
from router.core.payload.read import InferenceRequest
from router.core.teams.meter import Part
from router.core.teams.payer import Payer, Started
from router.core.teams.quotas import Standing
from router.core.teams.team import ANYONE, Identity
from router.http.client.outgoing import Body
from router.http.client.response import UpstreamRequest
from router.routing.answer import Released
from router.routing.destination import Destination
from router.routing.nodes.front_call import FrontCall
from router.routing.ruled import RuledChain
from router.routing.visit import Visit
from router.telemetry import TraceContext


class Call(msgspec.Struct, eq=False):
    """One inference request as the edge has read it, and its progress. Only its own methods change it.

    `lines` are the headers that may go upstream, rendered. `is_gone` returns whether the client has left. `served` and
    `reason` are the model that it was sent to, and why; `queue_s` is how long it waited before. `phase` is queued or
    before_answer. `let_in_to` holds the weights that the queue let it in to, `expected` where it was to go when it
    began to wait, in the epoch `expected_in`. `load_decision` is the decision that loaded its model. `may_use_remote`
    is whether it may reach a model that another server runs. `resident` is the resident that it has entered, `choice`
    the chain and decision for that, and `destination` where it is to be sent. `identity` is whose request it is,
    `rules` the rulebook that was in force when it began, and `chain_rules` what that says about the chains of its team.
    `trace_id` is that of its trace, which `trace_line` tells the next server unless `lines` do, and `span` its own span
    if it is recorded. `limits_left` is what is left of the team's
    limits, which its answer says, and `on_end` is called with how it ended and its status, if it counts towards any.
    `payer` is what the switches that it causes are charged to, `card_s` its share of the time that it occupied a runner
    with `vram_bytes` of VRAM (None if it used none that the router knows).
    `front` is what a front says with it, None for a client's own; `has_acted` is whether something has been done for it
    that others may feel.

    This and an answer are structs because one of each is built per request, and a dataclass takes three times as long.
    """

    route: Route
    request: InferenceRequest
    body: bytes
    lines: bytes = b""
    request_id: str = ""
    identity: Identity = ANYONE
    strict: bool = False
    nothing_fits: NothingFits | None = None
    is_gone: Callable[[], bool] = bool  # returns False until the edge sets it
    since_s: float = 0.0  # loop time of its arrival
    served: str = ""
    reason: str = ""
    queue_s: float = 0.0
    phase: str = "before_answer"
    let_in_to: str = ""
    expected: Destination | None = None
    expected_in: int = -1
    attempts: int = 0
    load_decision: Decision | None = None
    may_use_remote: bool = True
    resident: Tracked | None = None
    choice: tuple[RuledChain, Decision] | None = None
    destination: Destination | None = None
    has_waited: bool = False
    is_looked_up: bool = False
    is_ended: bool = False
    has_few: Callable[[], bool] = bool  # whether its client has few requests under way; set for a request that waits
    client: str = ""  # its address
    limits_left: Standing | None = None
    on_end: Callable[[Call, Released, int], None] | None = None
    rules: Rulebook | None = None
    chain_rules: ChainRules | None = None
    payer: Payer | None = None
    started: Started | None = None  # what its team is charged for its resident
    entered: Part | None = None  # what the meter of its resident said when it was sent
    card_s: float | None = None
    vram_bytes: int | None = None
    trace_id: str = ""
    trace_line: bytes = b""
    span: TraceContext | None = None
    visit: Visit | None = None  # where it is, if there are several backends
    known_beginning: bytes | None = None  # see `beginning`
    front: FrontCall | None = None
    has_acted: bool = False
    # Both are read at every step, so they are not looked up each time: the name of the team that asks, and False for a
    # request without a prompt, which Ollama answers at once however many others are at work.
    team: str = ""
    needs_slot: bool = True

    def __post_init__(self) -> None:
        self.team = self.identity.team.name
        self.needs_slot = not self.request.is_load_only

    def begin(self, rules: Rulebook) -> None:
        """Set the rulebook that it keeps; one that nothing identifies is the default team's."""
        if self.identity is ANYONE:
            self.identity = rules.anyone
            self.team = rules.anyone.team.name
        self.rules = rules
        self.chain_rules = rules.chains_of(self.identity.team) if self.front is None else self.front.rules

    @property
    def unloads_as(self) -> str:
        """The team whose use of a model it may end; "" if it may end that of all, as an admin."""
        return "" if "admin" in self.identity.team.rights else self.team

    @property
    def has_elsewhere(self) -> bool:
        """True if its front has other nodes and smaller variants for it: what does not fit here may fit there."""
        return self.front is not None and not self.front.told.is_final

    @property
    def may_decline(self) -> bool:
        """True while it may still be sent back to its front: it has others, and nothing has been done for it here."""
        return self.front is not None and not (self.has_acted or self.front.told.is_final)

    @property
    def wait_s(self) -> float:
        """How long it may wait here at most, if its front says."""
        return self.front.told.deadline_s if self.front is not None else math.inf

    def act(self) -> None:
        """Record that something is done for it from now on: it is served here, or fails here."""
        self.has_acted = True

    @property
    def passed_over(self) -> PassedOver:
        """Why the first variant of its chain does not serve, as several backends say."""
        return self.visit.passed_over if self.visit is not None else NOT_PASSED_OVER

    @property
    def tries(self) -> int:
        """How often it was tried: sent to Ollama, or moved on because its backend has failed it before that."""
        return max(self.attempts, 1 + len(self.visit.failed) if self.visit is not None else 1)

    def beginning(self, secret: bytes) -> bytes:
        """Return the hash of the beginning of its conversation, b"" for none; made once, with the first `secret`."""
        if self.known_beginning is None:
            self.known_beginning = beginning_of(self.body, secret)
        return self.known_beginning

    def upstream(self, body: Body, lines: bytes = b"") -> UpstreamRequest:
        """Return the request to send upstream with `body`, for a node with further `lines`.

        Inference changes nothing that lasts, so it does no harm to send it once more where nobody may have read it.
        """
        route = self.route
        shared, own = self.lines + lines, self.trace_line
        return UpstreamRequest(
            route.method_bytes, route.target, (), body, safe_to_resend=True, lines=shared, own_lines=own
        )

    def demand(self, *, is_strict: bool, nothing_fits: NothingFits | None) -> None:
        """Set what the client's own headers demand."""
        self.strict, self.nothing_fits = is_strict, nothing_fits

    def use_default_options(self) -> None:
        """Restrict the request to a runner with Ollama's default options, the only one that it can reach."""
        self.request = msgspec.structs.replace(self.request, is_automatic=True)

    def note_client(self, has_few: Callable[[], bool]) -> None:
        """Set what tells whether its client has few requests under way."""
        self.has_few = has_few

    def mark_looked_up(self) -> None:
        """Record that its name was looked up in a fresh catalog, which is done once per request."""
        self.is_looked_up = True

    def begin_wait(self, *, is_queued: bool) -> None:
        """Record that it waits; `is_queued` if for a turn or for memory, and not just for a reading."""
        self.phase, self.has_waited = "queued" if is_queued else "before_answer", True

    def end_wait(self) -> None:
        """Record that the wait is over."""
        self.phase = "before_answer"

    def let_in(self, weights: str) -> None:
        """Record that its turn has come: the weights that the queue let it in to ("" = none: to be decided again)."""
        self.phase, self.let_in_to = "before_answer", weights

    def expect(self, destination: Destination, epoch: int) -> None:
        """Record where it would be sent if it were its turn, and in which epoch that holds."""
        self.expected, self.expected_in = destination, epoch

    def record_load(self, decision: Decision) -> None:
        """Record a decision that loads a model for it: this is the one to report, not the later one for a resident."""
        self.load_decision = decision

    def enter(
        self, tracked: Tracked, choice: tuple[RuledChain, Decision] | None, started: Started | None = None
    ) -> None:
        """Record that it has entered a resident, which uses up its turn in the queue, and what its team is charged."""
        self.resident, self.choice, self.let_in_to, self.started = tracked, choice, "", started
        self.has_acted = True

    def leave(self, now_s: float) -> Tracked | None:
        """Clear resident, choice and destination; return the resident to release, if there is one."""
        resident, self.resident, self.choice, self.destination = self.resident, None, None, None
        started, self.started, took_s = self.started, None, None
        if resident is not None and self.entered is not None:
            took_s = resident.meter.leave(self.entered, now_s, resident.slots.places)
            resident.slots.took(took_s)
            self.card_s = (self.card_s or 0.0) + took_s
            self.vram_bytes, self.entered = resident.row.size_vram_bytes, None
        if started is not None:
            started.end(took_s)
        return resident

    def move(self) -> None:
        """Forget what was decided for it on a backend that it has left: it is decided again for another one."""
        self.let_in_to, self.load_decision, self.destination = "", None, None
        self.expected, self.expected_in = None, -1

    def go_to(self, visit: Visit) -> None:
        """Set where it is."""
        self.visit = visit

    def keep_destination(self, destination: Destination) -> None:
        """Keep a destination for the next attempt."""
        self.destination = destination

    def mark_sent(self, served: str, reason: str, now_s: float) -> None:
        """Record that it is sent to the model `served` at loop time `now_s`."""
        self.attempts += 1
        self.has_acted = True
        self.served, self.reason = served, reason
        if self.resident is not None:
            self.entered = self.resident.meter.enter(now_s, self.resident.slots.places)
        self.queue_s = now_s - self.since_s if self.has_waited else 0.0

    def note_served(self, served: str, reason: str, queue_s: float) -> None:
        """Record what the router that has served it says: by which variant, why, and how long it waited in all."""
        self.served, self.reason, self.queue_s = served, reason, queue_s

    def paying(self) -> Payer:
        """Return what the switches that it causes are charged to."""
        if self.payer is None:
            team = self.identity.team
            key_id, kind = self.identity.key_id, self.route.kind
            self.payer = Payer(team.name, key_id, self.request_id, kind, weight=team.share, rules=team)
        return self.payer

    def trace(self, trace_id: str, line: bytes = b"", span: TraceContext | None = None) -> None:
        """Set the id of its trace, the header that tells the next server of it, and its own span if it is recorded."""
        self.trace_id, self.trace_line, self.span = trace_id, line, span

    def pass_on(self, lines: bytes) -> None:
        """Set the headers that go upstream."""
        self.lines = lines

    def mark_refused(self, now_s: float) -> None:
        """Record that it is refused: all its time was spent waiting."""
        self.queue_s = now_s - self.since_s

    def give_up(self, *, is_gone: bool) -> None:
        """Fix whether its client has left, now that no one waits for the answer."""
        self.is_gone = lambda: is_gone

    def count(self, limits_left: Standing, on_end: Callable[[Call, Released, int], None]) -> None:
        """Set that it counts towards limits of its team."""
        self.limits_left, self.on_end = limits_left, on_end

    def end(self, now_s: float) -> bool:
        """Record its end; return False if it was recorded before, because each request is reported once."""
        was_ended, self.is_ended = self.is_ended, True
        if self.phase == "queued":
            self.queue_s = now_s - self.since_s
        return not was_ended
