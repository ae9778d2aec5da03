"""What goes into the dispatcher and what comes out of it: a call, its answer, how it was released. No story here."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router.backend.residents import Tracked
from router.config import NothingFits
from router.core.decision.chain import Chain
from router.core.decision.verdict import Decision
from router.core.ollama.routes import Route
from router.core.payload.read import InferenceRequest
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.http.headers import Header
from router.routing.destination import Destination, Rename


class Call(msgspec.Struct, eq=False):
    """One inference request as the edge has read it, and how far it has come. Only its own methods change it.

    `headers` are those that may go upstream. `is_gone` returns whether the client has left. `served` and `reason`: the
    model that it was sent to, and why. `queue_s`: how long it waited for that. `phase`: queued or before_answer.
    `let_in`: the weights that the line has let it in to. `made`: the decision that made its model resident. `held`,
    `choice` and `destination`: the resident that it has entered, the chain and decision by which, and where that sends
    it.

    A struct, like the others here: one is built for every request, and a dataclass costs three times as much.
    """

    route: Route
    request: InferenceRequest
    body: bytes
    headers: list[Header] = []
    request_id: str = ""
    team: str = "default"
    strict: bool = False
    nothing_fits: NothingFits | None = None
    is_gone: Callable[[], bool] = bool  # False; the edge knows better
    since_s: float = 0.0  # when it came, in loop time
    served: str = ""
    reason: str = ""
    queue_s: float = 0.0
    phase: str = "before_answer"
    let_in: str = ""
    attempts: int = 0
    made: Decision | None = None
    held: Tracked | None = None
    choice: tuple[Chain, Decision] | None = None
    destination: Destination | None = None
    has_waited: bool = False
    was_looked_up: bool = False
    is_ended: bool = False

    def upstream(self, body: bytes) -> UpstreamRequest:
        """The request to send upstream, with `body`."""
        return UpstreamRequest(self.route.method_bytes, self.route.target, self.headers, body, len(body))

    def demand(self, *, is_strict: bool, nothing_fits: NothingFits | None) -> None:
        """Record what the client's own headers demand."""
        self.strict, self.nothing_fits = is_strict, nothing_fits

    def without_options(self) -> None:
        """It can reach only a runner that has Ollama's own options."""
        self.request = msgspec.structs.replace(self.request, is_automatic=True)

    def look_up(self) -> None:
        """Its unknown name has been looked up among what is installed."""
        self.was_looked_up = True

    def wait(self, *, is_queued: bool) -> None:
        """It has to wait; `is_queued`: for a turn or for room, and not just for a reading."""
        self.phase, self.has_waited = "queued" if is_queued else "before_answer", True

    def go_on(self) -> None:
        """The wait is over."""
        self.phase = "before_answer"

    def was_let_in(self, weights: str) -> None:
        """The line has let it in to a resident ("" = to none: it is to be decided again)."""
        self.let_in = weights

    def made_by(self, decision: Decision) -> None:
        """`decision` loads a model for it: that is the one to report."""
        self.made = decision

    def enter(self, tracked: Tracked, choice: tuple[Chain, Decision] | None) -> None:
        """It holds a resident; what the line has let it in to is used up."""
        self.held, self.choice, self.let_in = tracked, choice, ""

    def leave(self) -> Tracked | None:
        """It holds nothing any more, and is bound for nowhere; the resident to give back, if there is one."""
        held, self.held, self.choice, self.destination = self.held, None, None, None
        return held

    def bound_for(self, destination: Destination) -> None:
        """It will be sent there as soon as it can be."""
        self.destination = destination

    def send_to(self, served: str, reason: str, now_s: float) -> None:
        """It is sent to the model `served`."""
        self.attempts += 1
        self.served, self.reason = served, reason
        self.queue_s = now_s - self.since_s if self.has_waited else 0.0

    def waited(self, now_s: float) -> None:
        """It is refused: all its time was spent waiting."""
        self.queue_s = now_s - self.since_s

    def give_up(self, *, is_gone: bool) -> None:
        """Nobody waits for the answer any more."""
        self.is_gone = lambda: is_gone

    def end(self, now_s: float) -> bool:
        """Record its end; False when it has ended before: a request ends once."""
        was_ended, self.is_ended = self.is_ended, True
        if self.phase == "queued":
            self.queue_s = now_s - self.since_s
        return not was_ended


class Released(msgspec.Struct):
    """How sending an answer ended; token counts where the answer holds them. `phase`: where a client left."""

    outcome: str
    sent_bytes: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    phase: str = ""
    error: str = ""


class Answer(msgspec.Struct):
    """What to send to the client: the upstream's answer, or `body` where `upstream` is None.

    `headers` are the `X-Router-*` ones; `lines` are the same, rendered, where many answers share them. `rename` is
    (name in the stream, name to show), for derived tags. `release` is idempotent and must be called on every exit path.
    """

    status: int
    headers: list[Header]
    upstream: UpstreamResponse | None
    body: bytes = b""
    content_type: bytes = b"application/json; charset=utf-8"
    rename: Rename | None = None
    lines: bytes = b""
    on_release: Callable[[Released], None] | None = None

    def release(
        self,
        outcome: str,
        *,
        sent_bytes: int = 0,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        error: str = "",
    ) -> None:
        """Give back the connection and the place at the resident; `outcome` says how the relay ended."""
        on_release, self.on_release = self.on_release, None
        if self.upstream is not None:
            self.upstream.close()
        if on_release is not None:
            on_release(Released(outcome, sent_bytes, tokens_in, tokens_out, "", error))
